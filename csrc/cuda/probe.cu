// Why this library cannot serve a card, told apart from other errors: the driver is older than the CUDA runtime linked
// into the library, or the library has no code for the card. Asked for by `prunefuse info` and where a call fails.
#include <stdexcept>
#include <string>

#include "common.h"

namespace prunefuse::cuda {
namespace {

// Of a build: the compute capabilities times 100, in nvcc's own list.
constexpr int kArchitectures[] = {__CUDA_ARCH_LIST__};

__global__ void probe() {}

std::string numbers(int major, int minor) { return std::to_string(major) + "." + std::to_string(minor); }

std::string old_driver() {
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  return "the driver is for CUDA " + numbers(driver / 1000, driver % 1000 / 10) +
         " at most, and this library was built with CUDA " + numbers(runtime / 1000, runtime % 1000 / 10) +
         ": install a newer driver, or prunefuse again with an nvcc that the driver is new enough for";
}

std::string no_code(int device) {
  cudaDeviceProp card = {};
  cudaGetDeviceProperties(&card, device);
  std::string built;
  for (const int architecture : kArchitectures) {
    built += (built.empty() ? "" : ", ") + numbers(architecture / 100, architecture / 10 % 10);
  }
  const std::string capability = numbers(card.major, card.minor);
  return "cuda:" + std::to_string(device) + " (" + card.name + ") has compute capability " + capability +
         ", and this library was built for " + built +
         ": install prunefuse again with TORCH_CUDA_ARCH_LIST=" + capability;
}

// Empty where `error` may be of this one call.
std::string why_not(cudaError_t error, int device) {
  switch (error) {
    case cudaErrorInsufficientDriver:
    case cudaErrorUnsupportedPtxVersion:
      return old_driver();
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
      return no_code(device);
    default:
      return "";
  }
}

std::string why_not(int device) {
  int before = 0;
  cudaError_t error = cudaGetDevice(&before);
  if (error == cudaSuccess) error = cudaSetDevice(device);
  if (error == cudaSuccess) {
    cudaFuncAttributes attributes = {};
    error = cudaFuncGetAttributes(&attributes, probe);
    cudaSetDevice(before);
  }
  cudaGetLastError();
  const std::string reason = why_not(error, device);
  return error == cudaSuccess || !reason.empty() ? reason : std::string("CUDA says: ") + cudaGetErrorString(error);
}

}  // namespace

void fail(cudaError_t error) {
  cudaGetLastError();
  int device = 0;
  cudaGetDevice(&device);
  const std::string reason = why_not(error, device);
  if (!reason.empty()) throw std::runtime_error("prunefuse: the CUDA library cannot serve: " + reason);
  STD_CUDA_CHECK(error);
  throw std::runtime_error("prunefuse: a call of CUDA failed");  // torch's check has thrown
}

}  // namespace prunefuse::cuda

// For the loader: why the library cannot serve this device, empty where it can; valid until the thread's next call.
extern "C" __attribute__((visibility("default"))) const char* prunefuse_cuda_why_not(int device) {
  thread_local std::string reason;
  reason = prunefuse::cuda::why_not(device);
  return reason.c_str();
}
