// What lets one source be read by a C++ compiler and by nvcc. No torch, no allocation.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__CUDACC__)
#define PRUNEFUSE_HD __host__ __device__ __forceinline__
#define PRUNEFUSE_UNROLL _Pragma("unroll")  // arrays that the loop after it walks then stay in registers
#else
#define PRUNEFUSE_HD inline __attribute__((always_inline))
#define PRUNEFUSE_UNROLL
#endif

namespace prunefuse {

template <class To, class From>
PRUNEFUSE_HD To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  memcpy(&result, &value, sizeof(To));
  return result;
}

// Storage of the two 16-bit formats, so that the row math needs no torch header.
struct half_bits {
  uint16_t bits;
};
struct bfloat16_bits {
  uint16_t bits;
};

PRUNEFUSE_HD float widen(float value) { return value; }
PRUNEFUSE_HD double widen(double value) { return value; }
PRUNEFUSE_HD float widen(bfloat16_bits value) { return bits_as<float>(static_cast<uint32_t>(value.bits) << 16); }
// Exponent and mantissa land in float32's fields; the product by 2^112 corrects the bias (subnormals included,
// exactly).
PRUNEFUSE_HD float widen(half_bits value) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
#else
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
  const uint32_t special = (value.bits & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const float scaled = bits_as<float>(magnitude) * 0x1p112f;
  return bits_as<float>(bits_as<uint32_t>(scaled) | special | sign);
#endif
}

// The type sums are kept in and results are written in: float64 for float64, float32 for everything else.
template <class Stored>
struct accumulate_in {
  using type = float;
};
template <>
struct accumulate_in<double> {
  using type = double;
};
template <class Stored>
using accumulate_t = typename accumulate_in<Stored>::type;

}  // namespace prunefuse
