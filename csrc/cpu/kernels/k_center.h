// One step of greedy k-center, one instance per instruction-set level.
#pragma once

#include "../../math/portable.h"

namespace prunefuse::cpu {

// The row farthest from every center so far; index -1 if no row is left.
template <class T>
struct Farthest {
  T distance = -1;
  int64_t index = -1;
};

#define PRUNEFUSE_DECLARE(isa)                                                                             \
  namespace isa {                                                                                          \
  /* out[i] = the squared norm of row i, for rows begin..end of `features` (rows x width, contiguous). */  \
  template <class T>                                                                                       \
  void squared_norms(const T* features, int64_t width, T* out, int64_t begin, int64_t end);                \
  /* nearest[i] = min(nearest[i], |x_i - x_center|^2) for rows begin..end, those already out (nearest      \
     below 0) excepted; returns the farthest of them, the lower index on ties. */                          \
  template <class T>                                                                                       \
  Farthest<T> update_nearest(const T* features, int64_t width, const T* norms, int64_t center, T* nearest, \
                             int64_t begin, int64_t end);                                                  \
  }
PRUNEFUSE_DECLARE(baseline)
PRUNEFUSE_DECLARE(avx2)
PRUNEFUSE_DECLARE(avx512)
#undef PRUNEFUSE_DECLARE

}  // namespace prunefuse::cpu
