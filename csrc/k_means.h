// What the CPU and the CUDA k-means++ share: checking the arguments.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "dispatch.h"

namespace prunefuse {

// `run(residuals, features, draws, weights, picks, stored)`: contiguous tensors, weights a pointer that may be null,
// picks (b,) to be filled where b > 0, a value of features' dtype.
template <class Run>
torch::stable::Tensor k_means_plus_plus(const torch::stable::Tensor& residuals, const torch::stable::Tensor& features,
                                        const torch::stable::Tensor& draws,
                                        const std::optional<torch::stable::Tensor>& weights, const Run& run) {
  using torch::headeronly::ScalarType;
  constexpr const char* op = "k_means_plus_plus";
  check_rank(op, "residuals", residuals, 2);
  check_rank(op, "features", features, 2);
  check_rank(op, "draws", draws, 1);
  const int64_t rows = features.size(0), b = draws.size(0);
  check(residuals.size(0) == rows, op, "residuals must have the rows of features, ", rows, ", got ", residuals.size(0));
  check_dtype(op, "residuals", residuals, features.scalar_type());
  check_dtype(op, "draws", draws, ScalarType::Double);
  check_same_device(op, "residuals", residuals, "features", features);
  check_same_device(op, "draws", draws, "features", features);
  check(b <= rows, op, "draws must be at most as many as rows, ", rows, ", got ", b);
  const auto factors = contiguous_weights(op, weights, features, ScalarType::Double);
  const auto r = torch::stable::contiguous(residuals);
  const auto h = torch::stable::contiguous(features);
  const auto u = torch::stable::contiguous(draws);
  auto picks = torch::stable::new_empty(features, {b}, ScalarType::Long);
  dispatch_float_double(op, "features", features.scalar_type(), [&](auto stored) {
    if (b > 0) run(r, h, u, factors ? static_cast<const double*>(factors->data_ptr()) : nullptr, picks, stored);
  });
  return picks;
}

}  // namespace prunefuse
