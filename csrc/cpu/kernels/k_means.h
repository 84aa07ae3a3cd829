// The inner loops of k-means++ over outer products, one instance per instruction-set level.
#pragma once

#include "../../math/k_means.h"

namespace prunefuse::cpu {

// Rows r x h, of residuals r and features h, both contiguous.
template <class T>
struct OuterRows {
  const T* residuals;
  int64_t classes;
  const T* features;
  int64_t width;
  const double* residual_squares;  // |r|^2
  const double* feature_squares;   // |h|^2
};

#define PRUNEFUSE_DECLARE(isa)                                                                            \
  namespace isa {                                                                                         \
  /* The squared norm of each of the rows begin..end. */                                                  \
  template <class T>                                                                                      \
  void find_squares(const T* rows, int64_t width, double* squares, int64_t begin, int64_t end);           \
  /* nearest = min(nearest, squared distance to row `center`) for each of the rows begin..end. */         \
  template <class T>                                                                                      \
  void apply_seed(const OuterRows<T>& rows, int64_t center, double* nearest, int64_t begin, int64_t end); \
  }
PRUNEFUSE_DECLARE(baseline)
PRUNEFUSE_DECLARE(avx2)
PRUNEFUSE_DECLARE(avx512)
#undef PRUNEFUSE_DECLARE

}  // namespace prunefuse::cpu
