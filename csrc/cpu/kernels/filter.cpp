// Where few values pass, a filter costs what comparing them costs: groups of vectors are looked at whole first.
#include "filter.h"

#include "simd.h"

namespace prunefuse::cpu::PRUNEFUSE_ISA {
namespace {

constexpr int kVectors = 4;  // of a group

template <bool kEquals, class T>
int64_t filter_as(const T* values, int64_t count, T threshold, int32_t* positions, int64_t* nan) {
  using V = decltype(load(values));
  constexpr int64_t lanes = sizeof(V) / sizeof(T), group = kVectors * lanes;
  constexpr int64_t ahead = 4096 / sizeof(T);  // what is asked for of the memory
  const V least = V{} + threshold;
  int64_t passed = 0, begin = 0;
  for (; begin + group <= count; begin += group) {
    uint32_t hits[kVectors], any = 0;
    for (int i = 0; i < kVectors; ++i) {
      const T* const x = values + begin + i * lanes;
      hits[i] = kEquals ? bits_not_below(load(x), least) : bits_not_at_most(load(x), least);
      any |= hits[i];
      __builtin_prefetch(x + ahead);
    }
    if (any == 0) continue;
    for (int i = 0; i < kVectors; ++i) {
      const uint32_t odd = bits_nan(load(values + begin + i * lanes));
      *nan += __builtin_popcount(odd);
      // No more have passed than came before, so there is room for all lanes.
      passed += store_positions(positions + passed, hits[i] & ~odd, static_cast<int32_t>(begin + i * lanes));
    }
  }
  for (; begin < count; ++begin) {
    *nan += values[begin] != values[begin];
    positions[passed] = static_cast<int32_t>(begin);  // stays if the next one does not take its place
    passed += kEquals ? values[begin] >= threshold : values[begin] > threshold;
  }
  return passed;
}

}  // namespace

template <class T>
int64_t filter(const T* values, int64_t count, T threshold, bool equals, int32_t* positions, int64_t* nan) {
  return equals ? filter_as<true>(values, count, threshold, positions, nan)
                : filter_as<false>(values, count, threshold, positions, nan);
}

#define PRUNEFUSE_INSTANTIATE(T) template int64_t filter<T>(const T*, int64_t, T, bool, int32_t*, int64_t*);
PRUNEFUSE_INSTANTIATE(float)
PRUNEFUSE_INSTANTIATE(double)
#undef PRUNEFUSE_INSTANTIATE

}  // namespace prunefuse::cpu::PRUNEFUSE_ISA
