// What the CPU and the CUDA keeper of a stream's best share: checking the arguments.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "dispatch.h"

namespace prunefuse {

using torch::stable::Tensor;

// Candidates that there must be room for beside the b best.
constexpr int64_t kBesideBest = 2048;

// The candidates, and the batch that comes. Between calls there are at most `room` candidates.
template <class T>
struct Stream {
  T* utilities;      // room + kBesideBest
  int64_t* indices;  // as many
  T* threshold;      // of one element
  int64_t* counts;   // candidates, NaN seen, highest index seen
  int64_t room, b;
  const T* batch;                // rows
  const int64_t* batch_indices;  // rows, or null: on from the highest
  int64_t rows;
};

// `run(stream)` is called once.
template <class Run>
void keep_best_(const Tensor& best, const Tensor& indices, const Tensor& threshold, const Tensor& counts, int64_t b,
                const Tensor& batch, const std::optional<Tensor>& batch_indices, const Run& run) {
  using torch::headeronly::ScalarType;
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
  const int64_t room = best.numel() - kBesideBest;
  check(b >= 1 && b <= room, op, "b must lie in [1, ", room, "], ", kBesideBest, " less than the size of best, got ",
        b);
  dispatch_float_double(op, "best", dtype, [&](auto stored) {
    using T = decltype(stored);
    run(Stream<T>{static_cast<T*>(best.data_ptr()), static_cast<int64_t*>(indices.data_ptr()),
                  static_cast<T*>(threshold.data_ptr()), static_cast<int64_t*>(counts.data_ptr()), room, b,
                  static_cast<const T*>(batch.data_ptr()),
                  batch_indices ? static_cast<const int64_t*>(batch_indices->data_ptr()) : nullptr, batch.numel()});
  });
}

}  // namespace prunefuse
