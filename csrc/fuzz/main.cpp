// fuzz SEED CASES [FIRST]: random and adversarial cases of the torch-free math and of the CPU row loops at every
// instruction-set level of this processor, against long double, under AddressSanitizer and UBSan (`make fuzz`).
// A failure prints the command that runs its case alone.
#include <csignal>
#include <cstdlib>
#include <string>

#include "fuzz.h"

// Both sanitizers, and fail() below, end by SIGABRT, whose handler names the case. Leaks are not looked for: that needs
// ptrace, which containers forbid.
extern "C" const char* __asan_default_options() { return "abort_on_error=1:detect_leaks=0"; }
extern "C" const char* __ubsan_default_options() { return "abort_on_error=1:print_stacktrace=1"; }

namespace prunefuse::fuzz {
namespace {

void print_running(int) {
  std::fprintf(stderr, "fuzz: failed in %s, level %s; this case alone: fuzz %llu 1 %lld\n", running.family,
               running.level, static_cast<unsigned long long>(running.seed), static_cast<long long>(running.number));
}

constexpr struct {
  const char* name;
  void (*run)(Random&);
} kFamilies[] = {{"math", math_case},         {"scores", score_case},       {"ensembles", ensemble_case},
                 {"k_center", k_center_case}, {"neighbors", neighbor_case}, {"dynamics", dynamics_case},
                 {"k_means", k_means_case},   {"groups", group_case}};

}  // namespace

void fail(const std::string& what) {
  std::fprintf(stderr, "fuzz: %s\n", what.c_str());
  std::abort();
}

}  // namespace prunefuse::fuzz

int main(int count, char** words) {
  using namespace prunefuse::fuzz;
  if (count < 3 || count > 4) {
    std::fprintf(stderr, "usage: fuzz SEED CASES [FIRST]\n");
    return 2;
  }
  std::signal(SIGABRT, print_running);
  running.seed = std::stoull(words[1]);
  const int64_t first = count > 3 ? std::stoll(words[3]) : 0, cases = std::stoll(words[2]);
  for (running.number = first; running.number < first + cases; ++running.number) {
    uint64_t number = 0;
    for (const auto& family : kFamilies) {
      running.family = family.name;
      Random random(running.seed, running.number, number++);
      family.run(random);
    }
  }
  int levels = 0;
  for_levels([&] { ++levels; });
  std::printf("fuzz: %lld cases of seed %llu at %d instruction-set level(s): all well\n", static_cast<long long>(cases),
              static_cast<unsigned long long>(running.seed), levels);
}
