// Errors that name the operator, the argument, what was expected and what came. Checks run before any parallel region:
// what is thrown inside one loses its text.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <sstream>
#include <stdexcept>

#include "torch_compat.h"

namespace prunefuse {

template <class... Parts>
void check(bool condition, const char* op, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  message << "prunefuse::" << op << ": ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline void check_rank(const char* op, const char* argument, const torch::stable::Tensor& tensor, int64_t rank) {
  check(tensor.dim() == rank, op, argument, " must have ", rank, " dimension(s), got ", tensor.dim());
}

inline void check_dtype(const char* op, const char* argument, const torch::stable::Tensor& tensor,
                        torch::headeronly::ScalarType dtype) {
  check(tensor.scalar_type() == dtype, op, argument, " must be ", torch::headeronly::toString(dtype), ", got ",
        torch::headeronly::toString(tensor.scalar_type()));
}

inline void check_same_device(const char* op, const char* argument, const torch::stable::Tensor& tensor,
                              const char* other_argument, const torch::stable::Tensor& other) {
  check(tensor.is_cuda() == other.is_cuda() && tensor.get_device_index() == other.get_device_index(), op, argument,
        " and ", other_argument, " must be on the same device");
}

// Numbers of the rows of `features`, where there are any.
inline std::optional<torch::stable::Tensor> contiguous_weights(const char* op,
                                                               const std::optional<torch::stable::Tensor>& weights,
                                                               const torch::stable::Tensor& features,
                                                               torch::headeronly::ScalarType dtype) {
  if (!weights) return std::nullopt;
  check_rank(op, "weights", *weights, 1);
  check(weights->size(0) == features.size(0), op, "weights must have the rows of features, ", features.size(0),
        ", got ", weights->size(0));
  check_dtype(op, "weights", *weights, dtype);
  check_same_device(op, "weights", *weights, "features", features);
  return torch::stable::contiguous(*weights);
}

}  // namespace prunefuse
