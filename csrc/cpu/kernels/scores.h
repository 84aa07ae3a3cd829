// The scorer's row loop, one instance per instruction-set level.
#pragma once

#include "../../math/row_state.h"

namespace prunefuse::cpu {

// The most classes of score_planes: 32 rows of each are 128 KiB.
constexpr int64_t kPlanes = 1024;

// Scores rows begin..end of the pool. `Stored` is float, double, half_bits or bfloat16_bits. score_planes: the same for
// rows that are neighbors in memory (a row stride of 1), and no double.
#define PRUNEFUSE_DECLARE(isa)                                                                                \
  namespace isa {                                                                                             \
  template <class Stored>                                                                                     \
  void score_rows(const Pool& pool, const RowOutputs<accumulate_t<Stored>>& out,                              \
                  accumulate_t<Stored> inverse_temperature, int64_t begin, int64_t end);                      \
  template <class Stored>                                                                                     \
  void score_planes(const Pool& pool, const RowOutputs<float>& out, float inverse_temperature, int64_t begin, \
                    int64_t end);                                                                             \
  }
PRUNEFUSE_DECLARE(baseline)
PRUNEFUSE_DECLARE(avx2)
PRUNEFUSE_DECLARE(avx512)
#undef PRUNEFUSE_DECLARE

}  // namespace prunefuse::cpu
