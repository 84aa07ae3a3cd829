// What the CPU and the CUDA search for nearest neighbors share: checking the arguments, and torch's matrix product.
//
// Distances come from products of tiles of queries with tiles of references, |q|^2 + |r|^2 - 2 q.r, which cancels where
// rows are close. So a product only says which references may be among the k nearest: all whose distance by it is below
// the k-th smallest so far plus twice its error (math/neighbors.h). Those few are computed again from differences, in
// float64, and sorted. Rows are prepared for the product: scaled (to unit length for cosine), widened, and
// moved so that the references' mean is the origin, which makes norms, and so the error, small.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <tuple>
#include <utility>

#include "dispatch.h"

namespace prunefuse {

using torch::stable::Tensor;

struct Neighbors {
  int64_t k;
  bool cosine;
  double scale;           // of all values: keeps squares in range, a power of two
  double input_roundoff;  // of what the matrix product multiplies
};

// out = a @ b. Of bfloat16 it is float32, added up in float32: torch has that on CUDA alone.
inline void multiply(const Tensor& a, const Tensor& b, const Tensor& out) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(a), from(b), from(out)};
  const char* overload = "out";
  if (a.scalar_type() == torch::headeronly::ScalarType::BFloat16) {
    overload = "dtype_out";
    stack[3] = std::exchange(stack[2], from(torch::headeronly::ScalarType::Float));
  }
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", overload, stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // another reference to `out`, given back
}

inline Tensor first_rows(Tensor tensor, int64_t rows) { return torch::stable::narrow(tensor, 0, 0, rows); }

// `run(queries, references, distances, indices, search, stored)` with contiguous tensors, and results (N, k) to be
// filled, at least one of them.
template <class Run>
std::tuple<Tensor, Tensor> nearest_neighbors(const Tensor& queries, const Tensor& references, int64_t k, bool cosine,
                                             double scale, double input_roundoff, const Run& run) {
  using torch::headeronly::ScalarType;
  constexpr const char* op = "nearest_neighbors";
  check_rank(op, "queries", queries, 2);
  check_rank(op, "references", references, 2);
  const int64_t width = queries.size(1);
  check(width > 0, op, "queries must have at least one feature, got shape (", queries.size(0), ", 0)");
  check(references.size(1) == width, op, "references must have the features of queries, ", width, ", got ",
        references.size(1));
  check_dtype(op, "references", references, queries.scalar_type());
  check_same_device(op, "references", references, "queries", queries);
  check(k >= 1 && k <= references.size(0), op, "k must lie in [1, ", references.size(0), "], got ", k);
  check(scale > 0 && scale <= std::numeric_limits<double>::max(), op, "scale must be positive and finite, got ", scale);
  check(input_roundoff >= 0 && input_roundoff < 1, op, "input_roundoff must lie in [0, 1), got ", input_roundoff);
  const auto dtype = queries.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor distances = torch::stable::new_empty(queries, {queries.size(0), k}, dtype);
  Tensor indices = torch::stable::new_empty(queries, {queries.size(0), k}, ScalarType::Long);
  const Tensor q = torch::stable::contiguous(queries), r = torch::stable::contiguous(references);
  dispatch_floating(op, "queries", queries.scalar_type(), [&](auto stored) {
    if (q.size(0) > 0) run(q, r, distances, indices, Neighbors{k, cosine, scale, input_roundoff}, stored);
  });
  return {distances, indices};
}

}  // namespace prunefuse
