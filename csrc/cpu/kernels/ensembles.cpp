// The ensemble scorer's row loops. Every value is read from memory once and takes one exp: a pass of a row is walked
// for its maximum, then for its exponentials (kept in the cache) and their sums, then these are added, divided by their
// sum, to the row's sums of probabilities. At the end one logarithm per class gives the entropy of the mean.
//
// As in the scorer, short rows go kLanes at a time with a row in every lane, long ones alone. While a pass of a row is
// summed up, the memory is asked for the next one, which lies far away.
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
  const Stored* const first = static_cast<const Stored*>(passes.pool.data) + row * passes.pool.row_stride;
  const Stored* data = first;
  Acc entropy = 0, modal = 0;
  for (int64_t s = 0; s < passes.count; ++s, data += passes.stride) {
    const Stored* next = s + 1 < passes.count ? data + passes.stride : first + passes.pool.row_stride;
    const RowSums<Acc> pass = exponentials(row_logits(passes.pool, data, e), e, classes, inverse_temperature,
                                           [&](int64_t j) { __builtin_prefetch(next + j); });
    entropy += pass.entropy;
    if (pass.argmax < 0) break;
    votes[pass.argmax] += 1;
    modal = votes[pass.argmax] > modal ? votes[pass.argmax] : modal;
    add_probabilities(e, pass.inverse, sums, classes);
  }
  const Acc predictive = entropy_of(sums, classes);
  write_ensemble_row(out, row, summarize_ensemble(predictive, entropy, modal, static_cast<Acc>(passes.count)));
}

// Rows with few classes go 2 * kLanes at a time: while the sums of one half wait for each other, the other half goes
// on.
constexpr int64_t kFewClasses = 32;

// One pass of kWide * kLanes rows, a row in every lane.
template <int kWide>
struct GroupSums {
  ints argmax[kWide];
  floats entropy[kWide], inverse[kWide];
  ints special[kWide];  // set where a row holds an infinity or has no distribution: such go one by one
};

// `e` holds the rows' logits, class by class, and gets their exponentials. `next`: a block of as many logits, which is
// read some time after this one.
template <int kWide, class Stored>
GroupSums<kWide> group_exponentials(float* e, int64_t classes, float inverse_temperature, const Stored* next) {
  floats max[kWide];
  GroupSums<kWide> sums{};
  for (int w = 0; w < kWide; ++w) max[w] = broadcast(-std::numeric_limits<float>::infinity());
  for (int64_t c = 0; c < classes; ++c) {
    for (int w = 0; w < kWide; ++w) {
      const floats x = load(e + (c * kWide + w) * kLanes);
      sums.argmax[w] = select(x > max[w], ints{} + static_cast<int32_t>(c), sums.argmax[w]);
      max[w] = larger(x, max[w]);
    }
  }
  const floats scale = broadcast(inverse_temperature * kLog2E);
  floats tail[kWide] = {}, dot[kWide] = {};
  ints ties[kWide] = {};
  for (int64_t c = 0; c < classes; ++c) {
    for (int w = 0; w < kWide; ++w) {
      const int64_t at = (c * kWide + w) * kLanes;
      const Exponential value = exponential(load(e + at), max[w], scale);
      ties[w] -= value.equal;
      tail[w] += value.lower;
      dot[w] += value.lower * value.t;
      store(e + at, value.e);
      __builtin_prefetch(next + at);
    }
  }
  for (int w = 0; w < kWide; ++w) {
    const floats rest = __builtin_convertvector(ties[w] - 1, floats) + tail[w];
    sums.inverse[w] = 1.0f / (rest + 1.0f);
    sums.entropy[w] = log1p_nonnegative<floats, ints>(rest) - dot[w] * kLn2 * sums.inverse[w];
    // An infinite maximum, or a NaN anywhere in the lane.
    sums.special[w] = ((max[w] - max[w]) != floats{}) | (dot[w] != dot[w]);
  }
  return sums;
}

// The block of rows and the pass that are read so many steps after the one at hand. Neighbors in this order are far
// apart in memory, where the processor would not see them coming.
template <class Stored>
class ReadAhead {
 public:
  ReadAhead(const Passes& passes, int64_t begin, int64_t rows) : passes_(passes), rows_(rows), row_(begin) {
    // So far ahead that memory has answered by then: a group of ten classes is over before.
    constexpr int64_t kAhead = 4096;
    const int64_t block = rows * passes.pool.classes * static_cast<int64_t>(sizeof(Stored));
    for (int64_t steps = 1 + kAhead / block; steps > 0; --steps) next();
  }

  const Stored* next() {
    if (++pass_ == passes_.count) {
      pass_ = 0;
      row_ += rows_;
    }
    return static_cast<const Stored*>(passes_.pool.data) + pass_ * passes_.stride + row_ * passes_.pool.row_stride;
  }

 private:
  const Passes& passes_;
  int64_t rows_, row_, pass_ = -1;
};

// kWide groups of kLanes rows with a row in every lane, the last of them not full: `rows` in all. What is written where
// `special` is set is no result: such rows have to go one by one. The others' results do not depend on them, nor on
// which rows happen to stand in one group.
template <int kWide, class Stored>
void short_rows(const Passes& passes, const EnsembleOutputs<float>& out, float inverse_temperature, int64_t begin,
                int64_t rows, ReadAhead<Stored>& ahead, ints (&special)[kWide]) {
  constexpr int64_t pitch = kWide * kLanes, room = (kWide > 1 ? kFewClasses : kShortRow) * pitch;
  alignas(64) float e[room];
  alignas(64) float sums[room];
  alignas(64) int32_t votes[room];
  alignas(64) int32_t voted[kLanes];
  const int64_t classes = passes.pool.classes;
  const auto rows_of = [&](int w) { return rows - w * kLanes < kLanes ? rows - w * kLanes : kLanes; };
  for (int64_t i = 0; i < classes * pitch; ++i) {
    sums[i] = 0;
    votes[i] = 0;
  }
  floats entropy[kWide] = {};
  for (int w = 0; w < kWide; ++w) special[w] = ints{};
  Pool pool = passes.pool;
  for (int64_t s = 0; s < passes.count; ++s) {
    for (int w = 0; w < kWide; ++w) {
      gather_group<Stored, pitch>(pool, begin + w * kLanes, rows_of(w), e + w * kLanes);
    }
    pool.data = static_cast<const Stored*>(pool.data) + passes.stride;
    const GroupSums<kWide> pass = group_exponentials<kWide>(e, classes, inverse_temperature, ahead.next());
    for (int w = 0; w < kWide; ++w) {
      special[w] |= pass.special[w];
      entropy[w] += pass.entropy[w];
      spill(pass.argmax[w] * static_cast<int32_t>(pitch) + numbered(all_lanes{}), voted);
      for (int lane = 0; lane < kLanes; ++lane) ++votes[voted[lane] + w * kLanes];
    }
    for (int64_t c = 0; c < classes * pitch; c += pitch) {
      for (int w = 0; w < kWide; ++w) {
        const int64_t at = c + w * kLanes;
        store(sums + at, load(sums + at) + load(e + at) * pass.inverse[w]);
      }
    }
  }

  for (int w = 0; w < kWide; ++w) {
    floats top{};
    ints most{};
    for (int64_t c = 0; c < classes; ++c) {
      const ints count = load(votes + c * pitch + w * kLanes);
      top = larger(load(sums + c * pitch + w * kLanes), top);
      most = select(count > most, count, most);
    }
    const floats one_over_top = 1.0f / top;
    floats tail{}, dot{};
    ints ties{};
    for (int64_t c = 0; c < classes; ++c) {
      const Share part = share(load(sums + c * pitch + w * kLanes), top, one_over_top);
      ties -= part.equal;
      tail += part.e;
      dot += part.product;
    }
    const floats rest = __builtin_convertvector(ties - 1, floats) + tail;
    const float count = static_cast<float>(passes.count);
    const floats modal = __builtin_convertvector(most, floats), mean = entropy[w] / count;
    const floats predictive = log1p_nonnegative<floats, ints>(rest) - dot / (rest + 1.0f);
    const EnsembleSummary<floats> summary = {larger(predictive - mean, floats{}), predictive, (count - modal) / count,
                                             mean};
    for (int k = 0; k < out.count; ++k) {
      write_lanes(out.utilities + k * out.rows + begin + w * kLanes, ensemble_utility(summary, out.which[k]),
                  rows_of(w));
    }
  }
}

// Rows begin..end in steps of kWide groups, up to the last such step; returns the row after it.
template <int kWide, class Stored>
int64_t all_short_rows(const Passes& passes, const EnsembleOutputs<float>& out, float inverse_temperature, float* room,
                       int64_t begin, int64_t end) {
  constexpr int64_t step = kWide * kLanes;
  ReadAhead<Stored> ahead(passes, begin, step);
  int64_t row = begin;
  // The last group of a step has a row at least.
  for (; end - row > step - kLanes; row = end - row < step ? end : row + step) {
    const int64_t rows = end - row < step ? end - row : step;
    ints special[kWide];
    short_rows<kWide, Stored>(passes, out, inverse_temperature, row, rows, ahead, special);
    for (int w = 0; w < kWide; ++w) {
      for (int64_t lane = 0; any(special[w]) && lane < kLanes && w * kLanes + lane < rows; ++lane) {
        if (special[w][lane]) long_row<Stored>(passes, out, inverse_temperature, room, row + w * kLanes + lane);
      }
    }
  }
  return row;
}

template <class Stored>
void add_long_row(const Pool& pool, const EnsembleState<accumulate_t<Stored>>& state,
                  accumulate_t<Stored> inverse_temperature, accumulate_t<Stored>* room, int64_t row) {
  using Acc = accumulate_t<Stored>;
  const Stored* data = static_cast<const Stored*>(pool.data) + row * pool.row_stride;
  const RowSums<Acc> pass = exponentials(row_logits(pool, data, room), room, pool.classes, inverse_temperature,
                                         [&](int64_t j) { __builtin_prefetch(data + pool.row_stride + j); });
  state.entropies[row] += pass.entropy;
  Acc* const sums = state.sums + row * pool.classes;
  if (pass.argmax < 0) {
    for (int64_t j = 0; j < pool.classes; ++j) sums[j] = pass.inverse;
  } else {
    state.votes[row * pool.classes + pass.argmax] += 1;
    add_probabilities(room, pass.inverse, sums, pool.classes);
  }
}

// Returns the lanes of rows that have to go one by one, and are left as they were.
template <class Stored>
ints add_short_rows(const Pool& pool, const EnsembleState<float>& state, float inverse_temperature, int64_t begin,
                    int64_t rows) {
  alignas(64) float e[kShortRow * kLanes];
  gather_group<Stored>(pool, begin, rows, e);
  const Stored* next = static_cast<const Stored*>(pool.data) + (begin + kLanes) * pool.row_stride;
  const GroupSums<1> pass = group_exponentials<1>(e, pool.classes, inverse_temperature, next);
  for (int64_t lane = 0; lane < rows; ++lane) {
    if (pass.special[0][lane]) continue;
    const int64_t first = (begin + lane) * pool.classes;
    state.entropies[begin + lane] += pass.entropy[0][lane];
    state.votes[first + pass.argmax[0][lane]] += 1;
    const float inverse = pass.inverse[0][lane];
    for (int64_t c = 0; c < pool.classes; ++c) state.sums[first + c] += e[c * kLanes + lane] * inverse;
  }
  return pass.special[0];
}

}  // namespace

template <class Stored>
void ensemble_rows(const Passes& passes, const EnsembleOutputs<accumulate_t<Stored>>& out,
                   accumulate_t<Stored> inverse_temperature, accumulate_t<Stored>* room, int64_t begin, int64_t end) {
  int64_t row = begin;
  if constexpr (sizeof(accumulate_t<Stored>) == sizeof(float)) {
    if (passes.pool.classes <= kFewClasses) {
      row = all_short_rows<2, Stored>(passes, out, inverse_temperature, room, row, end);
    }
    if (passes.pool.classes <= kShortRow) {
      row = all_short_rows<1, Stored>(passes, out, inverse_temperature, room, row, end);
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
