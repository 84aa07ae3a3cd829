// The scorer's row loop, one instance per instruction-set level.
#pragma once

#include "../../math/row_state.h"

namespace prunefuse::cpu {

// Scores rows begin..end of the pool. `Stored` is float, double, half_bits or bfloat16_bits.
#define PRUNEFUSE_DECLARE(isa)                                                           \
  namespace isa {                                                                        \
  template <class Stored>                                                                \
  void score_rows(const Pool& pool, const RowOutputs<accumulate_t<Stored>>& out,         \
                  accumulate_t<Stored> inverse_temperature, int64_t begin, int64_t end); \
  }
PRUNEFUSE_DECLARE(baseline)
PRUNEFUSE_DECLARE(avx2)
PRUNEFUSE_DECLARE(avx512)
#undef PRUNEFUSE_DECLARE

}  // namespace prunefuse::cpu
