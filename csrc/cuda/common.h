// What every CUDA file needs: the current stream of a tensor's device, and launches. Nothing here or in the CUDA files
// is beyond C++, so that csrc/emulation can compile them for the CPU.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <utility>

#include "../torch_compat.h"

namespace prunefuse::cuda {

// torch's current stream on `device`: kernels launched on it keep their order with torch's own.
inline cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

// Throws, and says why where the library cannot serve the card at all (probe.cu).
[[noreturn]] void fail(cudaError_t error);

// For what any call of CUDA returns. The runtime linked into this library remembers a failed call's error, apart from
// torch's runtime and so out of reach of torch's check; `fail` clears it, or CUB would tell it of a later, good launch.
inline void check_cuda(cudaError_t error) {
  if (error != cudaSuccess) fail(error);
}

inline int64_t multiprocessors_of(int32_t device) {
  int count = 0;
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

// Shared memory that a block may ask for, in bytes.
inline int64_t shared_bytes_of(int32_t device) {
  int bytes = 0;
  check_cuda(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return bytes;
}

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Small in emulation, where the loops over what exceeds a grid shall run too.
#if !defined(PRUNEFUSE_LARGEST_GRID)
#define PRUNEFUSE_LARGEST_GRID (1 << 20)
#endif

// Blocks of a one-dimensional launch; kernels loop over what exceeds the grid.
inline unsigned grid_for(int64_t blocks) {
  constexpr int64_t limit = PRUNEFUSE_LARGEST_GRID;
  return static_cast<unsigned>(blocks < limit ? blocks : limit);
}

constexpr size_t kSharedUnasked = 48 * 1024;

struct Shape {
  unsigned blocks;
  unsigned threads;
  size_t shared = 0;         // bytes for dynamic_shared
  bool cooperative = false;  // all blocks are resident together, and may wait for each other
};

// Queues a kernel; arguments are converted to its parameters' types. Throws where the launch is refused.
template <class... Parameters, class... Arguments>
void launch_kernel(void (*kernel)(Parameters...), Shape shape, cudaStream_t stream, Arguments&&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(shape.blocks);
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared;
  config.stream = stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  if (shape.cooperative) {
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
  if (shape.shared > kSharedUnasked) {
    check_cuda(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared)));
  }
  check_cuda(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
}

// The block's Shape::shared bytes.
template <class T>
__device__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  return reinterpret_cast<T*>(shared_bytes);
}

}  // namespace prunefuse::cuda
