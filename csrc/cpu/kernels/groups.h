// Scores reduced over groups of rows, one instance per instruction-set level.
#pragma once

#include "../../math/groups.h"

namespace prunefuse::cpu {

// score_groups: groups begin..end, whole. score_part: rows begin..end of one group that is not cut at offsets, into
// `states`, one for each utility. `Stored` is float, double, half_bits or bfloat16_bits.
#define PRUNEFUSE_DECLARE(isa)                                                                         \
  namespace isa {                                                                                      \
  template <class Stored>                                                                              \
  void score_groups(const Groups& groups, const GroupOutputs<accumulate_t<Stored>>& out,               \
                    accumulate_t<Stored> inverse_temperature, int64_t begin, int64_t end);             \
  template <class Stored>                                                                              \
  void score_part(const Groups& groups, const GroupOutputs<accumulate_t<Stored>>& out,                 \
                  accumulate_t<Stored> inverse_temperature, int64_t group, int64_t begin, int64_t end, \
                  GroupState* states);                                                                 \
  }
PRUNEFUSE_DECLARE(baseline)
PRUNEFUSE_DECLARE(avx2)
PRUNEFUSE_DECLARE(avx512)
#undef PRUNEFUSE_DECLARE

}  // namespace prunefuse::cpu
