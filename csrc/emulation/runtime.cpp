// CUDA's runtime beside the launches: the error that it remembers for each thread, and the driver and the card that it
// finds, which tests choose.
#include <cuda_runtime.h>

#include <cstdio>

namespace prunefuse::emulation {
namespace {

constexpr int kRuntime = 13000;

thread_local cudaError_t last_error = cudaSuccess;
int driver = kRuntime;
int major = 9;
int launches_to_refusal = 0;

// What every call of the runtime returns that needs a driver.
cudaError_t ready() { return driver / 1000 < kRuntime / 1000 ? cudaErrorInsufficientDriver : cudaSuccess; }

// Code is for compute capability 8.0 and for 9.0 and what is newer, by PTX.
cudaError_t found() { return ready() != cudaSuccess || major >= 8 ? ready() : cudaErrorNoKernelImageForDevice; }

}  // namespace

cudaError_t refusal() {
  if (launches_to_refusal > 0 && --launches_to_refusal == 0) return cudaErrorInvalidConfiguration;
  return found();
}

cudaError_t remembered(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

}  // namespace prunefuse::emulation

using namespace prunefuse::emulation;

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }
const char* cudaGetErrorString(cudaError_t) { return "an error of the emulation"; }

cudaError_t cudaDriverGetVersion(int* version) {
  *version = driver;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = kRuntime;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return remembered(ready());
}

cudaError_t cudaSetDevice(int) { return remembered(ready()); }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  std::snprintf(properties->name, sizeof(properties->name), "Emulated GPU");
  properties->major = major;
  properties->minor = 5;
  return remembered(ready());
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, void (*)()) { return remembered(found()); }

// For the tests.
extern "C" {
// As cudaDriverGetVersion gives it: 12040 for CUDA 12.4.
__attribute__((visibility("default"))) void emulation_choose_driver(int version) { driver = version; }
// The compute capability is that number and a 5.
__attribute__((visibility("default"))) void emulation_choose_card(int generation) { major = generation; }
// The next launch, for 1, or one after it is refused.
__attribute__((visibility("default"))) void emulation_refuse_launch(int number) { launches_to_refusal = number; }
}
