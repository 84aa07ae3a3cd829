// The b best utilities on the CPU. A threshold, estimated from a sample, leaves few candidates of the many; only these
// are put in order. An estimate that left too few is a second pass, never a wrong pick.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "../dispatch.h"
#include "candidates.h"
#include "isa.h"
#include "kernels/filter.h"

namespace prunefuse::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrainValues = 131072;
constexpr int64_t kFewValues = 4096;  // are sorted whole
// Of many values a larger sample costs less than the candidates that a smaller one would leave too many.
constexpr int64_t kLargeSample = 4096;
constexpr int64_t kManyValues = 1 << 18;

// The utilities that reach the threshold, in the order of their rows: all that are above it, and of those equal to it
// at least the first b.
template <class Index, class T>
std::vector<Candidate<T, Index>> reaching(const T* utilities, int64_t rows, int64_t b, T threshold) {
  const auto filter_run = PRUNEFUSE_CHOOSE(filter<T>);
  const int64_t shares = std::min(static_cast<int64_t>(torch::stable::get_num_threads()), rows / kGrainValues + 1);
  const int64_t share = (rows + shares - 1) / shares;
  std::vector<std::vector<Candidate<T, Index>>> found(static_cast<size_t>(shares));
  torch::stable::parallel_for(0, shares, 1, [&](int64_t first, int64_t last) {
    for (int64_t s = first; s < last; ++s) {
      auto& candidates = found[size_t(s)];
      candidates.reserve(static_cast<size_t>(std::min(share, b / shares + b / shares / 4 + kFilterRun)));
      const int64_t end = std::min(rows, (s + 1) * share);
      int32_t positions[kFilterRoom];
      int64_t nan = 0, ties = 0;
      for (int64_t begin = s * share; begin < end; begin += kFilterRun) {
        const int64_t count = filter_run(utilities + begin, std::min(end - begin, kFilterRun), threshold,
                                         /*equals=*/ties < b, positions, &nan);
        const size_t before = candidates.size();
        candidates.resize(before + static_cast<size_t>(count));
        auto* const next = candidates.data() + before;
        for (int64_t i = 0; i < count; ++i) {
          const int64_t row = begin + positions[i];
          const T utility = utilities[row];
          next[i] = {utility, static_cast<Index>(row)};
          ties += utility == threshold;
        }
      }
    }
  });
  for (size_t s = 1; s < found.size(); ++s) found[0].insert(found[0].end(), found[s].begin(), found[s].end());
  return std::move(found[0]);
}

template <class Index, class T>
void pick(const T* utilities, int64_t rows, int64_t b, int64_t* indices, T* values) {
  constexpr T lowest = -std::numeric_limits<T>::infinity();
  T threshold = lowest;
  if (rows > kManyValues) {
    threshold = estimate_threshold<kLargeSample>(utilities, rows, b);
  } else if (rows > kFewValues) {
    threshold = estimate_threshold(utilities, rows, b);
  }
  auto best = reaching<Index>(utilities, rows, b, threshold);
  if (static_cast<int64_t>(best.size()) < b && threshold > lowest) {
    best = reaching<Index>(utilities, rows, b, lowest);
  }
  sort_candidates(best, b);
  for (int64_t i = 0; i < b; ++i) {
    const bool there = i < static_cast<int64_t>(best.size());
    indices[i] = there ? static_cast<int64_t>(best[size_t(i)].index) : -1;
    values[i] = there ? best[size_t(i)].utility : std::numeric_limits<T>::quiet_NaN();
  }
}

std::tuple<Tensor, Tensor> top_b(const Tensor& utilities, int64_t b) {
  constexpr const char* op = "top_b";
  check_rank(op, "utilities", utilities, 1);
  const int64_t rows = utilities.size(0);
  check(b >= 0 && b <= rows, op, "b must lie in [0, ", rows, "], got ", b);
  const Tensor all = torch::stable::contiguous(utilities);
  Tensor indices = torch::stable::new_empty(utilities, {b}, ScalarType::Long);
  Tensor values = torch::stable::new_empty(utilities, {b});
  dispatch_float_double(op, "utilities", utilities.scalar_type(), [&](auto stored) {
    using T = decltype(stored);
    if (b == 0) return;
    const auto* from = static_cast<const T*>(all.data_ptr());
    auto* const to = static_cast<int64_t*>(indices.data_ptr());
    auto* const best = static_cast<T*>(values.data_ptr());
    if (rows <= std::numeric_limits<uint32_t>::max()) {
      pick<uint32_t>(from, rows, b, to, best);
    } else {
      pick<int64_t>(from, rows, b, to, best);
    }
  });
  return {indices, values};
}

}  // namespace
}  // namespace prunefuse::cpu

STABLE_TORCH_LIBRARY_IMPL(prunefuse, CPU, m) { m.impl("top_b", TORCH_BOX(&prunefuse::cpu::top_b)); }
