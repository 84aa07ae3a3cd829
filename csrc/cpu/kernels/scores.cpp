// The scorer's row loop. Two shapes of work, one row math:
//
// - Long rows go one at a time, in blocks that stay in the L1 cache: a block is read from memory once, walked twice in
// L1 (its
//   maximum and runner-up, then one exp per value), and its state merged into the row's.
// - Short rows go kLanes at a time with a row in every lane, so that nothing is added up across lanes and what comes
// once per row
//   (logarithm, divisions) comes once per kLanes rows.
//
// Instructions per vector of values, both shapes: 3 in the first walk and 19 in the second.
#include "scores.h"

#include "rows.h"

namespace prunefuse::cpu::PRUNEFUSE_ISA {
namespace {

// 512 float32 are 2 KiB: deep in L1, and long enough to hide the horizontal step at each block's end.
constexpr int64_t kBlock = 512;

// Values one by one: the way of blocks that hold an infinity or nothing but masked classes, where x - max is no number.
template <class Acc>
RowState<Acc> scalar_state(const Acc* x, int64_t count, int64_t stride, Acc inverse_temperature) {
  RowState<Acc> state;
  for (int64_t j = 0; j < count; ++j) {
    const Acc value[1] = {x[j * stride]};
    absorb(state, value, j, 1, inverse_temperature);
  }
  return state;
}

// A block of float32 logits -> its state, without the arg-max (found later, and only if it is asked for).
RowState<float> block_state(const float* x, int64_t count, float inverse_temperature) {
  RowState<float> state;
  const floats lowest = broadcast(-std::numeric_limits<float>::infinity());
  const int64_t whole = count - count % kLanes;
  // What is left of the last vector is filled up with masked classes.
  floats last = lowest;
  for (int64_t j = whole; j < count; ++j) last[j - whole] = x[j];

  floats first = lowest, second = lowest;
  for (int64_t j = 0; j < whole; j += kLanes) {
    const floats v = load(x + j);
    second = larger(smaller(v, first), second);
    first = larger(v, first);
  }
  second = larger(smaller(last, first), second);
  first = larger(last, first);
  for (int lane = 0; lane < kLanes; ++lane) {
    const float lower = first[lane] < state.max ? first[lane] : state.max;
    state.second = lower > state.second ? lower : state.second;
    state.second = second[lane] > state.second ? second[lane] : state.second;
    state.max = first[lane] > state.max ? first[lane] : state.max;
  }
  if (!is_finite(state.max)) return scalar_state(x, count, 1, inverse_temperature);

  const floats max = broadcast(state.max), scale = broadcast(inverse_temperature * kLog2E);
  floats tail{}, dot{};
  ints ties{};
  for (int64_t j = 0; j < whole; j += kLanes) {
    const Exponential value = exponential(load(x + j), max, scale);
    ties -= value.equal;
    tail += value.lower;
    dot += value.lower * value.t;
  }
  const Exponential value = exponential(last, max, scale);
  ties -= value.equal;
  state.tail = sum(tail + value.lower);
  state.dot = sum(dot + value.lower * value.t) * kLn2;
  for (int lane = 0; lane < kLanes; ++lane) state.ties += static_cast<float>(ties[lane]);
  state.has_nan = state.dot != state.dot;
  return state;
}

RowState<double> block_state(const double* x, int64_t count, double inverse_temperature) {
  return scalar_state(x, count, 1, inverse_temperature);
}

template <class Stored>
void score_long_rows(const Pool& pool, const RowOutputs<accumulate_t<Stored>>& out,
                     accumulate_t<Stored> inverse_temperature, int64_t begin, int64_t end) {
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

void score_group(const float* values, int64_t classes, const RowOutputs<float>& out, float inverse_temperature,
                 int64_t begin, int64_t rows) {
  const floats lowest = broadcast(-std::numeric_limits<float>::infinity());
  floats max = lowest, second = lowest;
  for (int64_t c = 0; c < classes; ++c) {
    const floats v = load(values + c * kLanes);
    second = larger(smaller(v, max), second);
    max = larger(v, max);
  }
  // Rows without a finite maximum go one by one, at the end; the others' results do not depend on who stands beside
  // them.
  const ints special = (max - max) != floats{};
  const floats scale = broadcast(inverse_temperature * kLog2E);
  floats tail{}, dot{};
  ints ties{}, argmax = ints{} - 1;
  for (int64_t c = 0; c < classes; ++c) {
    const Exponential value = exponential(load(values + c * kLanes), max, scale);
    argmax = select(value.equal & (ties == 0), ints{} + static_cast<int32_t>(c), argmax);
    ties -= value.equal;
    tail += value.lower;
    dot += value.lower * value.t;
  }
  const floats rest = __builtin_convertvector(ties - 1, floats) + tail;
  // The runner-up's exp, where it is the maximum's equal, is what `lower` leaves out.
  const Exponential runner_up = exponential(second, max, scale);
  const RowSummary<floats> summary = summary_of<floats>(max, rest, log1p_nonnegative<floats, ints>(rest),
                                                        select(runner_up.equal, broadcast(1.0f), runner_up.lower),
                                                        dot * kLn2, second - max, broadcast(inverse_temperature));
  const ints nan = dot != dot;
  const auto valid = [&](floats result) {
    return select(nan, broadcast(std::numeric_limits<float>::quiet_NaN()), result);
  };
  for (int k = 0; k < out.count; ++k) {
    write_lanes(out.utilities + k * out.rows + begin, valid(utility(summary, out.which[k])), rows);
  }
  if (out.argmax != nullptr) {
    argmax = select(nan, ints{} - 1, argmax);
    for (int64_t lane = 0; lane < rows; ++lane) out.argmax[begin + lane] = argmax[lane];
    write_lanes(out.logsumexp + begin, valid(summary.logsumexp), rows);
    write_lanes(out.p1 + begin, valid(summary.p1), rows);
    write_lanes(out.p2 + begin, valid(summary.p2), rows);
  }
  for (int64_t lane = 0; any(special) && lane < rows; ++lane) {
    if (!special[lane]) continue;
    write_row(out, begin + lane, scalar_state(values + lane, classes, kLanes, inverse_temperature),
              inverse_temperature);
  }
}

template <class Stored>
void score_short_rows(const Pool& pool, const RowOutputs<float>& out, float inverse_temperature, int64_t begin,
                      int64_t end) {
  alignas(64) float values[kShortRow * kLanes];
  for (int64_t row = begin; row < end; row += kLanes) {
    const int64_t rows = end - row < kLanes ? end - row : kLanes;
    gather_group<Stored>(pool, row, rows, values);
    score_group(values, pool.classes, out, inverse_temperature, row, rows);
  }
}

}  // namespace

template <class Stored>
void score_rows(const Pool& pool, const RowOutputs<accumulate_t<Stored>>& out, accumulate_t<Stored> inverse_temperature,
                int64_t begin, int64_t end) {
  if constexpr (sizeof(accumulate_t<Stored>) == sizeof(float)) {
    if (pool.classes <= kShortRow && out.state == nullptr)
      return score_short_rows<Stored>(pool, out, inverse_temperature, begin, end);
  }
  score_long_rows<Stored>(pool, out, inverse_temperature, begin, end);
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
