// Squared distances between outer products. Shared by CPU and CUDA.
#pragma once

#include "portable.h"

namespace prunefuse {

// Of a row r x h and a center s x g, with e = r - s and f = h - g: sums over the residuals and over the features.
template <class T>
struct OuterSums {
  T ee, es;  // e.e, e.s
  T ff, fh;  // f.f, f.h
};

// |r x h - s x g|^2 = |e x h + s x f|^2, which does not cancel where rows are close, and is 0 where they are equal.
template <class T>
PRUNEFUSE_HD double outer_distance(const OuterSums<T>& sums, double hh, double ss) {
  const double squared = static_cast<double>(sums.ee) * hh + ss * static_cast<double>(sums.ff) +
                         2 * static_cast<double>(sums.es) * static_cast<double>(sums.fh);
  return squared > 0 ? squared : 0;
}

// Squared norms from here on, NaN among them, leave a row out: below it no sum of distances overflows.
template <class T>
constexpr double kLargestSquare = sizeof(T) == sizeof(float) ? 0x1p124 : 0x1p490;

}  // namespace prunefuse
