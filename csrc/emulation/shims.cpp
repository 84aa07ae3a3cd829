// Stands in for what libtorch has of CUDA; linked so that this library's own calls come here.
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <bit>
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

bool multiplies_in_tf32 = false;

// A copy whose values have the 11 significant bits of TF32, rounded to nearest; instead of the one that it is given.
StableIValue rounded(StableIValue given) {
  using torch::stable::Tensor;
  const Tensor exact = torch::stable::detail::to<Tensor>(given);
  const Tensor copy = torch::stable::clone(exact);
  if (exact.scalar_type() == torch::headeronly::ScalarType::Float) {
    auto* const values = static_cast<float*>(copy.data_ptr());
    for (int64_t i = 0; i < copy.numel(); ++i) {
      values[i] = std::bit_cast<float>((std::bit_cast<uint32_t>(values[i]) + 0x1000u) & ~0x1fffu);
    }
  }
  return torch::stable::detail::from(copy);
}

}  // namespace
}  // namespace prunefuse::emulation

// torch's own, but for matrix products where a test wants them as a device may give them.
AOTITorchError torch_call_dispatcher(const char* name, const char* overload, StableIValue* stack, uint64_t version) {
  using prunefuse::emulation::rounded;
  static const auto of_torch =
      reinterpret_cast<decltype(&torch_call_dispatcher)>(dlsym(RTLD_NEXT, "torch_call_dispatcher"));
  if (prunefuse::emulation::multiplies_in_tf32 && std::strcmp(name, "aten::mm") == 0) {
    stack[0] = rounded(stack[0]);
    stack[1] = rounded(stack[1]);
  }
  return of_torch(name, overload, stack, version);
}

extern "C" __attribute__((visibility("default"))) void emulation_multiply_in_tf32(bool on) {
  prunefuse::emulation::multiplies_in_tf32 = on;
}
