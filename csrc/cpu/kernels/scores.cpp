// The scorer's row loop. A row is taken in blocks that stay in the L1 cache: each block is read from memory once, and
// walked twice in L1 (its maximum and runner-up, then one exp per value), and its state merged into the row's.
#include "scores.h"

#include "simd.h"

namespace prunefuse::cpu::PRUNEFUSE_ISA {
namespace {

// 512 float32 are 2 KiB: deep in L1, and long enough to hide the horizontal step at each block's end.
constexpr int64_t kBlock = 512;

// A block of float32 logits -> its state, without the arg-max (found later, and only if it is asked for).
RowState<float> block_state(const float* x, int64_t count, float inverse_temperature) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  RowState<float> state;
  floats first = broadcast(-infinity), second = first;
  ints nan_lanes{};
  const int64_t whole = count - count % kLanes;
  for (int64_t j = 0; j < whole; j += kLanes) {
    const floats v = load(x + j);
    const floats low = select(v < first, v, first);
    second = select(low > second, low, second);
    first = select(v > first, v, first);
    nan_lanes |= v != v;
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    state.has_nan = state.has_nan || nan_lanes[lane] != 0;
    const float low = first[lane] < state.max ? first[lane] : state.max;
    state.second = low > state.second ? low : state.second;
    state.second = second[lane] > state.second ? second[lane] : state.second;
    state.max = first[lane] > state.max ? first[lane] : state.max;
  }
  for (int64_t j = whole; j < count; ++j) {
    const float v = x[j];
    state.has_nan = state.has_nan || v != v;
    const float low = v < state.max ? v : state.max;
    state.second = low > state.second ? low : state.second;
    state.max = v > state.max ? v : state.max;
  }

  const floats max = broadcast(state.max);
  const floats floor = broadcast(-100.0f);
  floats ties{}, tail{}, dot{};
  for (int64_t j = 0; j < whole; j += kLanes) {
    const floats v = load(x + j);
    const auto equal = v == max;
    const floats scaled = (v - max) * inverse_temperature;
    const floats z = select(scaled > floor, scaled, floor);
    const floats e = select(equal, floats{}, exp_nonpositive<floats, ints>(z));
    ties += select(equal, broadcast(1.0f), floats{});
    tail += e;
    dot += e * z;
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    state.ties += ties[lane];
    state.tail += tail[lane];
    state.dot += dot[lane];
  }
  for (int64_t j = whole; j < count; ++j) {
    if (x[j] == state.max) {
      state.ties += 1;
    } else {
      const float z = shifted(x[j], state.max, inverse_temperature);
      const float e = exp_of(z);
      state.tail += e;
      state.dot += e * z;
    }
  }
  return state;
}

RowState<double> block_state(const double* x, int64_t count, double inverse_temperature) {
  RowState<double> state;
  for (int64_t j = 0; j < count; ++j) {
    const double value[1] = {x[j]};
    absorb(state, value, j, 1, inverse_temperature);
  }
  return state;
}

void take_logs(float* x, int64_t count) {
  const int64_t whole = count - count % kLanes;
  for (int64_t j = 0; j < whole; j += kLanes) store(x + j, log_nonnegative<floats, ints>(load(x + j)));
  for (int64_t j = whole; j < count; ++j) x[j] = log_of(x[j]);
}

void take_logs(double* x, int64_t count) {
  for (int64_t j = 0; j < count; ++j) x[j] = log_of(x[j]);
}

template <class Stored>
void widen_block(const Stored* from, accumulate_t<Stored>* to, int64_t count, int64_t stride) {
  int64_t j = 0;
  if constexpr (sizeof(accumulate_t<Stored>) == sizeof(float)) {
    if (stride == 1) {
      for (; j + kLanes <= count; j += kLanes) store(to + j, load(from + j));
    }
  }
  for (; j < count; ++j) to[j] = widen(from[j * stride]);
}

// Columns begin.. of one row as logits in the accumulation type: the caller's memory if it is that already, else
// `room`.
template <class Stored>
const accumulate_t<Stored>* logits_of(const Pool& pool, const Stored* row, int64_t begin, int64_t count,
                                      accumulate_t<Stored>* room) {
  const Stored* from = row + begin * pool.class_stride;
  if constexpr (sizeof(Stored) == sizeof(accumulate_t<Stored>)) {
    if (pool.class_stride == 1 && !pool.probabilities) return from;
  }
  widen_block(from, room, count, pool.class_stride);
  if (pool.probabilities) take_logs(room, count);
  return room;
}

}  // namespace

template <class Stored>
void score_rows(const Pool& pool, const RowOutputs<accumulate_t<Stored>>& out, accumulate_t<Stored> inverse_temperature,
                int64_t begin, int64_t end) {
  using Acc = accumulate_t<Stored>;
  alignas(64) Acc room[kBlock];
  for (int64_t row = begin; row < end; ++row) {
    const Stored* data = static_cast<const Stored*>(pool.data) + row * pool.row_stride;
    RowState<Acc> state;
    int64_t leading_block = 0;  // the first block that holds the row's maximum
    for (int64_t column = 0; column < pool.classes; column += kBlock) {
      const int64_t count = pool.classes - column < kBlock ? pool.classes - column : kBlock;
      const RowState<Acc> block = block_state(logits_of(pool, data, column, count, room), count, inverse_temperature);
      if (block.max > state.max) leading_block = column;
      state = column == 0 ? block : merge(state, block, inverse_temperature);
    }
    if (out.argmax != nullptr) {
      const int64_t count = pool.classes - leading_block < kBlock ? pool.classes - leading_block : kBlock;
      const Acc* x = logits_of(pool, data, leading_block, count, room);
      int64_t j = 0;
      while (j + 1 < count && !(x[j] == state.max)) ++j;
      state.argmax = leading_block + j;
    }
    write_row(out, row, state, inverse_temperature);
  }
}

#define PRUNEFUSE_INSTANTIATE(Stored)                                                                          \
  template void score_rows<Stored>(const Pool&, const RowOutputs<accumulate_t<Stored>>&, accumulate_t<Stored>, \
                                   int64_t, int64_t);
PRUNEFUSE_INSTANTIATE(float)
PRUNEFUSE_INSTANTIATE(double)
PRUNEFUSE_INSTANTIATE(half_bits)
PRUNEFUSE_INSTANTIATE(bfloat16_bits)
#undef PRUNEFUSE_INSTANTIATE

}  // namespace prunefuse::cpu::PRUNEFUSE_ISA
