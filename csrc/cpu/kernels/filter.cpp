// Where few values pass, a filter costs what comparing them costs: groups of them are looked at whole first. Plain
// loops, which the compiler turns into vectors of any level.
#include "filter.h"

namespace prunefuse::cpu::PRUNEFUSE_ISA {
namespace {

constexpr int64_t kGroup = 32;

// An integer as wide as the value: then comparisons add up in vectors.
template <class T>
struct mask_of {
  using type = int32_t;
};
template <>
struct mask_of<double> {
  using type = int64_t;
};

template <bool kEquals, class T>
bool passes(T value, T threshold) {
  return kEquals ? value >= threshold : value > threshold;
}

template <bool kEquals, class T>
int64_t filter_as(const T* values, int64_t count, T threshold, int32_t* positions, int64_t* nan) {
  using Mask = typename mask_of<T>::type;
  int64_t passed = 0;
  for (int64_t begin = 0; begin < count; begin += kGroup) {
    const T* group = values + begin;
    int64_t size = kGroup;
    if (count - begin >= kGroup) {
      Mask found = 0, odd = 0;
      for (int64_t j = 0; j < kGroup; ++j) {
        found += passes<kEquals>(group[j], threshold);
        odd += group[j] != group[j];
      }
      *nan += odd;
      if (found == 0) continue;
    } else {
      size = count - begin;
      for (int64_t j = 0; j < size; ++j) *nan += group[j] != group[j];
    }
    for (int64_t j = 0; j < size; ++j) {
      positions[passed] = static_cast<int32_t>(begin + j);  // stays if the next one does not take its place
      passed += passes<kEquals>(group[j], threshold);
    }
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
