// exp and log of float32 as branch-free polynomials, written once for scalars, for SIMD vectors and for CUDA threads
// (which have an exp2 of their own).
//
// `F` is float or a vector of float, `I` the 32-bit integer of the same lanes; `select(mask, a, b)` picks lanes.
// exp: t = z log2(e) = n + f with |f| <= 1/2, 2^f by its degree-6 minimax polynomial (relative error 2e-9 before
// rounding). log: mantissa in [sqrt(1/2), sqrt(2)), the degree-9 polynomial of Cephes' logf, about 1 ulp.
#pragma once

#include "portable.h"

namespace prunefuse {

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945309f;
// Arguments of exp2 are raised to this, where its result is exactly zero.
constexpr float kLowestLog2 = -127.0f;

// Lanes of `yes` where the mask is set, of `no` elsewhere; a scalar's mask is a bool.
template <class F, class I>
PRUNEFUSE_HD F select(I mask, F yes, F no) {
#if defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__) && !defined(__AVX__)
  // GCC takes a vector's ?: apart into scalars where the target has no blend instruction.
  if constexpr (sizeof(F) > sizeof(double)) return bits_as<F>((mask & bits_as<I>(yes)) | (~mask & bits_as<I>(no)));
#endif
  return mask ? yes : no;
}

// 2^t for t in [kLowestLog2, 0]; exactly 0 at the lower end, and some subnormal number where 2^t is one. A NaN gives no
// number in particular.
template <class F, class I>
PRUNEFUSE_HD F exp2_of(F t) {
#if defined(__CUDA_ARCH__)
  // The processor's own, with a relative error of 2^-22: without it the scorer would wait for arithmetic, not memory.
  static_assert(sizeof(F) == sizeof(float));
  F result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(t));
  return result;
#else
  constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  const F shifted = t + magic;
  const F f = t - (shifted - magic);
  F p = F{} + 1.534581243e-4f;
  p = p * f + 1.339993090e-3f;
  p = p * f + 9.618489072e-3f;
  p = p * f + 5.550328642e-2f;
  p = p * f + 2.402264625e-1f;
  p = p * f + 6.931471825e-1f;
  p = p * f + 1.0f;
  // n is the low bits of `shifted`; adding it to the exponent field multiplies by 2^n. At n = -127 only p = 1 is left
  // (t is not below kLowestLog2), which becomes the bits of 0.
  return bits_as<F>(bits_as<I>(p) + (bits_as<I>(shifted) << 23));
#endif
}

// log(x) + e ln 2 for a normal, finite x > 0.
template <class F, class I>
PRUNEFUSE_HD F log_normal(F x, F e) {
  // Split so that the mantissa falls in [sqrt(1/2), sqrt(2)): the polynomial's interval.
  const I offset = bits_as<I>(x) - 0x3f3504f3;
  const I exponent = offset >> 23;
  const F m = bits_as<F>((offset & 0x007fffff) + 0x3f3504f3) - 1.0f;
  if constexpr (sizeof(F) == sizeof(float)) {
    e = e + static_cast<F>(exponent);
  } else {
    e = e + __builtin_convertvector(exponent, F);
  }
  F p = F{} + 7.0376836292e-2f;
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  const F square = m * m;
  F y = p * m * square;
  y = y + e * -2.12194440e-4f;
  y = y - square * 0.5f;
  return (m + y) + e * 0.693359375f;
}

// log(x) for x >= 0: 0 gives -inf, +inf gives +inf, a negative x or NaN gives NaN.
template <class F, class I>
PRUNEFUSE_HD F log_nonnegative(F x) {
  const F infinity = F{} + std::numeric_limits<float>::infinity();
  const auto subnormal = x < 0x1p-126f;
  const F normal = select<F>(subnormal, x * 0x1p23f, x);
  // Without the sign: what a negative number gives is replaced below, and no integer may overflow on the way.
  const F magnitude = bits_as<F>(bits_as<I>(normal) & 0x7fffffff);
  F result = log_normal<F, I>(magnitude, select<F>(subnormal, F{} - 23.0f, F{}));
  result = select<F>(x == infinity, infinity, result);
  result = select<F>(x == 0.0f, -infinity, result);
  return select<F>(x >= 0.0f, result, F{} + std::numeric_limits<float>::quiet_NaN());
}

// 1 / x for x >= 1. On a GPU to within an ulp: a division that is rounded as it should be is a branch and a call there.
template <class F>
PRUNEFUSE_HD F reciprocal(F x) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(F) == sizeof(float)) {
    float guess;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(guess) : "f"(x));
    return guess + guess * (1.0f - x * guess);
  }
#endif
  return 1.0f / x;
}

// log(1 + x) for finite x >= 0, with full relative precision: log(u) of the rounded u = 1 + x, and the first-order term
// of what rounding left out.
template <class F, class I>
PRUNEFUSE_HD F log1p_nonnegative(F x) {
  const F u = x + 1.0f;
  return log_normal<F, I>(u, F{}) + (x - (u - 1.0f)) * reciprocal(u);
}

// log(1 + x) for x in [0, 1], with full relative precision: x times its degree-9 minimax polynomial (relative error
// 5e-9 before rounding). There is no division in it, and no exponent to take apart.
template <class F>
PRUNEFUSE_HD F log1p_unit(F x) {
  F p = F{} - 3.2440275e-3f;
  p = p * x + 1.9851476e-2f;
  p = p * x - 5.6959566e-2f;
  p = p * x + 1.0603659e-1f;
  p = p * x - 1.5305595e-1f;
  p = p * x + 1.967594e-1f;
  p = p * x - 2.4954134e-1f;
  p = p * x + 3.3329964e-1f;
  p = p * x - 4.9999902e-1f;
  p = p * x + 1.0f;
  return p * x;
}

// The same for one value in the accumulation type. float64 uses the standard library.
PRUNEFUSE_HD float exp_of(float z) {
  const float t = z * kLog2E;
  return exp2_of<float, int32_t>(t < kLowestLog2 ? kLowestLog2 : t);
}
PRUNEFUSE_HD double exp_of(double z) { return ::exp(z); }
PRUNEFUSE_HD float log_of(float x) { return log_nonnegative<float, int32_t>(x); }
PRUNEFUSE_HD double log_of(double x) { return x >= 0 ? ::log(x) : std::numeric_limits<double>::quiet_NaN(); }
PRUNEFUSE_HD float log1p_of(float x) { return log1p_nonnegative<float, int32_t>(x); }
PRUNEFUSE_HD double log1p_of(double x) { return ::log1p(x); }
PRUNEFUSE_HD float log1p_unit_of(float x) { return log1p_unit(x); }
PRUNEFUSE_HD double log1p_unit_of(double x) { return ::log1p(x); }

}  // namespace prunefuse
