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

}  // namespace prunefuse::cuda
