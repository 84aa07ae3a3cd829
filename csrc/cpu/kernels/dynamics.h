// The row loops of training dynamics, one instance per instruction-set level.
#pragma once

#include "../../math/dynamics.h"

namespace prunefuse::cpu {

// dynamics_rows: statistics (6 x pool.rows, RowDynamics in order) of rows begin..end; labels must be classes.
// divergence_rows: for rows begin..end, sum_c |q_c (log(q_c + epsilon) - kept_c)| with q the softmax, and kept_c
// replaced by log(q_c + epsilon), in kept (samples x classes) at the row's sample. Where the sample's logarithms are
// kNeverSeen: -1. Rows of sample -1 are left out: -1. `room` has pool.classes numbers of the task's own. `Stored` and
// `Kept` are float, double, half_bits or bfloat16_bits.
#define PRUNEFUSE_DECLARE(isa)                                                                                        \
  namespace isa {                                                                                                     \
  template <class Stored>                                                                                             \
  void dynamics_rows(const Pool& pool, const int64_t* labels, accumulate_t<Stored>* out, int64_t begin, int64_t end); \
  template <class Stored, class Kept>                                                                                 \
  void divergence_rows(const Pool& pool, const int64_t* samples, Kept* kept, double epsilon, double* divergences,     \
                       wider_t<Stored, Kept>* room, int64_t begin, int64_t end);                                      \
  }
PRUNEFUSE_DECLARE(baseline)
PRUNEFUSE_DECLARE(avx2)
PRUNEFUSE_DECLARE(avx512)
#undef PRUNEFUSE_DECLARE

}  // namespace prunefuse::cpu
