// What the CPU and the CUDA k-center share: checking the arguments.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "dispatch.h"
#include "math/portable.h"

namespace prunefuse {

// `run(features, labeled, weights, least, picks, stored)`: contiguous tensors, weights a pointer that may be null,
// picks (b,) to be filled, a value of features' dtype, of which weights and least are, too.
template <class Run>
torch::stable::Tensor k_center_greedy(const torch::stable::Tensor& features, const torch::stable::Tensor& labeled,
                                      int64_t b, int64_t start, const std::optional<torch::stable::Tensor>& weights,
                                      double least, const Run& run) {
  using torch::headeronly::ScalarType;
  constexpr const char* op = "k_center_greedy";
  check_rank(op, "features", features, 2);
  check_rank(op, "labeled", labeled, 1);
  check_dtype(op, "labeled", labeled, ScalarType::Long);
  check_same_device(op, "labeled", labeled, "features", features);
  const int64_t rows = features.size(0);
  check(labeled.numel() + b <= std::numeric_limits<int32_t>::max(), op, "labeled and b must be fewer than 2^31 rows");
  check(b >= 0 && b <= rows, op, "b must lie in [0, ", rows, "], got ", b);
  check(start >= -1 && start < rows, op, "start must be a row of features or -1, got ", start);
  check(start >= 0 || labeled.numel() > 0 || b == 0, op, "start must be given where nothing is labeled");
  check(least >= 0, op, "least must be at least 0, got ", least);
  const auto x = torch::stable::contiguous(features);
  const auto known = torch::stable::contiguous(labeled);
  auto picks = torch::stable::new_empty(features, {b}, ScalarType::Long);
  dispatch_float_double(op, "features", features.scalar_type(), [&](auto stored) {
    using T = decltype(stored);
    const auto factors = contiguous_weights(op, weights, features, features.scalar_type());
    // A number beyond the type's is as good as infinite.
    const T limit = least < static_cast<double>(std::numeric_limits<T>::max()) ? static_cast<T>(least)
                                                                               : std::numeric_limits<T>::infinity();
    run(x, known, factors ? static_cast<const T*>(factors->data_ptr()) : nullptr, limit, picks, stored);
  });
  return picks;
}

}  // namespace prunefuse
