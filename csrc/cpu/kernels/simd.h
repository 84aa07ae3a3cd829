// Vectors of the level this file is compiled for, by the compilers' vector extension: one source, no intrinsics.
#pragma once

#include "../../math/exp_log.h"

namespace prunefuse::cpu::PRUNEFUSE_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float floats __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t ints __attribute__((vector_size(kLanes * sizeof(int32_t))));
typedef uint32_t words __attribute__((vector_size(kLanes * sizeof(uint32_t))));
typedef uint16_t shorts __attribute__((vector_size(kLanes * sizeof(uint16_t))));

inline floats load(const float* from) {
  floats value;
  memcpy(&value, from, sizeof(value));
  return value;
}

inline void store(float* to, floats value) { memcpy(to, &value, sizeof(value)); }

inline words load_words(const void* from) {
  shorts narrow;
  memcpy(&narrow, from, sizeof(narrow));
  return __builtin_convertvector(narrow, words);
}

inline floats load(const bfloat16_bits* from) { return bits_as<floats>(load_words(from) << 16); }

// The vector form of widen(half_bits).
inline floats load(const half_bits* from) {
  const words bits = load_words(from);
  const floats scaled = bits_as<floats>((bits & 0x7fffu) << 13) * 0x1p112f;
  // A comparison's mask is all ones where it holds.
  const words special = bits_as<words>((bits & 0x7c00u) == 0x7c00u) & 0x7f800000u;
  return bits_as<floats>(bits_as<words>(scaled) | special | ((bits & 0x8000u) << 16));
}

inline floats broadcast(float value) { return floats{} + value; }

inline floats larger(floats a, floats b) { return select(a > b, a, b); }
inline floats smaller(floats a, floats b) { return select(a < b, a, b); }

inline floats zero_where(ints mask, floats value) { return bits_as<floats>(bits_as<ints>(value) & ~mask); }

inline bool any(ints mask) {
  int32_t lanes[kLanes];
  memcpy(lanes, &mask, sizeof(mask));
  int32_t found = 0;
  for (int lane = 0; lane < kLanes; ++lane) found |= lanes[lane];
  return found != 0;
}

// All lanes added up, as a tree.
inline float sum(floats value) {
  float lanes[kLanes];
  store(lanes, value);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

template <int... Lane>
struct lane_numbers {};
template <int Count, int... Lane>
struct count_lanes : count_lanes<Count - 1, Count - 1, Lane...> {};
template <int... Lane>
struct count_lanes<0, Lane...> {
  using type = lane_numbers<Lane...>;
};

// Rows and columns of `a` and `b` whose number has the bit `Step` change places.
template <int Step, int... Lane>
inline void exchange(floats& a, floats& b, lane_numbers<Lane...>) {
  const floats low = __builtin_shufflevector(a, b, ((Lane & Step) == 0 ? Lane : Lane - Step + kLanes)...);
  const floats high = __builtin_shufflevector(a, b, ((Lane & Step) == 0 ? Lane + Step : Lane + kLanes)...);
  a = low;
  b = high;
}

template <int Step>
inline void transpose_from(floats (&rows)[kLanes]) {
  if constexpr (Step < kLanes) {
    for (int i = 0; i < kLanes; ++i) {
      if ((i & Step) == 0) exchange<Step>(rows[i], rows[i + Step], typename count_lanes<kLanes>::type{});
    }
    transpose_from<2 * Step>(rows);
  }
}

// rows[i][j] becomes rows[j][i].
inline void transpose(floats (&rows)[kLanes]) { transpose_from<1>(rows); }

}  // namespace
}  // namespace prunefuse::cpu::PRUNEFUSE_ISA
