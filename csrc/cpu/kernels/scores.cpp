// The scorer's row loop. Two shapes of work, one row math:
//
// - Long rows go one at a time, in blocks that stay in the L1 cache: a block is read from memory once, walked twice in
// L1
//   (its maximum and runner-up, then one exp per value), and its state merged into the row's. The second walk, which
//   leaves the memory idle, asks for what is read next.
// - Short rows go kLanes at a time with a row in every lane, so that nothing is added up across lanes and what comes
//   once per row (logarithm, divisions) comes once per kLanes rows.
//
// Instructions per vector of values, both shapes: 4 in the first walk and 18 in the second (AVX-512).
#include "scores.h"

#include "rows.h"

namespace prunefuse::cpu::PRUNEFUSE_ISA {
namespace {

// 2,048 float32 are 8 KiB: this block and the one that is fetched meanwhile fit into any L1.
constexpr int64_t kBlock = 2048;
// Values, or vectors, added up before their sum goes on as one number: keeps the rounding of long rows down.
constexpr int64_t kSum = 32;

// Values one by one: the way of blocks that hold an infinity or nothing but masked classes, where x - max is no number.
template <class Stored>
RowState<accumulate_t<Stored>> scalar_state(const Stored* x, int64_t count, int64_t stride,
                                            accumulate_t<Stored> inverse_temperature) {
  using Acc = accumulate_t<Stored>;
  RowState<Acc> state;
  for (int64_t begin = 0; begin < count; begin += kSum) {
    RowState<Acc> part;
    for (int64_t j = begin; j < count && j < begin + kSum; ++j) {
      const Acc value[1] = {widen(x[j * stride])};
      absorb(part, value, j, 1, inverse_temperature);
    }
    state = begin == 0 ? part : merge(state, part, inverse_temperature);
  }
  return state;
}

// In every lane the two largest of the values that it has taken.
template <class V>
struct TopTwo {
  V first, second;

  void take(V value) {
    second = larger(smaller(value, first), second);
    first = larger(value, first);
  }

  void take(const TopTwo& other) {
    second = larger(smaller(first, other.first), larger(second, other.second));
    first = larger(first, other.first);
  }
};

TopTwo<floats> none() {
  const floats lowest = broadcast(-std::numeric_limits<float>::infinity());
  return {lowest, lowest};
}

// Those of all lanes, in every lane.
template <int Step = kLanes / 2>
void join_lanes(TopTwo<floats>& top) {
  if constexpr (Step > 0) {
    constexpr all_lanes lanes;
    top.take({swapped<Step>(top.first, lanes), swapped<Step>(top.second, lanes)});
    join_lanes<Step / 2>(top);
  }
}

// Of `count` values, a multiple of 2 * kLanes.
template <class Stored>
TopTwo<floats> top_two(const Stored* x, int64_t count) {
  TopTwo<floats> even = none(), odd = none();
  if constexpr (sizeof(Stored) == sizeof(float)) {
    for (int64_t j = 0; j < count; j += 2 * kLanes) {
      even.take(load(x + j));
      odd.take(load(x + j + kLanes));
    }
  } else if (count > 0) {
    // 16-bit numbers are compared as they are: twice as many at a time, and nothing to widen.
    const auto at = [&](int64_t j) {
      keys bits;
      memcpy(&bits, x + j, sizeof(bits));
      return ordered(bits);
    };
    TopTwo<keys> top = {at(0), keys{} - 0x7fff - 1};
    for (int64_t j = 2 * kLanes; j < count; j += 2 * kLanes) top.take(at(j));
    Stored first[2 * kLanes], second[2 * kLanes];
    const keys bits[2] = {ordered(top.first), ordered(top.second)};
    memcpy(first, &bits[0], sizeof(first));
    memcpy(second, &bits[1], sizeof(second));
    // A NaN that leads hides its lane's maximum: as an infinity it sends the block the way of single values. The least
    // key is a NaN's too: where no second value came, none is there.
    const auto pair = [](floats leader, floats runner_up) -> TopTwo<floats> {
      return {select(leader == leader, leader, broadcast(std::numeric_limits<float>::infinity())),
              larger(runner_up, none().second)};
    };
    even = pair(load(first), load(second));
    odd = pair(load(first + kLanes), load(second + kLanes));
  }
  even.take(odd);
  return even;
}

// How many of the values are equal to `value`.
template <class Stored>
float count_equal(const Stored* x, int64_t count, float value) {
  ints equal{};
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) equal -= load(x + j) == value;
  equal -= load_first(x + j, count - j, -std::numeric_limits<float>::infinity()) == value;
  return sum(__builtin_convertvector(equal, floats));
}

// A block of logits -> its state, without the arg-max (found later, and only if it is asked for).
template <class Stored>
RowState<float> block_state(const Stored* x, int64_t count, float inverse_temperature) {
  constexpr float lowest = -std::numeric_limits<float>::infinity();
  const int64_t whole = count - count % (2 * kLanes), rest = count - whole;
  // What is left is filled up with masked classes.
  const floats last = load_first(x + whole, rest < kLanes ? rest : kLanes, lowest);
  const floats very_last = load_first(x + whole + kLanes, rest > kLanes ? rest - kLanes : 0, lowest);

  TopTwo<floats> top = top_two(x, whole);
  top.take(last);
  top.take(very_last);
  join_lanes(top);
  RowState<float> state;
  state.max = top.first[0];
  state.second = top.second[0];
  if (!is_finite(state.max)) return scalar_state(x, count, 1, inverse_temperature);

  const floats max = top.first, scale = broadcast(inverse_temperature * kLog2E);
  floats tail{}, dot{};
  const auto take = [&](floats values, floats& part_tail, floats& part_dot) {
    const Exponential value = exponential(values, max, scale);
    part_tail += value.lower;
    part_dot += value.lower * value.t;
  };
  for (int64_t begin = 0; begin < whole; begin += kSum * kLanes) {
    const int64_t end = begin + kSum * kLanes < whole ? begin + kSum * kLanes : whole;
    floats part_tail{}, part_dot{};
    for (int64_t j = begin; j < end; j += 2 * kLanes) {
      floats a, b;
      load_two(x + j, a, b);
      take(a, part_tail, part_dot);
      take(b, part_tail, part_dot);
      __builtin_prefetch(x + j + count);
      if (sizeof(Stored) == sizeof(float)) __builtin_prefetch(x + j + kLanes + count);
    }
    tail += part_tail;
    dot += part_dot;
  }
  take(last, tail, dot);
  take(very_last, tail, dot);
  state.tail = sum(tail);
  state.dot = sum(dot) * kLn2;
  state.ties = state.second == state.max ? count_equal(x, count, state.max) : 1;
  state.has_nan = state.dot != state.dot;
  return state;
}

RowState<double> block_state(const double* x, int64_t count, double inverse_temperature) {
  return scalar_state(x, count, 1, inverse_temperature);
}

// Where the value is, which is there.
template <class Stored>
int64_t find(const Stored* x, int64_t count, accumulate_t<Stored> value) {
  int64_t j = 0;
  if constexpr (sizeof(accumulate_t<Stored>) == sizeof(float)) {
    while (j + kLanes <= count && !any_equal(load(x + j), broadcast(value))) j += kLanes;
  }
  while (j + 1 < count && !(widen(x[j]) == value)) ++j;
  return j;
}

template <class Stored>
void score_long_rows(const Pool& pool, const RowOutputs<accumulate_t<Stored>>& out,
                     accumulate_t<Stored> inverse_temperature, int64_t begin, int64_t end) {
  using Acc = accumulate_t<Stored>;
  alignas(64) Acc room[kBlock];
  const bool in_place = pool.class_stride == 1 && !pool.probabilities;
  for (int64_t row = begin; row < end; ++row) {
    const Stored* data = static_cast<const Stored*>(pool.data) + row * pool.row_stride;
    // Calls `use` with the logits from `column` on: the caller's memory where it holds them as they are, else a copy.
    const auto with_block = [&](int64_t column, const auto& use) {
      const int64_t count = pool.classes - column < kBlock ? pool.classes - column : kBlock;
      return in_place ? use(data + column, count) : use(logits_of(pool, data, column, count, room), count);
    };
    RowState<Acc> state;
    int64_t leading_block = 0;  // the first block that holds the row's maximum
    for (int64_t column = 0; column < pool.classes; column += kBlock) {
      const RowState<Acc> block =
          with_block(column, [&](const auto* x, int64_t count) { return block_state(x, count, inverse_temperature); });
      if (block.max > state.max) leading_block = column;
      state = column == 0 ? block : merge(state, block, inverse_temperature);
    }
    if (out.argmax != nullptr) {
      state.argmax = leading_block +
                     with_block(leading_block, [&](const auto* x, int64_t count) { return find(x, count, state.max); });
    }
    write_row(out, row, state, inverse_temperature);
  }
}

// A row in every lane; classes are `pitch` apart. `fetch(class)` asks for what is read some time after this group.
template <class Fetch>
void score_group(const float* values, int64_t classes, int64_t pitch, const Fetch& fetch, const RowOutputs<float>& out,
                 float inverse_temperature, int64_t begin, int64_t rows) {
  TopTwo<floats> top = none();
  for (int64_t c = 0; c < classes; ++c) top.take(load(values + c * pitch));
  const floats max = top.first, second = top.second;
  // Rows without a finite maximum go one by one, at the end; the others' results do not depend on who stands beside
  // them.
  const ints special = (max - max) != floats{};
  const floats scale = broadcast(inverse_temperature * kLog2E);
  floats tail{}, dot{};
  for (int64_t c = 0; c < classes; ++c) {
    const Exponential value = exponential(load(values + c * pitch), max, scale);
    tail += value.lower;
    dot += value.lower * value.t;
    fetch(c);
  }
  floats further{};  // values equal to the maximum beside itself
  if (any_equal(second, max)) {
    further -= 1.0f;
    for (int64_t c = 0; c < classes; ++c) further += select(load(values + c * pitch) == max, broadcast(1.0f), floats{});
  }
  const floats rest = further + tail;
  // The runner-up's exp, where it is the maximum's equal, is what `lower` leaves out.
  const RowSummary<floats> summary = summary_of<floats>(
      max, rest, log1p_nonnegative<floats, ints>(rest), exponential(second, max, scale).e, dot * kLn2, second - max,
      broadcast(inverse_temperature), broadcast(1.0f / inverse_temperature));
  const ints nan = dot != dot;
  const auto valid = [&](floats result) {
    return select(nan, broadcast(std::numeric_limits<float>::quiet_NaN()), result);
  };
  for (int k = 0; k < out.count; ++k) {
    write_lanes(out.utilities + k * out.rows + begin, valid(utility(summary, out.which[k])), rows);
  }
  if (out.argmax != nullptr) {
    ints argmax = ints{} - 1;
    for (int64_t c = classes - 1; c >= 0; --c) {
      argmax = select(load(values + c * pitch) == max, ints{} + static_cast<int32_t>(c), argmax);
    }
    argmax = select(nan, ints{} - 1, argmax);
    for (int64_t lane = 0; lane < rows; ++lane) out.argmax[begin + lane] = argmax[lane];
    write_lanes(out.logsumexp + begin, valid(summary.logsumexp), rows);
    write_lanes(out.p1 + begin, valid(summary.p1), rows);
    write_lanes(out.p2 + begin, valid(summary.p2), rows);
  }
  for (int64_t lane = 0; any(special) && lane < rows; ++lane) {
    if (!special[lane]) continue;
    write_row(out, begin + lane, scalar_state(values + lane, classes, pitch, inverse_temperature), inverse_temperature);
  }
}

template <class Stored>
void score_short_rows(const Pool& pool, const RowOutputs<float>& out, float inverse_temperature, int64_t begin,
                      int64_t end) {
  alignas(64) float values[kShortRow * kLanes];
  // So far ahead that memory has answered by then: a group of ten classes is over before.
  constexpr int64_t kAhead = 8192;
  const int64_t ahead = 1 + kAhead / (kLanes * pool.classes * static_cast<int64_t>(sizeof(Stored)));
  for (int64_t row = begin; row < end; row += kLanes) {
    const int64_t rows = end - row < kLanes ? end - row : kLanes;
    gather_group<Stored>(pool, row, rows, values);
    const Stored* next = static_cast<const Stored*>(pool.data) + (row + ahead * kLanes) * pool.row_stride;
    const auto fetch = [&](int64_t c) { __builtin_prefetch(next + c * kLanes); };
    score_group(values, pool.classes, kLanes, fetch, out, inverse_temperature, row, rows);
  }
}

// Copies a tile of rows, a class after the other in runs as long as the tile, in steps of a vector.
template <class Stored>
struct PlaneCopy {
  const Stored* from;
  int64_t class_stride, rows, pitch;
  float* to;
  int64_t left;  // classes
  int64_t at = 0;

  void step() {
    if (left == 0) return;
    if (at + kLanes <= rows) {
      store(to + at, load(from + at));
    } else {
      store(to + at, load_first(from + at, rows - at, 1.0f));
    }
    at += kLanes;
    if (at < rows) return;
    at = 0;
    from += class_stride;
    to += pitch;
    --left;
  }
};

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

// Planes may lie a power of two apart, where the lines of all of them share a few places in the caches. So a tile is
// brought together in runs that the processor fetches ahead, while the tile before it is scored. Two take 256 KiB.
template <class Stored>
void score_planes(const Pool& pool, const RowOutputs<float>& out, float inverse_temperature, int64_t begin,
                  int64_t end) {
  constexpr int64_t room = 32 * kPlanes, line = 16, longest = 31;
  alignas(64) float values[2][room];
  // An odd number of lines where there are several, so that those of a group of rows have places of their own in L1.
  const int64_t fit = room / line / pool.classes, most = fit < longest ? fit : longest;
  const int64_t tile = (most > 2 ? most - (most + 1) % 2 : most) * line;
  const auto copy_of = [&](int64_t row, float* to) -> PlaneCopy<Stored> {
    const int64_t rows = row >= end ? 0 : (end - row < tile ? end - row : tile);
    return {
        static_cast<const Stored*>(pool.data) + row, pool.class_stride, rows, tile, to, rows > 0 ? pool.classes : 0};
  };
  PlaneCopy<Stored> first = copy_of(begin, values[0]);
  while (first.left > 0) first.step();
  int which = 0;
  for (int64_t row = begin; row < end; row += tile, which ^= 1) {
    const int64_t rows = end - row < tile ? end - row : tile;
    float* const x = values[which];
    if (pool.probabilities) {
      for (int64_t c = 0; c < pool.classes; ++c) take_logs(x + c * tile, (rows + kLanes - 1) / kLanes * kLanes);
    }
    PlaneCopy<Stored> next = copy_of(row + tile, values[which ^ 1]);
    for (int64_t j = 0; j < rows; j += kLanes) {
      score_group(
          x + j, pool.classes, tile, [&](int64_t) { next.step(); }, out, inverse_temperature, row + j,
          rows - j < kLanes ? rows - j : kLanes);
    }
    while (next.left > 0) next.step();
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

template void score_planes<float>(const Pool&, const RowOutputs<float>&, float, int64_t, int64_t);
template void score_planes<half_bits>(const Pool&, const RowOutputs<float>&, float, int64_t, int64_t);
template void score_planes<bfloat16_bits>(const Pool&, const RowOutputs<float>&, float, int64_t, int64_t);

}  // namespace prunefuse::cpu::PRUNEFUSE_ISA
