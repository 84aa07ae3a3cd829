// Sums in float64 are plain loops over a fixed number of partial sums, which the compiler turns into vectors.
#include "neighbors.h"

#include "simd.h"

namespace prunefuse::cpu::PRUNEFUSE_ISA {
namespace {

constexpr int64_t kSums = 16;

// value(j) summed over j < width, in float64, kSums of them side by side.
template <class Value>
inline double sum_of(int64_t width, const Value& value) {
  double sums[kSums] = {};
  int64_t j = 0;
  for (; j + kSums <= width; j += kSums) {
    for (int64_t s = 0; s < kSums; ++s) sums[s] += value(j + s);
  }
  for (; j < width; ++j) sums[j % kSums] += value(j);
  for (int64_t half = kSums / 2; half > 0; half /= 2) {
    for (int64_t s = 0; s < half; ++s) sums[s] += sums[s + half];
  }
  return sums[0];
}

template <class T>
int64_t count_up_to(const T* values, int64_t count, T bar) {
  int64_t found = 0, i = 0;
  if constexpr (sizeof(T) == sizeof(float)) {
    ints lanes = {};
    for (; i + kLanes <= count; i += kLanes) lanes -= load(values + i) <= bar;
    for (int lane = 0; lane < kLanes; ++lane) found += lanes[lane];
  }
  for (; i < count; ++i) found += values[i] <= bar;
  return found;
}

}  // namespace

template <class Stored>
double squared_norm(const Stored* row, double factor, int64_t width) {
  return sum_of(width, [=](int64_t j) {
    const double value = widen(row[j]) * factor;
    return value * value;
  });
}

template <class Stored>
double squared_distance(const Stored* x, double a, const Stored* y, double b, int64_t width) {
  return sum_of(width, [=](int64_t j) {
    const double difference = widen(x[j]) * a - widen(y[j]) * b;
    return difference * difference;
  });
}

template <class Stored>
void prepare_row(const Stored* row, double factor, const accumulate_t<Stored>* origin, int64_t width,
                 accumulate_t<Stored>* prepared) {
  const auto multiplier = static_cast<accumulate_t<Stored>>(factor);
  for (int64_t j = 0; j < width; ++j) prepared[j] = widen(row[j]) * multiplier - origin[j];
}

template <class T>
int64_t keys_below(const T* products, const T* norms, int64_t count, T bar, T* keys, int32_t* positions) {
  int64_t passed = 0, i = 0;
  if constexpr (sizeof(T) == sizeof(float)) {
    for (; i + kLanes <= count; i += kLanes) {
      const floats lanes = load(norms + i) - 2 * load(products + i);
      for (uint32_t left = bits_of(lanes <= bar); left != 0; left &= left - 1) {
        const int lane = __builtin_ctz(left);
        keys[passed] = norms[i + lane] - 2 * products[i + lane];
        positions[passed++] = static_cast<int32_t>(i + lane);
      }
    }
  }
  for (; i < count; ++i) {
    keys[passed] = norms[i] - 2 * products[i];  // stays if the next one does not take its place
    positions[passed] = static_cast<int32_t>(i);
    passed += keys[passed] <= bar;
  }
  return passed;
}

template <class T>
T smallest_key(const T* products, const T* norms, int64_t count) {
  T best = norms[0] - 2 * products[0];
  int64_t i = 0;
  if constexpr (sizeof(T) == sizeof(float)) {
    floats lanes = broadcast(best);
    for (; i + kLanes <= count; i += kLanes) lanes = smaller(load(norms + i) - 2 * load(products + i), lanes);
    for (int lane = 0; lane < kLanes; ++lane) best = lanes[lane] < best ? lanes[lane] : best;
  }
  for (; i < count; ++i) {
    const T key = norms[i] - 2 * products[i];
    best = key < best ? key : best;
  }
  return best;
}

template <class T>
T at_least_smallest(const T* values, int64_t count, int64_t k) {
  T low = values[0], high = values[0];
  int64_t i = 1;
  if constexpr (sizeof(T) == sizeof(float)) {
    floats lows = broadcast(low), highs = lows;
    for (; i + kLanes <= count; i += kLanes) {
      lows = smaller(load(values + i), lows);
      highs = larger(load(values + i), highs);
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      low = lows[lane] < low ? lows[lane] : low;
      high = highs[lane] > high ? highs[lane] : high;
    }
  }
  for (; i < count; ++i) {
    low = values[i] < low ? values[i] : low;
    high = values[i] > high ? values[i] : high;
  }
  const int64_t enough = k + k / 8;
  for (;;) {
    const T middle = low / 2 + high / 2;
    if (!(middle > low && middle < high)) return high;
    const int64_t found = count_up_to(values, count, middle);
    (found >= k ? high : low) = middle;
    if (found >= k && found <= enough) return high;
  }
}

#define PRUNEFUSE_INSTANTIATE(Stored)                                                              \
  template double squared_norm<Stored>(const Stored*, double, int64_t);                            \
  template double squared_distance<Stored>(const Stored*, double, const Stored*, double, int64_t); \
  template void prepare_row<Stored>(const Stored*, double, const accumulate_t<Stored>*, int64_t, accumulate_t<Stored>*);
PRUNEFUSE_INSTANTIATE(float)
PRUNEFUSE_INSTANTIATE(double)
PRUNEFUSE_INSTANTIATE(half_bits)
PRUNEFUSE_INSTANTIATE(bfloat16_bits)
#undef PRUNEFUSE_INSTANTIATE
template int64_t keys_below<float>(const float*, const float*, int64_t, float, float*, int32_t*);
template int64_t keys_below<double>(const double*, const double*, int64_t, double, double*, int32_t*);
template float smallest_key<float>(const float*, const float*, int64_t);
template double smallest_key<double>(const double*, const double*, int64_t);
template float at_least_smallest<float>(const float*, int64_t, int64_t);
template double at_least_smallest<double>(const double*, int64_t, int64_t);

}  // namespace prunefuse::cpu::PRUNEFUSE_ISA
