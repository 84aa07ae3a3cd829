// A lane's share of a row that is held in registers whole: pieces of `Width` values as they are stored, and what is
// asked of all of them before any of them is added up.
#pragma once

#include <type_traits>

#include "pieces.h"

namespace prunefuse {

// The largest number of a piece; of 16-bit values those of its first and second ones, which are compared two at a time
// before they are widened.
template <class Stored, int Width>
struct PieceTop {
  static constexpr bool kPairs = sizeof(Stored) == 2 && Width > 1;
  using Pair = Piece<Stored, 2>;
  std::conditional_t<kPairs, Pair, accumulate_t<Stored>> value;

  PRUNEFUSE_HD accumulate_t<Stored> largest() const {
    if constexpr (kPairs) {
      return larger(value_at(value, 0), value_at(value, 1));
    } else {
      return value;
    }
  }
  PRUNEFUSE_HD bool is(accumulate_t<Stored> top) const {
    if constexpr (kPairs) {
      return value_at(value, 0) == top || value_at(value, 1) == top;
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
    PRUNEFUSE_UNROLL
    for (int l = 0; l < Pieces; ++l) {
      uint32_t of_piece = share[l].words[0];
      PRUNEFUSE_UNROLL
      for (int i = 1; i < Width / 2; ++i) of_piece = larger_pair<Stored>(of_piece, share[l].words[i]);
      tops[l].value.words[0] = of_piece;
      upper = l == 0 ? of_piece : larger_pair<Stored>(upper, of_piece);
    }
    const Piece<Stored, 2> uppers = {{upper}};
    return larger(value_at(uppers, 0), value_at(uppers, 1));
  } else {
    accumulate_t<Stored> top = value_at(share[0], 0);
    PRUNEFUSE_UNROLL
    for (int l = 0; l < Pieces; ++l) {
      tops[l].value = value_at(share[l], 0);
      PRUNEFUSE_UNROLL
      for (int i = 1; i < Width; ++i) tops[l].value = larger(tops[l].value, value_at(share[l], i));
      top = larger(top, tops[l].value);
    }
    return top;
  }
}

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

// a * b + c in one rounding.
PRUNEFUSE_HD float fused(float a, float b, float c) { return ::fmaf(a, b, c); }
PRUNEFUSE_HD double fused(double a, double b, double c) { return ::fma(a, b, c); }

// How exponents of a row are had from its values: quickly, x * scale - offset in one rounding, or carefully, from
// differences and bounded where the exponential is zero. Where one is infinite or the offset is not `usable`, the quick
// way has no meaning; of an infinite one, 0 times it is no number.
template <class Acc>
struct Exponents {
  Acc top, scale, offset;
  bool usable;
  Acc error;  // of the offset: scale * top - offset. Every quick exponent is too large by it.

  PRUNEFUSE_HD Exponents(Acc largest, Acc scale_) : top(largest), scale(scale_), offset(largest * scale_) {
    // Up to here the error is below a half.
    constexpr Acc far = Acc(1) / std::numeric_limits<Acc>::epsilon();
    usable = offset < far && offset > -far;
    error = fused(top, scale, -offset);
  }

  PRUNEFUSE_HD Acc quick(Acc x) const { return fused(x, scale, -offset); }
  PRUNEFUSE_HD Acc careful(Acc x) const {
    constexpr Acc floor = sizeof(Acc) == sizeof(float) ? Acc(kLowestLog2) : Acc(-800);
    const Acc t = (x - top) * scale;
    return t < floor ? floor : t;
  }
};

}  // namespace prunefuse
