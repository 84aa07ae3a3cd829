// Sums in float64 are plain loops over a fixed number of partial sums, which the compiler turns into vectors.
#include "neighbors.h"

#include "simd.h"

namespace prunefuse::cpu::PRUNEFUSE_ISA {
namespace {

constexpr int64_t kSums = 16;

// As a tree.
inline double sum_up(double (&sums)[kSums]) {
  for (int64_t half = kSums / 2; half > 0; half /= 2) {
    for (int64_t s = 0; s < half; ++s) sums[s] += sums[s + half];
  }
  return sums[0];
}

// value(j) summed over j < width, in float64, kSums of them side by side.
template <class Value>
inline double sum_of(int64_t width, const Value& value) {
  double sums[kSums] = {};
  int64_t j = 0;
  for (; j + kSums <= width; j += kSums) {
    for (int64_t s = 0; s < kSums; ++s) sums[s] += value(j + s);
  }
  for (; j < width; ++j) sums[j % kSums] += value(j);
  return sum_up(sums);
}

// Distances that are computed together, so that the processor waits for several rows at once: as many as leave their
// partial sums in registers.
constexpr int kTogether = kLanes / 4;

// The first `Count` of the `left` rows that `which` names. Every row's sums are added up in the order of sum_of.
template <int Count, bool Scaled, class Stored>
inline void distances_of(const double* x, const Stored* rows, const double* factors, int64_t width,
                         const int64_t* which, int64_t left, double* squared) {
  constexpr int kParts = kSums / kWideLanes;
  const Stored *row[Count], *next[Count];
  doubles factor[Count], sums[Count][kParts];
  for (int c = 0; c < Count; ++c) {
    row[c] = rows + which[c] * width;
    next[c] = rows + which[Count + c < left ? Count + c : c] * width;
    if constexpr (Scaled) factor[c] = doubles{} + factors[which[c]];
    for (int part = 0; part < kParts; ++part) sums[c][part] = doubles{};
  }
  int64_t j = 0;
  for (; j + kSums <= width; j += kSums) {
#pragma GCC unroll 4
    for (int c = 0; c < Count; ++c) {
      __builtin_prefetch(next[c] + j);
#pragma GCC unroll 8
      for (int part = 0; part < kParts; part += 2) {
        const int64_t at = j + part * kWideLanes;
        doubles x_low, x_high, low, high;
        load_wide(x + at, x_low, x_high);
        load_wide(row[c] + at, low, high);
        if constexpr (Scaled) {
          low *= factor[c];
          high *= factor[c];
        }
        low = x_low - low;
        high = x_high - high;
        sums[c][part] += low * low;
        sums[c][part + 1] += high * high;
      }
    }
  }
  for (int c = 0; c < Count; ++c) {
    double last[kSums];
    memcpy(last, sums[c], sizeof(last));
    for (int64_t i = j; i < width; ++i) {
      const double value = widen(row[c][i]), difference = x[i] - (Scaled ? value * factors[which[c]] : value);
      last[i % kSums] += difference * difference;
    }
    squared[c] = sum_up(last);
  }
}

template <bool Scaled, class Stored>
inline void all_distances(const double* x, const Stored* rows, const double* factors, int64_t width,
                          const int64_t* which, int64_t count, double* squared) {
  int64_t n = 0;
  for (; n + kTogether <= count; n += kTogether) {
    distances_of<kTogether, Scaled>(x, rows, factors, width, which + n, count - n, squared + n);
  }
  for (; n < count; ++n) distances_of<1, Scaled>(x, rows, factors, width, which + n, count - n, squared + n);
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
void squared_distances(const Stored* x, double a, const Stored* rows, const double* factors, int64_t width,
                       const int64_t* which, int64_t count, double* scaled, double* squared) {
  for (int64_t j = 0; j < width; ++j) scaled[j] = widen(x[j]) * a;
  factors != nullptr ? all_distances<true>(scaled, rows, factors, width, which, count, squared)
                     : all_distances<false>(scaled, rows, factors, width, which, count, squared);
}

template <class Stored>
void prepare_row(const Stored* row, double factor, const accumulate_t<Stored>* origin, int64_t width,
                 accumulate_t<Stored>* prepared) {
  const auto multiplier = static_cast<accumulate_t<Stored>>(factor);
  for (int64_t j = 0; j < width; ++j) prepared[j] = widen(row[j]) * multiplier - origin[j];
}

template <class T>
int64_t keys_below(const T* products, const T* norms, int64_t count, int64_t first, T bar, T* keys, int64_t* rows) {
  int64_t passed = 0, i = 0;
  if constexpr (sizeof(T) == sizeof(float)) {
    const floats bars = broadcast(bar);
    const auto key = [&](int64_t at) { return load(norms + at) - 2 * load(products + at); };
    const auto take = [&](floats lanes, int64_t at) {
      const uint32_t found = bits_of(lanes <= bars);
      if (found == 0) return;
      pack(rows + passed, numbered(all_lanes{}), first + at, found);
      passed += pack(keys + passed, lanes, found);
    };
    constexpr int kGroup = 4;  // vectors that are looked at before the first branch
    for (; i + kGroup * kLanes <= count; i += kGroup * kLanes) {
      floats lanes[kGroup];
      ints found = {};
      for (int v = 0; v < kGroup; ++v) {
        lanes[v] = key(i + v * kLanes);
        found |= lanes[v] <= bars;
      }
      if (!any(found)) continue;
      for (int v = 0; v < kGroup; ++v) take(lanes[v], i + v * kLanes);
    }
    for (; i + kLanes <= count; i += kLanes) take(key(i), i);
  }
  for (; i < count; ++i) {
    keys[passed] = norms[i] - 2 * products[i];  // stays if the next one does not take its place
    rows[passed] = first + i;
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
int64_t keep_keys(T* keys, int64_t* rows, int64_t count, T bar) {
  int64_t kept = 0, i = 0;
  if constexpr (sizeof(T) == sizeof(float)) {
    for (; i + kLanes <= count; i += kLanes) {
      const floats lanes = load(keys + i);
      const uint32_t found = bits_of(lanes <= bar);
      pack(rows + kept, rows + i, found);
      kept += pack(keys + kept, lanes, found);
    }
  }
  for (; i < count; ++i) {
    const T key = keys[i];
    keys[kept] = key;
    rows[kept] = rows[i];
    kept += key <= bar;
  }
  return kept;
}

template <class T>
T at_least_smallest(const T* values, int64_t count, int64_t k, int64_t enough) {
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
  for (;;) {
    const T middle = low / 2 + high / 2;
    if (!(middle > low && middle < high)) return high;
    const int64_t found = count_up_to(values, count, middle);
    (found >= k ? high : low) = middle;
    if (found >= k && found <= enough) return high;
  }
}

#define PRUNEFUSE_INSTANTIATE(Stored)                                                                   \
  template double squared_norm<Stored>(const Stored*, double, int64_t);                                 \
  template void squared_distances<Stored>(const Stored*, double, const Stored*, const double*, int64_t, \
                                          const int64_t*, int64_t, double*, double*);                   \
  template void prepare_row<Stored>(const Stored*, double, const accumulate_t<Stored>*, int64_t, accumulate_t<Stored>*);
PRUNEFUSE_INSTANTIATE(float)
PRUNEFUSE_INSTANTIATE(double)
PRUNEFUSE_INSTANTIATE(half_bits)
PRUNEFUSE_INSTANTIATE(bfloat16_bits)
#undef PRUNEFUSE_INSTANTIATE
#define PRUNEFUSE_INSTANTIATE(T)                                                         \
  template int64_t keys_below<T>(const T*, const T*, int64_t, int64_t, T, T*, int64_t*); \
  template T smallest_key<T>(const T*, const T*, int64_t);                               \
  template T at_least_smallest<T>(const T*, int64_t, int64_t, int64_t);                  \
  template int64_t keep_keys<T>(T*, int64_t*, int64_t, T);
PRUNEFUSE_INSTANTIATE(float)
PRUNEFUSE_INSTANTIATE(double)
#undef PRUNEFUSE_INSTANTIATE

}  // namespace prunefuse::cpu::PRUNEFUSE_ISA
