// The inner loops of greedy k-center, one instance per instruction-set level.
#pragma once

#include "../../math/portable.h"

namespace prunefuse::cpu {

// The pool and the centers chosen so far. Squared distances are sums of squared differences: the cached-norm form
// |x|^2 + |c|^2 - 2 x.c saves a subtraction per value, but loses the distance where features lie far from the origin.
template <class T>
struct Centers {
  const T* features;  // rows x width, contiguous
  int64_t width;
  const int64_t* centers;  // row numbers, in the order chosen
  int64_t count;
  const T* weights = nullptr;  // what a row's squared distances are multiplied by; null: 1
  T least = 0;                 // a row at a smaller squared distance, without its weight, is not to be picked
};

#define PRUNEFUSE_DECLARE(isa)                                                                                         \
  namespace isa {                                                                                                      \
  /* Whether each of the rows begin..end is finite, and so is its squared norm. */                                     \
  template <class T>                                                                                                   \
  void find_finite(const T* features, int64_t width, bool* finite, int64_t begin, int64_t end);                        \
  /* For each of the rows listed: nearest = min(nearest, distance to every center from number applied on),             \
     -1 where one is too near; applied = all centers. */                                                               \
  template <class T>                                                                                                   \
  void apply_centers(const Centers<T>& centers, const int64_t* rows, int64_t row_count, T* nearest, int32_t* applied); \
  /* The position of the largest of count >= 1 values, the lowest of equals. */                                        \
  template <class T>                                                                                                   \
  int64_t largest(const T* values, int64_t count);                                                                     \
  }
PRUNEFUSE_DECLARE(baseline)
PRUNEFUSE_DECLARE(avx2)
PRUNEFUSE_DECLARE(avx512)
#undef PRUNEFUSE_DECLARE

}  // namespace prunefuse::cpu
