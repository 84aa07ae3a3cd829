// exp and log of float32 as branch-free polynomials, written once for scalars, for SIMD vectors and for CUDA threads.
//
// `F` is float or a vector of float; `I` the 32-bit integer of the same lanes; `select(mask, a, b)` picks lanes.
// exp: Cody-Waite reduction x = n ln2 + r, |r| <= ln2/2, degree-6 Taylor-minimax polynomial: measured 1 ulp on [-87.3,
// 0]. log: mantissa in [sqrt(1/2), sqrt(2)), the degree-9 polynomial of Cephes' logf: measured 1 ulp.
#pragma once

#include "portable.h"

namespace prunefuse {

// Below this exp(x) leaves float32's normal range; it is taken as zero.
constexpr float kExpUnderflow = -87.33654f;

// Lanes of `yes` where the mask is set, of `no` elsewhere; a scalar's mask is a bool.
template <class F, class I>
PRUNEFUSE_HD F select(I mask, F yes, F no) {
#if defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__) && !defined(__AVX__)
  // GCC takes a vector's ?: apart into scalars where the target has no blend instruction.
  if constexpr (sizeof(F) > sizeof(double)) return bits_as<F>((mask & bits_as<I>(yes)) | (~mask & bits_as<I>(no)));
#endif
  return mask ? yes : no;
}

// exp(x) for x <= 0; x below kExpUnderflow (also -inf) gives exactly 0. NaN gives an unspecified finite value.
template <class F, class I>
PRUNEFUSE_HD F exp_nonpositive(F x) {
  constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  const auto underflow = x < kExpUnderflow;
  const F clamped = select<F>(x > kExpUnderflow, x, F{} + kExpUnderflow);
  const F shifted = clamped * 1.44269504088896341f + magic;
  const F n = shifted - magic;
  const F r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  F p = F{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // n is the low bits of `shifted`; adding n to the exponent field multiplies by 2^n (n >= -126, so p stays normal).
  const I exponent = bits_as<I>(shifted) << 23;
  const F scaled = bits_as<F>(bits_as<I>(p) + exponent);
  return select<F>(underflow, F{}, scaled);
}

// log(x) for x >= 0: 0 gives -inf, +inf gives +inf, a negative x or NaN gives NaN.
template <class F, class I>
PRUNEFUSE_HD F log_nonnegative(F x) {
  const F infinity = F{} + std::numeric_limits<float>::infinity();
  const auto subnormal = x < 1.17549435e-38f;
  const F normal = select<F>(subnormal, x * 8388608.0f, x);
  I bits = bits_as<I>(normal);
  // Split so that the mantissa falls in [sqrt(1/2), sqrt(2)): the polynomial's interval.
  const I offset = bits - 0x3f3504f3;
  const I exponent = offset >> 23;
  bits = (offset & 0x007fffff) + 0x3f3504f3;
  const F m = bits_as<F>(bits) - 1.0f;
  F e;
  if constexpr (sizeof(F) == sizeof(float)) {
    e = static_cast<F>(exponent);
  } else {
    e = __builtin_convertvector(exponent, F);
  }
  e = select<F>(subnormal, e - 23.0f, e);
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
  F result = (m + y) + e * 0.693359375f;
  result = select<F>(x == infinity, infinity, result);
  result = select<F>(x == 0.0f, -infinity, result);
  return select<F>(x >= 0.0f, result, F{} + std::numeric_limits<float>::quiet_NaN());
}

// The scalar faces of the two, by accumulation type; float64 uses the standard library.
PRUNEFUSE_HD float exp_of(float x) { return exp_nonpositive<float, int32_t>(x); }
PRUNEFUSE_HD double exp_of(double x) { return ::exp(x); }
PRUNEFUSE_HD float log_of(float x) { return log_nonnegative<float, int32_t>(x); }
PRUNEFUSE_HD double log_of(double x) { return x >= 0 ? ::log(x) : std::numeric_limits<double>::quiet_NaN(); }

// Once a row, so the standard library's.
PRUNEFUSE_HD float log1p_of(float x) { return ::log1pf(x); }
PRUNEFUSE_HD double log1p_of(double x) { return ::log1p(x); }

}  // namespace prunefuse
