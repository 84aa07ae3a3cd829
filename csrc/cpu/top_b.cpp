// The b best utilities on the CPU, of a pool and of a stream. A threshold, estimated from a sample, leaves few
// candidates of the many; only these are put in order. An estimate that left too few is a second pass, never a wrong
// pick.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
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

// The utilities that reach the threshold, in the order of their rows: all that are above it, and of those equal to it
// at least the first b.
template <class T>
std::vector<Candidate<T>> reaching(const T* utilities, int64_t rows, int64_t b, T threshold) {
  const auto filter_run = PRUNEFUSE_CHOOSE(filter<T>);
  const int64_t shares = std::min(static_cast<int64_t>(torch::stable::get_num_threads()), rows / kGrainValues + 1);
  const int64_t share = (rows + shares - 1) / shares;
  std::vector<std::vector<Candidate<T>>> found(static_cast<size_t>(shares));
  torch::stable::parallel_for(0, shares, 1, [&](int64_t first, int64_t last) {
    for (int64_t s = first; s < last; ++s) {
      const int64_t end = std::min(rows, (s + 1) * share);
      int32_t positions[kFilterRun];
      int64_t nan = 0, ties = 0;
      for (int64_t begin = s * share; begin < end; begin += kFilterRun) {
        const int64_t count = filter_run(utilities + begin, std::min(end - begin, kFilterRun), threshold,
                                         /*equals=*/ties < b, positions, &nan);
        for (int64_t i = 0; i < count; ++i) {
          const int64_t row = begin + positions[i];
          found[size_t(s)].push_back({utilities[row], row});
          ties += utilities[row] == threshold;
        }
      }
    }
  });
  for (size_t s = 1; s < found.size(); ++s) found[0].insert(found[0].end(), found[s].begin(), found[s].end());
  return std::move(found[0]);
}

template <class T>
void pick(const T* utilities, int64_t rows, int64_t b, int64_t* indices, T* values) {
  constexpr T lowest = -std::numeric_limits<T>::infinity();
  const T threshold = rows > kFewValues ? estimate_threshold(utilities, rows, b) : lowest;
  auto best = reaching(utilities, rows, b, threshold);
  if (static_cast<int64_t>(best.size()) < b && threshold > lowest) best = reaching(utilities, rows, b, lowest);
  sort_candidates(best);
  for (int64_t i = 0; i < b; ++i) {
    const bool there = i < static_cast<int64_t>(best.size());
    indices[i] = there ? best[size_t(i)].index : -1;
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
    if (b > 0) {
      pick(static_cast<const T*>(all.data_ptr()), rows, b, static_cast<int64_t*>(indices.data_ptr()),
           static_cast<T*>(values.data_ptr()));
    }
  });
  return {indices, values};
}

// The candidates of a stream.
template <class T>
struct Kept {
  T* utilities;
  int64_t* indices;
  int64_t room, count, b;  // room: how many there may be between two runs of a filter
  T threshold;

  // Well below the room, so that it takes many rows until the next cut.
  void cut() {
    const T estimate = estimate_threshold(utilities, count, b);
    const auto reach = std::count_if(utilities, utilities + count, [&](T utility) { return utility >= estimate; });
    if (reach < b || 2 * reach > room + b) return cut_exactly();
    int64_t left = 0;
    for (int64_t i = 0; i < count; ++i) {
      utilities[left] = utilities[i];
      indices[left] = indices[i];
      left += utilities[i] >= estimate;
    }
    count = left;
    threshold = estimate;
  }

  // Where many are equal, only their order says which of them stay.
  void cut_exactly() {
    std::vector<Candidate<T>> candidates;
    for (int64_t i = 0; i < count; ++i) candidates.push_back({utilities[i], indices[i]});
    sort_candidates(candidates);
    count = b;
    for (int64_t i = 0; i < count; ++i) {
      utilities[i] = candidates[size_t(i)].utility;
      indices[i] = candidates[size_t(i)].index;
    }
    threshold = utilities[b - 1];
  }
};

// `own`: the indices of the batch's rows, or null.
template <class T>
void keep(Kept<T>& kept, const T* batch, const int64_t* own, int64_t rows, int64_t* nan, int64_t* highest) {
  const auto filter_run = PRUNEFUSE_CHOOSE(filter<T>);
  int32_t positions[kFilterRun];
  for (int64_t begin = 0; begin < rows; begin += kFilterRun) {
    const int64_t run = std::min(rows - begin, kFilterRun);
    int64_t first = *highest + 1, last = *highest + run;
    if (own != nullptr) {
      first = *std::min_element(own + begin, own + begin + run);
      last = *std::max_element(own + begin, own + begin + run);
    }
    // Rows after all candidates lose to b of them where they are but equal to the threshold.
    const bool equals = first <= *highest || kept.threshold == -std::numeric_limits<T>::infinity();
    const int64_t count = filter_run(batch + begin, run, kept.threshold, equals, positions, nan);
    for (int64_t i = 0; i < count; ++i) {
      kept.utilities[kept.count] = batch[begin + positions[i]];
      kept.indices[kept.count++] = own != nullptr ? own[begin + positions[i]] : first + positions[i];
    }
    *highest = std::max(*highest, last);
    if (kept.count > kept.room) kept.cut();
  }
}

void keep_best_(Tensor best, Tensor indices, Tensor threshold, Tensor counts, int64_t b, const Tensor& batch,
                std::optional<Tensor> batch_indices) {
  constexpr const char* op = "keep_best_";
  const auto check_array = [&](const char* name, const Tensor& tensor, ScalarType dtype, int64_t size) {
    check_rank(op, name, tensor, 1);
    check_dtype(op, name, tensor, dtype);
    check(tensor.is_contiguous(), op, name, " must be contiguous");
    check(tensor.numel() == size, op, name, " must have size ", size, ", got ", tensor.numel());
    check_same_device(op, name, tensor, "best", best);
  };
  const ScalarType dtype = best.scalar_type();
  check_array("best", best, dtype, best.numel());
  check_array("indices", indices, ScalarType::Long, best.numel());
  check_array("threshold", threshold, dtype, 1);
  check_array("counts", counts, ScalarType::Long, 3);
  check_array("batch", batch, dtype, batch.numel());
  if (batch_indices) check_array("batch_indices", *batch_indices, ScalarType::Long, batch.numel());
  auto* count = static_cast<int64_t*>(counts.data_ptr());
  const int64_t room = best.numel() - kFilterRun;
  check(b >= 1 && b <= room, op, "b must lie in [1, ", room, "], ", kFilterRun, " less than the size of best, got ", b);
  check(*count >= 0 && *count <= room, op, "counts[0] must lie in [0, ", room, "], got ", *count);
  dispatch_float_double(op, "best", dtype, [&](auto stored) {
    using T = decltype(stored);
    T* const least = static_cast<T*>(threshold.data_ptr());
    Kept<T> kept{static_cast<T*>(best.data_ptr()), static_cast<int64_t*>(indices.data_ptr()), room, *count, b, *least};
    keep(kept, static_cast<const T*>(batch.data_ptr()),
         batch_indices ? static_cast<const int64_t*>(batch_indices->data_ptr()) : nullptr, batch.numel(), count + 1,
         count + 2);
    *count = kept.count;
    *least = kept.threshold;
  });
}

}  // namespace
}  // namespace prunefuse::cpu

STABLE_TORCH_LIBRARY_IMPL(prunefuse, CPU, m) {
  m.impl("top_b", TORCH_BOX(&prunefuse::cpu::top_b));
  m.impl("keep_best_", TORCH_BOX(&prunefuse::cpu::keep_best_));
}
