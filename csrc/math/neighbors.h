// How far a squared distance that comes from a matrix product may be from the true one: what lets a search by products
// give exact neighbors. Shared by CPU and CUDA.
#pragma once

#include "portable.h"

namespace prunefuse {

// Of |q|^2 + |r|^2 - 2 q.r against |q - r|^2, for rows whose prepared norms are `query` and at most `largest`.
//
// With u the unit roundoff of T and v that of the product's inputs (larger than u where torch is allowed to round them
// to TF32 or bfloat16): the product of width d is wrong by at most (d u + 2 v + v^2) |q| |r| in any order of summation,
// norms and sums by a few u (|q| + |r|)^2, and preparing a row moved it by at most u (|row| + moved). The last term
// stands for products below the smallest normal number.
template <class T>
PRUNEFUSE_HD double product_error(double query, double largest, int64_t width, double input_roundoff, double moved) {
  constexpr double u = std::numeric_limits<T>::epsilon() / 2;
  const double v = input_roundoff > u ? input_roundoff : 0;
  const double size = query + largest;
  const double d = static_cast<double>(width);
  return size * size * (0.5 * d * u + 1.01 * v + 16 * u) + 4 * size * moved * u + 4 * u * u * moved * moved +
         4 * (d + 4) * static_cast<double>(std::numeric_limits<T>::min());
}

}  // namespace prunefuse
