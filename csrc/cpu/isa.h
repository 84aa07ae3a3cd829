// Instruction-set levels: which there are, which one runs, and how a test forces one.
//
// Every file under cpu/kernels/ is compiled once per level, with that level's flags, into the namespace PRUNEFUSE_ISA.
// Those files include nothing of torch and instantiate no standard-library template: an inline function compiled with
// AVX2 must never be the copy the linker keeps for everyone.
#pragma once

#include <cstdint>

namespace prunefuse::cpu {

enum class Isa : int { kBaseline = 0, kAvx2 = 1, kAvx512 = 2 };
constexpr const char* kIsaNames[] = {"baseline", "avx2", "avx512"};

}  // namespace prunefuse::cpu

// C linkage and default visibility: the pybind11 module asks these of the operator library.
extern "C" {
// The level in use: PRUNEFUSE_ISA (baseline, avx2, avx512) if it is set and this processor has it, else the best.
__attribute__((visibility("default"))) int prunefuse_isa_level();
// The best level that this build and this processor both have.
__attribute__((visibility("default"))) int prunefuse_isa_best();
// Uses `level` from now on; false, and nothing changes, if this build or this processor lacks it. -1: back to the
// default.
__attribute__((visibility("default"))) bool prunefuse_isa_force(int level);
}

namespace prunefuse::cpu {

// The kernel of the level in use; the arguments are the same function from each level's namespace.
template <class Function>
Function* choose(Function* baseline, [[maybe_unused]] Function* avx2, [[maybe_unused]] Function* avx512) {
  Function* const table[] = {baseline, avx2, avx512};
  return table[prunefuse_isa_level()];
}

}  // namespace prunefuse::cpu

#if defined(__x86_64__)
#define PRUNEFUSE_CHOOSE(...) ::prunefuse::cpu::choose(&baseline::__VA_ARGS__, &avx2::__VA_ARGS__, &avx512::__VA_ARGS__)
#else
#define PRUNEFUSE_CHOOSE(...) (&baseline::__VA_ARGS__)
#endif
