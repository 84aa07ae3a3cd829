// Stands in for CUDA's header of this name: what the files of csrc/cuda use of the language and of the runtime, for a
// C++ compiler. grid.cpp runs the threads; docs/architecture.md says what that shows and what it does not.
#pragma once

#include <math.h>  // as in CUDA, sqrt and its like are overloaded in the global namespace

#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// A thread of the CPU runs one block at a time, so its memory can be static; unlike that word, this one goes with
// extern too.
#define __shared__ thread_local

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned along_x = 1, unsigned along_y = 1, unsigned along_z = 1)
      : x(along_x), y(along_y), z(along_z) {}
};

// Of the thread that runs. There is one dimension: launches with more are refused.
extern thread_local constinit dim3 threadIdx, blockIdx, blockDim, gridDim;

// Vectors are aligned as on the device, which UBSan holds every load and store to.
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) ulonglong2 {
  unsigned long long x, y;
};

namespace prunefuse::emulation {

constexpr int kLanes = 32;
constexpr size_t kSharedBytes = 48 * 1024;  // of a block

// Waits for the other lanes of the warp, which must come to the same operation; gives what each of them brought.
const uint64_t* meet_warp(const char* operation, unsigned mask, uint64_t brought);
void meet_block();
// Lets other blocks go on, where blocks wait for each other.
void wait_for_others();
unsigned lane();

// What __shfl_*_sync are overloaded for.
template <class T>
concept Shuffled = (std::integral<T> || std::floating_point<T>) && (sizeof(T) == 4 || sizeof(T) == 8);

template <Shuffled T>
T shuffle(const char* operation, unsigned mask, T value, unsigned from) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = meet_warp(operation, mask, bits)[from];
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace prunefuse::emulation

template <prunefuse::emulation::Shuffled T>
T __shfl_xor_sync(unsigned mask, T value, int with) {
  return prunefuse::emulation::shuffle("__shfl_xor_sync", mask, value,
                                       prunefuse::emulation::lane() ^ static_cast<unsigned>(with));
}

template <prunefuse::emulation::Shuffled T>
T __shfl_sync(unsigned mask, T value, int from) {
  return prunefuse::emulation::shuffle("__shfl_sync", mask, value, static_cast<unsigned>(from));
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const uint64_t* votes = prunefuse::emulation::meet_warp("__ballot_sync", mask, predicate != 0);
  unsigned result = 0;
  for (int i = 0; i < prunefuse::emulation::kLanes; ++i) result |= static_cast<unsigned>(votes[i]) << i;
  return result;
}

inline int __any_sync(unsigned mask, int predicate) {
  const uint64_t* votes = prunefuse::emulation::meet_warp("__any_sync", mask, predicate != 0);
  uint64_t any = 0;
  for (int i = 0; i < prunefuse::emulation::kLanes; ++i) any |= votes[i];
  return any != 0;
}

inline void __syncwarp(unsigned mask = 0xffffffffu) { prunefuse::emulation::meet_warp("__syncwarp", mask, 0); }
inline void __syncthreads() { prunefuse::emulation::meet_block(); }

inline void __nanosleep(unsigned) { prunefuse::emulation::wait_for_others(); }

inline int __popc(unsigned bits) { return std::popcount(bits); }
inline double __dmul_rn(double a, double b) { return a * b; }  // compiled with -ffp-contract=off

template <class T>
T __ldg(const T* from) {
  if (reinterpret_cast<uintptr_t>(from) % sizeof(T) != 0) throw std::runtime_error("emulation: a load is not aligned");
  return *from;
}

template <class T>
T atomicAdd(T* at, T value) {
  return std::exchange(*at, *at + value);
}
template <class T>
T atomicMax(T* at, T value) {
  return std::exchange(*at, *at < value ? value : *at);
}
template <class T>
T atomicExch(T* at, T value) {
  return std::exchange(*at, value);
}

using cudaError_t = int;
using cudaStream_t = struct CUstream_st*;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidConfiguration = 9, cudaErrorInsufficientDriver = 35,
                      cudaErrorInvalidDeviceFunction = 98, cudaErrorNoKernelImageForDevice = 209,
                      cudaErrorUnsupportedPtxVersion = 222;
#define CUDART_VERSION 12000  // the least of parameters that a kernel may have
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int cooperative;
  } val;
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

namespace prunefuse::emulation {
// A small device, so that loops over what exceeds it run with little work; tests may make it larger.
extern int multiprocessors;

// What a stream does in its turn: now, or, while a graph is captured, at its replays.
void run(std::function<void()> work);
cudaError_t run_grid(const cudaLaunchConfig_t& config, std::function<void()> thread);

// runtime.cpp: what the driver and the card that tests choose make of a launch, and the error that a thread remembers.
cudaError_t refusal();
cudaError_t remembered(cudaError_t error);
}  // namespace prunefuse::emulation

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  return [&](Parameters... converted) {
    const cudaError_t refused = prunefuse::emulation::refusal();
    return prunefuse::emulation::remembered(
        refused != cudaSuccess ? refused : prunefuse::emulation::run_grid(*config, [=] { kernel(converted...); }));
  }(std::forward<Arguments>(arguments)...);
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? prunefuse::emulation::multiprocessors
                                                       : static_cast<int>(prunefuse::emulation::kSharedBytes);
  return cudaSuccess;
}

template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*)(Parameters...), cudaFuncAttribute, int bytes) {
  return bytes <= static_cast<int>(prunefuse::emulation::kSharedBytes) ? cudaSuccess : cudaErrorInvalidConfiguration;
}

inline cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
  prunefuse::emulation::run([=] { std::memset(at, value, bytes); });
  return cudaSuccess;
}

// runtime.cpp
struct cudaDeviceProp {
  char name[256];
  int major, minor;
};
struct cudaFuncAttributes {};
#define __CUDA_ARCH_LIST__ 800, 900
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*kernel)());
