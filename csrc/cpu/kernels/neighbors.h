// The inner loops of the search for nearest neighbors, one instance per instruction-set level.
#pragma once

#include "../../math/portable.h"

namespace prunefuse::cpu {

// Products are filtered in runs of so many.
constexpr int64_t kNeighborRun = 128;

#define PRUNEFUSE_DECLARE(isa)                                                                                        \
  namespace isa {                                                                                                     \
  /* The sum of squares of a row of which every value is multiplied by `factor` first. */                             \
  template <class Stored>                                                                                             \
  double squared_norm(const Stored* row, double factor, int64_t width);                                               \
  /* squared[i] = |a x - factors[r] rows[r]|^2, from differences, for the `count` rows r that `which` names; without  \
     factors they are 1. `scaled` has room for `width` values. */                                                     \
  template <class Stored>                                                                                             \
  void squared_distances(const Stored* x, double a, const Stored* rows, const double* factors, int64_t width,         \
                         const int64_t* which, int64_t count, double* scaled, double* squared);                       \
  /* prepared = factor * row - origin */                                                                              \
  template <class Stored>                                                                                             \
  void prepare_row(const Stored* row, double factor, const accumulate_t<Stored>* origin, int64_t width,               \
                   accumulate_t<Stored>* prepared);                                                                   \
  /* keys[i] = norms[i] - 2 products[i] for the i < count <= kNeighborRun where that is at most `bar`, packed, and    \
     these first + i in `rows` (room for `count` + 1 in both); returns how many they are. */                          \
  template <class T>                                                                                                  \
  int64_t keys_below(const T* products, const T* norms, int64_t count, int64_t first, T bar, T* keys, int64_t* rows); \
  /* The smallest of norms[i] - 2 products[i], i < count, of which there is one at least. */                          \
  template <class T>                                                                                                  \
  T smallest_key(const T* products, const T* norms, int64_t count);                                                   \
  /* A number that at least k of count >= k >= 1 finite values do not exceed, and at most `enough` of them, but for   \
     such as are too close to be told apart. */                                                                       \
  template <class T>                                                                                                  \
  T at_least_smallest(const T* values, int64_t count, int64_t k, int64_t enough);                                     \
  /* Keys that are at most `bar`, and the rows beside them, packed to where they begin; returns how many they are. */ \
  template <class T>                                                                                                  \
  int64_t keep_keys(T* keys, int64_t* rows, int64_t count, T bar);                                                    \
  }
PRUNEFUSE_DECLARE(baseline)
#if defined(__x86_64__)
PRUNEFUSE_DECLARE(avx2)
PRUNEFUSE_DECLARE(avx512)
#endif
#undef PRUNEFUSE_DECLARE

}  // namespace prunefuse::cpu
