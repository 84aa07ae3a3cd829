// Stands in for what libtorch has of CUDA; linked so that this library's own calls come here.
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>

AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return AOTI_TORCH_SUCCESS; }

AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError torch_c10_cuda_check_msg(int32_t error, const char*, const char*, uint32_t, bool, char** message) {
  *message = error == cudaSuccess ? nullptr : strdup("emulation: a launch of a shape that no device takes");
  return AOTI_TORCH_SUCCESS;
}

void torch_c10_cuda_free_error_msg(char* message) { std::free(message); }

namespace prunefuse::emulation {
namespace {

// out = a @ b of bfloat16 in float32, which torch has on CUDA alone, added up as tensor cores do it at their worst: a
// few products at a time, and what exceeds float32 is cut off.
void multiply(const torch::stable::Tensor& a, const torch::stable::Tensor& b, const torch::stable::Tensor& out) {
  constexpr int64_t kStep = 4;
  const auto widen = [](uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); };
  for (int64_t i = 0; i < a.size(0); ++i) {
    for (int64_t j = 0; j < b.size(1); ++j) {
      const auto* const x = static_cast<const uint16_t*>(a.data_ptr()) + i * a.stride(0);
      const auto* const y = static_cast<const uint16_t*>(b.data_ptr()) + j * b.stride(1);
      float sum = 0;
      for (int64_t begin = 0; begin < a.size(1); begin += kStep) {
        double next = sum;
        for (int64_t n = begin; n < std::min(begin + kStep, a.size(1)); ++n) {
          next += double{widen(x[n * a.stride(1)])} * widen(y[n * b.stride(0)]);
        }
        sum = static_cast<float>(next);
        if (std::abs(double{sum}) > std::abs(next)) sum = std::nextafter(sum, 0.0f);
      }
      static_cast<float*>(out.data_ptr())[i * out.stride(0) + j * out.stride(1)] = sum;
    }
  }
}

}  // namespace
}  // namespace prunefuse::emulation

// torch's own, but for what it has on CUDA alone.
AOTITorchError torch_call_dispatcher(const char* name, const char* overload, StableIValue* stack, uint64_t version) {
  using torch::stable::Tensor;
  using torch::stable::detail::to;
  static const auto of_torch =
      reinterpret_cast<decltype(&torch_call_dispatcher)>(dlsym(RTLD_NEXT, "torch_call_dispatcher"));
  if (std::strcmp(name, "aten::mm") != 0 || std::strcmp(overload, "dtype_out") != 0) {
    return of_torch(name, overload, stack, version);
  }
  const Tensor a = to<Tensor>(stack[0]), b = to<Tensor>(stack[1]), out = to<Tensor>(stack[3]);
  prunefuse::emulation::multiply(a, b, out);
  stack[0] = torch::stable::detail::from(out);
  return AOTI_TORCH_SUCCESS;
}
