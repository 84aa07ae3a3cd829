// Lanes of a warp that share a row: merging their states, and reading its values.
#pragma once

#include "../math/row_state.h"
#include "common.h"

namespace prunefuse::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

template <class T>
__device__ T warp_sum(T value) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value += __shfl_xor_sync(kAllLanes, value, mask);
  return value;
}

template <class Acc>
__device__ RowState<Acc> shuffle_xor(const RowState<Acc>& state, int mask) {
  RowState<Acc> other;
  other.max = __shfl_xor_sync(0xffffffffu, state.max, mask);
  other.second = __shfl_xor_sync(0xffffffffu, state.second, mask);
  other.ties = __shfl_xor_sync(0xffffffffu, state.ties, mask);
  other.tail = __shfl_xor_sync(0xffffffffu, state.tail, mask);
  other.dot = __shfl_xor_sync(0xffffffffu, state.dot, mask);
  other.argmax = __shfl_xor_sync(0xffffffffu, static_cast<long long>(state.argmax), mask);
  other.has_nan = __shfl_xor_sync(0xffffffffu, static_cast<int>(state.has_nan), mask) != 0;
  return other;
}

template <class Acc>
__device__ RowState<Acc> merge_lanes(RowState<Acc> state, int lanes, Acc inverse_temperature) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) {
    state = merge(state, shuffle_xor(state, mask), inverse_temperature);
  }
  return state;
}

template <class Stored>
__device__ accumulate_t<Stored> logit(Stored stored, bool probabilities) {
  const accumulate_t<Stored> value = widen(stored);
  return probabilities ? log_of(value) : value;
}

// Calls take(values, column) with lane `lane`'s share of a row: arrays of neighboring values and where they begin. 16
// bytes at a time, the next of them under way, or one by one.
template <class Stored, bool Vectorized, class Take>
__device__ void for_lane(const Stored* row, const Pool& pool, int64_t lane, int64_t lanes, const Take& take) {
  int64_t column = 0;
  if constexpr (Vectorized) {
    constexpr int width = 16 / sizeof(Stored);
    const int64_t chunks = pool.classes / width;
    const uint4* from = reinterpret_cast<const uint4*>(row);
    uint4 next = {};
    if (lane < chunks) next = __ldg(from + lane);
    for (int64_t chunk = lane; chunk < chunks; chunk += lanes) {
      Stored stored[width];
      memcpy(stored, &next, sizeof(next));
      if (chunk + lanes < chunks) next = __ldg(from + chunk + lanes);
      take(stored, chunk * width);
    }
    column = chunks * width;
  }
  for (column += lane; column < pool.classes; column += lanes) {
    const Stored one[1] = {row[column * pool.class_stride]};
    take(one, column);
  }
}

// The state of lane `lane`'s share of a row.
template <class Stored, bool Vectorized>
__device__ RowState<accumulate_t<Stored>> lane_state(const Stored* row, const Pool& pool, int64_t lane, int64_t lanes,
                                                     accumulate_t<Stored> inverse_temperature) {
  using Acc = accumulate_t<Stored>;
  RowState<Acc> state;
  for_lane<Stored, Vectorized>(row, pool, lane, lanes, [&]<int Count>(const Stored(&stored)[Count], int64_t column) {
    Acc values[Count];
#pragma unroll
    for (int i = 0; i < Count; ++i) values[i] = logit(stored[i], pool.probabilities);
    absorb(state, values, column, 1, inverse_temperature);
  });
  return state;
}

// Lanes to a row: the power of two up to 32 at which each lane has at least four loads.
inline int lanes_for(int64_t loads) {
  int lanes = 1;
  while (lanes < kWarp && lanes * 8 <= loads) lanes *= 2;
  return lanes;
}

}  // namespace prunefuse::cuda
