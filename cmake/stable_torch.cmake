# The target stable_torch: headers and libraries of the torch in PRUNEFUSE_TORCH_DIR, for LibTorch's stable ABI.
# Targeting 2.11: one binary for that torch and every later one. They are named directly; find_package(Torch) would
# demand a CUDA toolkit wherever torch is a CUDA build.
set(PRUNEFUSE_ABI_TARGET "2.11")
add_library(stable_torch INTERFACE)
target_compile_definitions(stable_torch INTERFACE TORCH_TARGET_VERSION=0x020b000000000000)
target_include_directories(stable_torch SYSTEM INTERFACE ${PRUNEFUSE_TORCH_DIR}/include
                                                         ${PRUNEFUSE_TORCH_DIR}/include/torch/csrc/api/include)
set(torch_lib ${PRUNEFUSE_TORCH_DIR}/lib)
target_link_libraries(stable_torch INTERFACE -Wl,--no-as-needed ${torch_lib}/libtorch.so ${torch_lib}/libtorch_cpu.so
                                             ${torch_lib}/libc10.so -Wl,--as-needed)
