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

}  // namespace
}  // namespace prunefuse::cpu::PRUNEFUSE_ISA
