// The ensemble scorer's row loops, one instance per instruction-set level.
#pragma once

#include "../../math/ensembles.h"

namespace prunefuse::cpu {

// Numbers of the accumulation type that a task needs beside its row: exponentials, sums and votes of one row.
constexpr int64_t ensemble_room(int64_t classes) { return 3 * classes; }

// ensemble_rows: utilities of rows begin..end from all their passes.
// ensemble_add_rows: one more pass added to the state of rows begin..end.
// `Stored` is float, double, half_bits or bfloat16_bits; `room` has ensemble_room(classes) numbers of the task's own.
#define PRUNEFUSE_DECLARE(isa)                                                                                \
  namespace isa {                                                                                             \
  template <class Stored>                                                                                     \
  void ensemble_rows(const Passes& passes, const EnsembleOutputs<accumulate_t<Stored>>& out,                  \
                     accumulate_t<Stored> inverse_temperature, accumulate_t<Stored>* room, int64_t begin,     \
                     int64_t end);                                                                            \
  template <class Stored>                                                                                     \
  void ensemble_add_rows(const Pool& pool, const EnsembleState<accumulate_t<Stored>>& state,                  \
                         accumulate_t<Stored> inverse_temperature, accumulate_t<Stored>* room, int64_t begin, \
                         int64_t end);                                                                        \
  }
PRUNEFUSE_DECLARE(baseline)
PRUNEFUSE_DECLARE(avx2)
PRUNEFUSE_DECLARE(avx512)
#undef PRUNEFUSE_DECLARE

}  // namespace prunefuse::cpu
