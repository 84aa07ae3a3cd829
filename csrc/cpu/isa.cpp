#include "isa.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace prunefuse::cpu {
namespace {

int best_level() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return static_cast<int>(Isa::kAvx512);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return static_cast<int>(Isa::kAvx2);
#endif
  return static_cast<int>(Isa::kBaseline);
}

int default_level() {
  const int best = best_level();
  const char* wanted = std::getenv("PRUNEFUSE_ISA");
  if (wanted == nullptr || *wanted == '\0') return best;
  for (int level = 0; level < 3; ++level) {
    if (std::strcmp(wanted, kIsaNames[level]) != 0) continue;
    if (level <= best) return level;
    std::fprintf(stderr, "prunefuse: PRUNEFUSE_ISA=%s, but this processor has no more than %s; using that\n", wanted,
                 kIsaNames[best]);
    return best;
  }
  std::fprintf(stderr, "prunefuse: PRUNEFUSE_ISA=%s is not one of baseline, avx2, avx512; using %s\n", wanted,
               kIsaNames[best]);
  return best;
}

std::atomic<int>& level() {
  static std::atomic<int> value{default_level()};
  return value;
}

}  // namespace
}  // namespace prunefuse::cpu

int prunefuse_isa_level() { return prunefuse::cpu::level().load(std::memory_order_relaxed); }

int prunefuse_isa_best() { return prunefuse::cpu::best_level(); }

bool prunefuse_isa_force(int wanted) {
  using namespace prunefuse::cpu;
  if (wanted < -1 || wanted > best_level()) return false;
  level().store(wanted == -1 ? default_level() : wanted, std::memory_order_relaxed);
  return true;
}
