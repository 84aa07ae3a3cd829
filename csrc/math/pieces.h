// 16 bytes of a row, or fewer, in registers as they are stored, and the exponentials of their values: what the kernels
// that hold rows in registers share (row_tile.h and shares.h). Exponents are in units of 1 / log2(e) nats for float32,
// whose exponential is exp2, and in nats for float64.
#pragma once

#include <type_traits>

#include "exp_log.h"

namespace prunefuse {

template <class Stored, int Width>
struct Piece {
  static constexpr int kWidth = Width, kBytes = Width * static_cast<int>(sizeof(Stored));
  uint32_t words[kBytes < 4 ? 1 : kBytes / 4];
};

template <class Stored, int Width>
PRUNEFUSE_HD accumulate_t<Stored> value_at(const Piece<Stored, Width>& piece, int i) {
  if constexpr (std::is_same_v<Stored, bfloat16_bits>) {
    // In a word's upper half it is a float32 but for what lies below.
    return bits_as<float>(i % 2 == 0 ? piece.words[i / 2] << 16 : piece.words[i / 2] & 0xffff0000u);
  } else if constexpr (sizeof(Stored) == 2) {
    return widen(Stored{static_cast<uint16_t>(piece.words[i / 2] >> (i % 2 * 16))});
  } else if constexpr (sizeof(Stored) == 4) {
    return bits_as<float>(piece.words[i]);
  } else {
    return bits_as<double>(static_cast<uint64_t>(piece.words[2 * i + 1]) << 32 | piece.words[2 * i]);
  }
}

// The larger of two, or the one that is a number.
PRUNEFUSE_HD float larger(float a, float b) { return ::fmaxf(a, b); }
PRUNEFUSE_HD double larger(double a, double b) { return ::fmax(a, b); }

// The same of two pairs of 16-bit values.
template <class Stored>
PRUNEFUSE_HD uint32_t larger_pair(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t pair;
  if constexpr (std::is_same_v<Stored, bfloat16_bits>) {
    asm("max.bf16x2 %0, %1, %2;" : "=r"(pair) : "r"(a), "r"(b));
  } else {
    asm("max.f16x2 %0, %1, %2;" : "=r"(pair) : "r"(a), "r"(b));
  }
  return pair;
#else
  uint32_t pair = 0;
  for (int half = 0; half < 32; half += 16) {
    const auto one = static_cast<uint16_t>(a >> half), other = static_cast<uint16_t>(b >> half);
    const float x = widen(Stored{one}), y = widen(Stored{other});
    pair |= static_cast<uint32_t>(x >= y || y != y ? one : other) << half;
  }
  return pair;
#endif
}

// What a difference of logits is multiplied by; never such that 0 or an infinity times it is no number.
template <class Acc>
PRUNEFUSE_HD Acc exponent_scale(Acc inverse_temperature) {
  constexpr Acc least = std::numeric_limits<Acc>::denorm_min(), most = std::numeric_limits<Acc>::max();
  Acc scale = inverse_temperature;
  if constexpr (sizeof(Acc) == sizeof(float)) scale *= kLog2E;
  return scale < least ? least : (scale > most ? most : scale);
}
template <class Acc>
constexpr Acc kNatsPerUnit = sizeof(Acc) == sizeof(float) ? Acc(0.693147180559945309) : Acc(1);

// That of a NaN is one.
PRUNEFUSE_HD float exponential(float t) {
#if defined(__CUDA_ARCH__)
  return exp2_of<float, int32_t>(t);
#else
  return t == t ? exp2_of<float, int32_t>(t < kLowestLog2 ? kLowestLog2 : t) : t;
#endif
}
PRUNEFUSE_HD double exponential(double t) { return ::exp(t); }

}  // namespace prunefuse
