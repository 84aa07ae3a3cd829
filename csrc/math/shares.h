// A lane's share of a row that is held in registers whole: pieces of `Width` values as they are stored, and what is
// asked of all of them before any of them is added up. Exponents are in powers of two for float32, whose exponential is
// the processor's exp2, and in nats for float64.
#pragma once

#include <type_traits>

#include "exp_log.h"

namespace prunefuse {

template <class Stored, int Width>
struct Piece {
  static constexpr int kBytes = Width * static_cast<int>(sizeof(Stored));
  uint32_t words[kBytes < 4 ? 1 : kBytes / 4];
};

template <class Stored, int Width>
PRUNEFUSE_HD accumulate_t<Stored> value_of(const Piece<Stored, Width>& piece, int i) {
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

// Of two, or that which is a number.
PRUNEFUSE_HD float upper_of(float a, float b) { return ::fmaxf(a, b); }
PRUNEFUSE_HD double upper_of(double a, double b) { return ::fmax(a, b); }

// Of two pairs of 16-bit values.
template <class Stored>
PRUNEFUSE_HD uint32_t upper_of_pairs(uint32_t a, uint32_t b) {
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

// The largest number of a piece; of 16-bit values those of its first and second ones, which are compared two at a time
// before they are widened.
template <class Stored, int Width>
struct PieceTop {
  static constexpr bool kPairs = sizeof(Stored) == 2 && Width > 1;
  using Pair = Piece<Stored, 2>;
  std::conditional_t<kPairs, Pair, accumulate_t<Stored>> value;

  PRUNEFUSE_HD accumulate_t<Stored> largest() const {
    if constexpr (kPairs) {
      return upper_of(value_of(value, 0), value_of(value, 1));
    } else {
      return value;
    }
  }
  PRUNEFUSE_HD bool is(accumulate_t<Stored> top) const {
    if constexpr (kPairs) {
      return value_of(value, 0) == top || value_of(value, 1) == top;
    } else {
      return value == top;
    }
  }
};

// The largest number of each piece of a share; returns that of all.
template <class Stored, int Width, int Pieces>
PRUNEFUSE_HD accumulate_t<Stored> find_tops(const Piece<Stored, Width> (&share)[Pieces],
                                            PieceTop<Stored, Width> (&tops)[Pieces]) {
  if constexpr (PieceTop<Stored, Width>::kPairs) {
    uint32_t upper = 0;
#pragma unroll
    for (int l = 0; l < Pieces; ++l) {
      uint32_t of_piece = share[l].words[0];
#pragma unroll
      for (int i = 1; i < Width / 2; ++i) of_piece = upper_of_pairs<Stored>(of_piece, share[l].words[i]);
      tops[l].value.words[0] = of_piece;
      upper = l == 0 ? of_piece : upper_of_pairs<Stored>(upper, of_piece);
    }
    const Piece<Stored, 2> uppers = {{upper}};
    return upper_of(value_of(uppers, 0), value_of(uppers, 1));
  } else {
    accumulate_t<Stored> top = value_of(share[0], 0);
#pragma unroll
    for (int l = 0; l < Pieces; ++l) {
      tops[l].value = value_of(share[l], 0);
#pragma unroll
      for (int i = 1; i < Width; ++i) tops[l].value = upper_of(tops[l].value, value_of(share[l], i));
      top = upper_of(top, tops[l].value);
    }
    return top;
  }
}

// What a difference of logits is multiplied by; never such that 0 or an infinity times it is no number.
PRUNEFUSE_HD float share_scale(float inverse_temperature) {
  constexpr float least = std::numeric_limits<float>::denorm_min(), most = std::numeric_limits<float>::max();
  const float scale = upper_of(inverse_temperature * kLog2E, least);
  return scale < most ? scale : most;
}
PRUNEFUSE_HD double share_scale(double inverse_temperature) {
  constexpr double least = std::numeric_limits<double>::denorm_min(), most = std::numeric_limits<double>::max();
  const double scale = upper_of(inverse_temperature, least);
  return scale < most ? scale : most;
}
template <class Acc>
constexpr Acc kNats = sizeof(Acc) == sizeof(float) ? Acc(0.693147180559945309) : Acc(1);  // of one unit

// Exponentials of such a difference; that of a NaN is one.
PRUNEFUSE_HD float exp_of_scaled(float t) {
#if defined(__CUDA_ARCH__)
  return exp2_of<float, int32_t>(t);
#else
  return t == t ? exp2_of<float, int32_t>(t < kLowestLog2 ? kLowestLog2 : t) : t;
#endif
}
PRUNEFUSE_HD double exp_of_scaled(double t) { return ::exp(t); }

// The logarithm in the same units; the processor's own has an absolute error of 2^-22 near 1, a relative one elsewhere.
PRUNEFUSE_HD float scaled_log_of(float x) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return log_of(x) * kLog2E;
#endif
}
PRUNEFUSE_HD double scaled_log_of(double x) { return ::log(x); }

// 1 / x of a sum of exponentials; the processor's own is off by 2^-23 at most.
PRUNEFUSE_HD float reciprocal_of(float x) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return 1 / x;
#endif
}
PRUNEFUSE_HD double reciprocal_of(double x) { return 1 / x; }

// How exponents of a row are had from its values: quickly, x * scale - offset in one rounding, or carefully, from
// differences and bounded where the exponential is zero. Where one is infinite or the offset is not `usable`, the quick
// way has no meaning; of an infinite one, 0 times it is no number.
template <class Acc>
struct Exponents {
  Acc top, scale, offset;
  bool usable;
  Acc error;  // of the offset: scale * top - offset. Every quick exponent is too large by it.

  PRUNEFUSE_HD Exponents(Acc largest, Acc scale_) : top(largest), scale(scale_), offset(largest * scale_) {
    constexpr Acc far = sizeof(Acc) == sizeof(float) ? Acc(1e30) : Acc(1e300);
    usable = offset < far && offset > -far;
    error = fma(top, scale, -offset);
  }

  PRUNEFUSE_HD Acc quick(Acc x) const { return fma(x, scale, -offset); }
  PRUNEFUSE_HD Acc careful(Acc x) const {
    constexpr Acc floor = sizeof(Acc) == sizeof(float) ? Acc(kLowestLog2) : Acc(-800);
    const Acc t = (x - top) * scale;
    return t < floor ? floor : t;
  }
};

}  // namespace prunefuse
