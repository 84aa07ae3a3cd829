// What every CUDA file needs: the current stream of a tensor's device, and launch checks.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace prunefuse::cuda {

// torch's current stream on `device`: kernels launched on it keep their order with torch's own.
inline cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

inline int64_t multiprocessors_of(int32_t device) {
  int count = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks of a one-dimensional launch; kernels loop over what exceeds the grid.
inline unsigned grid_for(int64_t blocks) {
  constexpr int64_t limit = 1 << 20;
  return static_cast<unsigned>(blocks < limit ? blocks : limit);
}

}  // namespace prunefuse::cuda
