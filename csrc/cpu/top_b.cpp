// The b best utilities on the CPU: each thread keeps the best b of its share, and the shares are merged.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "../dispatch.h"
#include "keep_top.h"

namespace prunefuse::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrainValues = 131072;

template <class T>
void fill(const T* utilities, int64_t rows, int64_t stride, int64_t b, int64_t* indices, T* values) {
  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  // More shares than the work or b warrants would cost more in merging than they save.
  const int64_t by_work = rows / (kGrainValues + 4 * b) + 1;
  const int64_t shares = threads < by_work ? threads : by_work;
  const int64_t share = (rows + shares - 1) / shares;
  std::vector<KeepTop<T>> kept(static_cast<size_t>(shares), KeepTop<T>(b));
  torch::stable::parallel_for(0, shares, 1, [&](int64_t first, int64_t last) {
    for (int64_t s = first; s < last; ++s) {
      KeepTop<T>& own = kept[static_cast<size_t>(s)];
      const int64_t end = (s + 1) * share < rows ? (s + 1) * share : rows;
      for (int64_t i = s * share; i < end; ++i) own.push(order_key(utilities[i * stride]), i);
    }
  });
  for (size_t s = 1; s < kept.size(); ++s) kept[0].merge(kept[s]);
  const auto best = kept[0].sorted();
  for (int64_t i = 0; i < b; ++i) {
    const bool there = i < static_cast<int64_t>(best.size());
    indices[i] = there ? best[static_cast<size_t>(i)].index : -1;
    values[i] = there ? utilities[indices[i] * stride] : std::numeric_limits<T>::quiet_NaN();
  }
}

std::tuple<Tensor, Tensor> top_b(const Tensor& utilities, int64_t b) {
  constexpr const char* op = "top_b";
  check_rank(op, "utilities", utilities, 1);
  const int64_t rows = utilities.size(0);
  check(b >= 0 && b <= rows, op, "b must lie in [0, ", rows, "], got ", b);
  Tensor indices = torch::stable::new_empty(utilities, {b}, ScalarType::Long);
  Tensor values = torch::stable::new_empty(utilities, {b});
  dispatch_float_double(op, "utilities", utilities.scalar_type(), [&](auto stored) {
    using T = decltype(stored);
    if (b > 0) {
      fill(static_cast<const T*>(utilities.data_ptr()), rows, utilities.stride(0), b,
           static_cast<int64_t*>(indices.data_ptr()), static_cast<T*>(values.data_ptr()));
    }
  });
  return {indices, values};
}

}  // namespace
}  // namespace prunefuse::cpu

STABLE_TORCH_LIBRARY_IMPL(prunefuse, CPU, m) { m.impl("top_b", TORCH_BOX(&prunefuse::cpu::top_b)); }
