// The ensemble scorer's row loops. Every value is read from memory once and takes one exp: a pass of a row is walked
// for its maximum, then for its exponentials (kept in the cache) and their sums, then these are added, divided by their
// sum, to the row's sums of probabilities. At the end one logarithm per class gives the entropy of the mean.
//
// As in the scorer, short rows go kLanes at a time with a row in every lane, long ones alone.
#include "ensembles.h"

#include "exponentials.h"

namespace prunefuse::cpu::PRUNEFUSE_ISA {
namespace {

template <class Acc>
void add_probabilities(const Acc* e, Acc inverse, Acc* sums, int64_t classes) {
  for (int64_t j = 0; j < classes; ++j) sums[j] += e[j] * inverse;
}

// Entropy of the distribution that is proportional to `sums`.
double entropy_of(const double* sums, int64_t classes) {
  double top = 0, ties = 0, tail = 0, dot = 0;
  for (int64_t j = 0; j < classes; ++j) top = sums[j] > top ? sums[j] : top;
  const double scale = 1 / top;
  for (int64_t begin = 0; begin < classes; begin += kSum) {
    double part_tail = 0, part_dot = 0;
    for (int64_t j = begin; j < classes && j < begin + kSum; ++j) {
      if (sums[j] == top) {
        ties += 1;
      } else {
        const double e = sums[j] * scale;
        part_tail += e;
        part_dot += e * log_share(e);
      }
    }
    tail += part_tail;
    dot += part_dot;
  }
  const double rest = (ties - 1) + tail;
  return log1p_of(rest) - dot / (rest + 1);
}

// e and e ln e of sums relative to the largest; zero where they are it.
struct Share {
  floats e, product;
  ints equal;
};

inline Share share(floats sums, floats top, floats scale) {
  const ints equal = sums == top;
  const floats e = zero_where(equal, sums * scale);
  // ln 0 is -inf; any finite number in its place makes the product 0.
  const floats log = larger(log_nonnegative<floats, ints>(e), broadcast(-200.0f));
  return {e, e * log, equal};
}

float entropy_of(const float* sums, int64_t classes) {
  floats tops{};
  int64_t j = 0;
  for (; j + kLanes <= classes; j += kLanes) tops = larger(load(sums + j), tops);
  tops = larger(load_first(sums + j, classes - j, 0.0f), tops);
  float largest = 0;
  for (int lane = 0; lane < kLanes; ++lane) largest = tops[lane] > largest ? tops[lane] : largest;
  const floats top = broadcast(largest), scale = broadcast(1 / largest);
  float ties = 0, tail = 0, dot = 0;
  for (int64_t begin = 0; begin < classes; begin += kBlock) {
    const int64_t end = begin + kBlock < classes ? begin + kBlock : classes;
    floats block_tail{}, block_dot{};
    ints block_ties{};
    const auto take = [&](floats value) {
      const Share part = share(value, top, scale);
      block_ties -= part.equal;
      block_tail += part.e;
      block_dot += part.product;
    };
    for (j = begin; j + kLanes <= end; j += kLanes) take(load(sums + j));
    if (j < end) take(load_first(sums + j, end - j, 0.0f));
    tail += sum(block_tail);
    dot += sum(block_dot);
    for (int lane = 0; lane < kLanes; ++lane) ties += static_cast<float>(block_ties[lane]);
  }
  const float rest = (ties - 1) + tail;
  return log1p_of(rest) - dot / (rest + 1);
}

template <class Stored>
void long_row(const Passes& passes, const EnsembleOutputs<accumulate_t<Stored>>& out,
              accumulate_t<Stored> inverse_temperature, accumulate_t<Stored>* room, int64_t row) {
  using Acc = accumulate_t<Stored>;
  const int64_t classes = passes.pool.classes;
  Acc* const e = room;
  Acc* const sums = room + classes;
  // A count per class in as many bytes as an Acc has.
  Acc* const votes = room + 2 * classes;
  for (int64_t j = 0; j < 2 * classes; ++j) sums[j] = 0;
  const Stored* data = static_cast<const Stored*>(passes.pool.data) + row * passes.pool.row_stride;
  Acc entropy = 0, modal = 0;
  for (int64_t s = 0; s < passes.count; ++s, data += passes.stride) {
    const RowSums<Acc> pass = exponentials(row_logits(passes.pool, data, e), e, classes, inverse_temperature);
    entropy += pass.entropy;
    if (pass.argmax < 0) break;
    votes[pass.argmax] += 1;
    modal = votes[pass.argmax] > modal ? votes[pass.argmax] : modal;
    add_probabilities(e, pass.inverse, sums, classes);
  }
  const Acc predictive = entropy_of(sums, classes);
  write_ensemble_row(out, row, summarize_ensemble(predictive, entropy, modal, static_cast<Acc>(passes.count)));
}

// One pass of kLanes rows, a row in every lane.
struct GroupSums {
  ints argmax;
  floats entropy, inverse;
  ints special;  // set where a row holds an infinity or has no distribution: such go one by one
};

// `e` holds the rows' logits, class by class, and gets their exponentials.
GroupSums group_exponentials(float* e, int64_t classes, float inverse_temperature) {
  floats max = broadcast(-std::numeric_limits<float>::infinity());
  for (int64_t c = 0; c < classes; ++c) max = larger(load(e + c * kLanes), max);
  const floats scale = broadcast(inverse_temperature * kLog2E);
  floats tail{}, dot{};
  ints ties{}, argmax{};
  for (int64_t c = 0; c < classes; ++c) {
    const Exponential value = exponential(load(e + c * kLanes), max, scale);
    argmax = select(value.equal & (ties == 0), ints{} + static_cast<int32_t>(c), argmax);
    ties -= value.equal;
    tail += value.lower;
    dot += value.lower * value.t;
    store(e + c * kLanes, value.e);
  }
  const floats rest = __builtin_convertvector(ties - 1, floats) + tail;
  const floats inverse = 1.0f / (rest + 1.0f);
  const floats entropy = log1p_nonnegative<floats, ints>(rest) - dot * kLn2 * inverse;
  // An infinite maximum, or a NaN anywhere in the lane.
  return {argmax, entropy, inverse, ((max - max) != floats{}) | (dot != dot)};
}

// `rows` (1 to kLanes) rows with a row in every lane. What is written for the lanes returned is no result: they have to
// go one by one. The others' results do not depend on them, nor on which rows happen to stand in one group.
template <class Stored>
ints short_rows(const Passes& passes, const EnsembleOutputs<float>& out, float inverse_temperature, int64_t begin,
                int64_t rows) {
  alignas(64) float e[kShortRow * kLanes];
  alignas(64) float sums[kShortRow * kLanes];
  alignas(64) float votes[kShortRow * kLanes];
  const int64_t classes = passes.pool.classes;
  for (int64_t i = 0; i < classes * kLanes; ++i) sums[i] = votes[i] = 0;
  floats entropy{}, modal{};
  ints special{};
  Pool pool = passes.pool;
  for (int64_t s = 0; s < passes.count; ++s) {
    gather_group<Stored>(pool, begin, rows, e);
    pool.data = static_cast<const Stored*>(pool.data) + passes.stride;
    const GroupSums pass = group_exponentials(e, classes, inverse_temperature);
    special |= pass.special;
    entropy += pass.entropy;
    for (int lane = 0; lane < kLanes; ++lane) {
      float& count = votes[pass.argmax[lane] * kLanes + lane];
      count += 1;
      modal[lane] = count > modal[lane] ? count : modal[lane];
    }
    for (int64_t i = 0; i < classes * kLanes; i += kLanes) store(sums + i, load(sums + i) + load(e + i) * pass.inverse);
  }

  floats top{};
  for (int64_t c = 0; c < classes; ++c) top = larger(load(sums + c * kLanes), top);
  const floats one_over_top = 1.0f / top;
  floats tail{}, dot{};
  ints ties{};
  for (int64_t c = 0; c < classes; ++c) {
    const Share part = share(load(sums + c * kLanes), top, one_over_top);
    ties -= part.equal;
    tail += part.e;
    dot += part.product;
  }
  const floats rest = __builtin_convertvector(ties - 1, floats) + tail;
  const float count = static_cast<float>(passes.count);
  const floats predictive = log1p_nonnegative<floats, ints>(rest) - dot / (rest + 1.0f), mean = entropy / count;
  const EnsembleSummary<floats> summary = {larger(predictive - mean, floats{}), predictive, (count - modal) / count,
                                           mean};
  for (int k = 0; k < out.count; ++k) {
    write_lanes(out.utilities + k * out.rows + begin, ensemble_utility(summary, out.which[k]), rows);
  }
  return special;
}

template <class Stored>
void add_long_row(const Pool& pool, const EnsembleState<accumulate_t<Stored>>& state,
                  accumulate_t<Stored> inverse_temperature, accumulate_t<Stored>* room, int64_t row) {
  using Acc = accumulate_t<Stored>;
  const Stored* data = static_cast<const Stored*>(pool.data) + row * pool.row_stride;
  const RowSums<Acc> pass = exponentials(row_logits(pool, data, room), room, pool.classes, inverse_temperature);
  state.entropies[row] += pass.entropy;
  Acc* const sums = state.sums + row * pool.classes;
  if (pass.argmax < 0) {
    for (int64_t j = 0; j < pool.classes; ++j) sums[j] = pass.inverse;
  } else {
    state.votes[row * pool.classes + pass.argmax] += 1;
    add_probabilities(room, pass.inverse, sums, pool.classes);
  }
}

// As short_rows; the lanes returned are left as they were.
template <class Stored>
ints add_short_rows(const Pool& pool, const EnsembleState<float>& state, float inverse_temperature, int64_t begin,
                    int64_t rows) {
  alignas(64) float e[kShortRow * kLanes];
  gather_group<Stored>(pool, begin, rows, e);
  const GroupSums pass = group_exponentials(e, pool.classes, inverse_temperature);
  for (int64_t lane = 0; lane < rows; ++lane) {
    if (pass.special[lane]) continue;
    const int64_t first = (begin + lane) * pool.classes;
    state.entropies[begin + lane] += pass.entropy[lane];
    state.votes[first + pass.argmax[lane]] += 1;
    const float inverse = pass.inverse[lane];
    for (int64_t c = 0; c < pool.classes; ++c) state.sums[first + c] += e[c * kLanes + lane] * inverse;
  }
  return pass.special;
}

}  // namespace

template <class Stored>
void ensemble_rows(const Passes& passes, const EnsembleOutputs<accumulate_t<Stored>>& out,
                   accumulate_t<Stored> inverse_temperature, accumulate_t<Stored>* room, int64_t begin, int64_t end) {
  int64_t row = begin;
  if constexpr (sizeof(accumulate_t<Stored>) == sizeof(float)) {
    while (passes.pool.classes <= kShortRow && row < end) {
      const int64_t next = end - row < kLanes ? end : row + kLanes;
      const ints special = short_rows<Stored>(passes, out, inverse_temperature, row, next - row);
      for (int64_t i = row; any(special) && i < next; ++i) {
        if (special[i - row]) long_row<Stored>(passes, out, inverse_temperature, room, i);
      }
      row = next;
    }
  }
  for (; row < end; ++row) long_row<Stored>(passes, out, inverse_temperature, room, row);
}

template <class Stored>
void ensemble_add_rows(const Pool& pool, const EnsembleState<accumulate_t<Stored>>& state,
                       accumulate_t<Stored> inverse_temperature, accumulate_t<Stored>* room, int64_t begin,
                       int64_t end) {
  int64_t row = begin;
  if constexpr (sizeof(accumulate_t<Stored>) == sizeof(float)) {
    while (pool.classes <= kShortRow && row < end) {
      const int64_t next = end - row < kLanes ? end : row + kLanes;
      const ints special = add_short_rows<Stored>(pool, state, inverse_temperature, row, next - row);
      for (int64_t i = row; any(special) && i < next; ++i) {
        if (special[i - row]) add_long_row<Stored>(pool, state, inverse_temperature, room, i);
      }
      row = next;
    }
  }
  for (; row < end; ++row) add_long_row<Stored>(pool, state, inverse_temperature, room, row);
}

#define PRUNEFUSE_INSTANTIATE(Stored)                                                                 \
  template void ensemble_rows<Stored>(const Passes&, const EnsembleOutputs<accumulate_t<Stored>>&,    \
                                      accumulate_t<Stored>, accumulate_t<Stored>*, int64_t, int64_t); \
  template void ensemble_add_rows<Stored>(const Pool&, const EnsembleState<accumulate_t<Stored>>&,    \
                                          accumulate_t<Stored>, accumulate_t<Stored>*, int64_t, int64_t);
PRUNEFUSE_INSTANTIATE(float)
PRUNEFUSE_INSTANTIATE(double)
PRUNEFUSE_INSTANTIATE(half_bits)
PRUNEFUSE_INSTANTIATE(bfloat16_bits)
#undef PRUNEFUSE_INSTANTIATE

}  // namespace prunefuse::cpu::PRUNEFUSE_ISA
