// The inner loop of picking the best: which values reach a threshold; one instance per instruction-set level.
#pragma once

#include "../../math/portable.h"

namespace prunefuse::cpu {

// A filter is asked about at most so many values at a time: their positions stay in the L1 cache.
constexpr int64_t kFilterRun = 2048;
// The positions that a filter may write: whole vectors of them, of which some mean nothing.
constexpr int64_t kFilterRoom = kFilterRun + 16;

#define PRUNEFUSE_DECLARE(isa)                                                                                 \
  namespace isa {                                                                                              \
  /* Writes the positions of the values above the threshold, or equal to it if `equals`, in order to           \
     `positions` (kFilterRoom) and returns how many they are; adds the NaN to `nan`. `count` <= kFilterRun. */ \
  template <class T>                                                                                           \
  int64_t filter(const T* values, int64_t count, T threshold, bool equals, int32_t* positions, int64_t* nan);  \
  }
PRUNEFUSE_DECLARE(baseline)
#if defined(__x86_64__)
PRUNEFUSE_DECLARE(avx2)
PRUNEFUSE_DECLARE(avx512)
#endif
#undef PRUNEFUSE_DECLARE

}  // namespace prunefuse::cpu
