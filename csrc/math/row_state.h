// The softmax statistics of one row, gathered in one read, for CPU and CUDA. row_tile.h has another way to the same
// state, for a GPU's lanes.
//
// The state of the values seen so far, with m the largest of them and e_j = exp((x_j - m) / T):
//   ties = how many equal m,  tail = sum of e_j over the others,  dot = sum of e_j (x_j - m) / T,  second = the
//   runner-up.
// Keeping the maximum's own 1 out of `tail` is what keeps saturated rows apart: 1 - p1 = (ties - 1 + tail) / (ties +
// tail) has full relative precision where 1 - 1 / sum has none below 6e-8. States of disjoint parts merge exactly like
// the parts were one row (up to rounding), so lanes, threads and blocks may split a row as they like.
//
// Values: a -inf logit is a masked class and contributes nothing. +inf values share the mass among themselves. A NaN
// anywhere, or no value above -inf, makes every result NaN (arg-max -1).
#pragma once

#include "exp_log.h"

namespace prunefuse {

enum class Utility : int64_t { kLeastConfidence = 0, kMargin = 1, kEntropy = 2, kEnergy = 3, kLogitMargin = 4 };
constexpr int64_t kUtilityCount = 5;

template <class Acc>
struct RowState {
  Acc max = -std::numeric_limits<Acc>::infinity();
  Acc second = -std::numeric_limits<Acc>::infinity();
  Acc ties = 0;
  Acc tail = 0;
  Acc dot = 0;
  int64_t argmax = -1;
  bool has_nan = false;
};

// (x - m) / T made safe: masked classes give a finite number whose exp is zero, so that exp * z is 0 and never 0 * inf.
template <class Acc>
PRUNEFUSE_HD Acc shifted(Acc x, Acc m, Acc inverse_temperature) {
  constexpr Acc floor = sizeof(Acc) == sizeof(float) ? Acc(-100) : Acc(-800);
  const Acc z = (x - m) * inverse_temperature;
  return z > floor ? z : floor;
}

// Adds all of `other`, whose maximum is not above `state`'s.
template <class Acc>
PRUNEFUSE_HD void absorb_lower(RowState<Acc>& state, const RowState<Acc>& other, Acc inverse_temperature) {
  const Acc z = shifted(other.max, state.max, inverse_temperature);
  const Acc e = exp_of(z);
  const Acc mass = other.ties + other.tail;
  state.tail += e * mass;
  state.dot += e * (other.dot + mass * z);
}

// Arguments by value and swapped, not picked by reference: a reference would put both states into a GPU thread's local
// memory.
template <class Acc>
PRUNEFUSE_HD RowState<Acc> merge(RowState<Acc> a, RowState<Acc> b, Acc inverse_temperature) {
  const bool has_nan = a.has_nan || b.has_nan;
  if (b.max > a.max) {
    const RowState<Acc> lower = a;
    a = b;
    b = lower;
  }
  if (a.max == b.max) {
    a.second = a.ties + b.ties > 1 ? a.max : (a.second > b.second ? a.second : b.second);
    a.ties += b.ties;
    a.tail += b.tail;
    a.dot += b.dot;
    // Unsigned order puts "none yet" (-1) last.
    a.argmax = static_cast<uint64_t>(a.argmax) < static_cast<uint64_t>(b.argmax) ? a.argmax : b.argmax;
  } else {
    a.second = a.second > b.max ? a.second : b.max;
    absorb_lower(a, b, inverse_temperature);
  }
  a.has_nan = has_nan;
  return a;
}

// Takes in values[0..Count) standing at columns first, first + step, ...: one rescale per call, one exp per value.
template <int Count, class Acc>
PRUNEFUSE_HD void absorb(RowState<Acc>& state, const Acc (&values)[Count], int64_t first, int64_t step,
                         Acc inverse_temperature) {
  Acc top = state.max;  // never a NaN: an exponential of what lies above the maximum would have no meaning
  for (int i = 0; i < Count; ++i) top = values[i] > top ? values[i] : top;
  if (top > state.max) {
    RowState<Acc> raised;
    raised.max = top;
    raised.second = state.max;
    absorb_lower(raised, state, inverse_temperature);
    raised.has_nan = state.has_nan;
    state = raised;
  }
  for (int i = 0; i < Count; ++i) {
    const Acc x = values[i];
    state.has_nan = state.has_nan || x != x;
    if (x == state.max) {
      if (state.ties == 0) state.argmax = first + i * step;
      if (state.ties > 0) state.second = x;
      state.ties += 1;
    } else {
      const Acc z = shifted(x, state.max, inverse_temperature);
      const Acc e = exp_of(z);
      state.tail += e;
      state.dot += e * z;
      state.second = x > state.second ? x : state.second;
    }
  }
}

// What a row's state says; `V` is one row's number or a vector with a row in every lane. Entropy is in nats:
// ln(sum) - dot / sum with sum = ties + tail.
template <class V>
struct RowSummary {
  V logsumexp;  // of the logits divided by the temperature
  V p1, p2;
  V least_confidence, margin, entropy;
  V energy;        // -T logsumexp(x / T)
  V logit_margin;  // runner-up's logit minus the maximum's
};

// From the sums of a row that has a distribution. `rest` is the sum without the maximum's own 1, `log_sum` is
// log1p(rest), `runner_up` is exp((second - max) / T).
template <class V>
PRUNEFUSE_HD RowSummary<V> summary_of(V max, V rest, V log_sum, V runner_up, V dot, V logit_margin,
                                      V inverse_temperature, V temperature) {
  const V inverse = reciprocal(rest + 1.0f);
  return {max * inverse_temperature + log_sum,
          inverse,
          runner_up * inverse,
          rest * inverse,
          (rest + runner_up) * inverse,
          log_sum - dot * inverse,
          -(max + log_sum * temperature),
          logit_margin};
}

template <class Acc>
PRUNEFUSE_HD RowSummary<Acc> summarize(const RowState<Acc>& state, Acc inverse_temperature) {
  constexpr Acc nan = std::numeric_limits<Acc>::quiet_NaN();
  constexpr Acc infinity = std::numeric_limits<Acc>::infinity();
  if (state.has_nan || !(state.max > -infinity)) return {nan, nan, nan, nan, nan, nan, nan, nan};
  const Acc rest = (state.ties - 1) + state.tail;
  const Acc runner_up = state.ties > 1 ? Acc(1) : exp_of(shifted(state.second, state.max, inverse_temperature));
  // Equal maxima may be infinite.
  const Acc logit_margin = state.ties > 1 ? Acc(0) : state.second - state.max;
  return summary_of<Acc>(state.max, rest, log1p_of(rest), runner_up, state.dot, logit_margin, inverse_temperature,
                         1 / inverse_temperature);
}

template <class V>
PRUNEFUSE_HD V utility(const RowSummary<V>& row, Utility which) {
  const int number = static_cast<int>(which);  // half the instructions of a GPU to compare
  if (number == static_cast<int>(Utility::kLeastConfidence)) return row.least_confidence;
  if (number == static_cast<int>(Utility::kMargin)) return row.margin;
  if (number == static_cast<int>(Utility::kEntropy)) return row.entropy;
  return number == static_cast<int>(Utility::kEnergy) ? row.energy : row.logit_margin;
}

// Where a kernel writes a row: `utilities` (count x rows, in the order of `which`) and/or the four statistics.
// Null pointers are skipped.
template <class Acc>
struct RowOutputs {
  Acc* utilities = nullptr;
  Utility which[kUtilityCount] = {};
  int count = 0;
  int64_t rows = 0;
  int64_t* argmax = nullptr;
  Acc* logsumexp = nullptr;
  Acc* p1 = nullptr;
  Acc* p2 = nullptr;
  // kStateValues x rows: where rows that come in pieces keep their states. If it is set, a row is merged into it and
  // nothing else is written.
  Acc* state = nullptr;
};

constexpr int64_t kStateValues = 6;

// Merges a piece of row `row` into its stored state.
template <class Acc>
PRUNEFUSE_HD void merge_into_stored(const RowOutputs<Acc>& out, int64_t row, const RowState<Acc>& piece,
                                    Acc inverse_temperature) {
  const auto at = [&](int value) -> Acc& { return out.state[value * out.rows + row]; };
  RowState<Acc> stored;
  stored.max = at(0);
  stored.second = at(1);
  stored.ties = at(2);
  stored.tail = at(3);
  stored.dot = at(4);
  stored.has_nan = at(5) != 0;
  stored = merge(stored, piece, inverse_temperature);
  at(0) = stored.max;
  at(1) = stored.second;
  at(2) = stored.ties;
  at(3) = stored.tail;
  at(4) = stored.dot;
  at(5) = stored.has_nan ? Acc(1) : Acc(0);
}

template <class Acc>
PRUNEFUSE_HD void write_row(const RowOutputs<Acc>& out, int64_t row, const RowState<Acc>& state,
                            Acc inverse_temperature) {
  if (out.state != nullptr) return merge_into_stored(out, row, state, inverse_temperature);
  const RowSummary<Acc> summary = summarize(state, inverse_temperature);
  PRUNEFUSE_UNROLL
  for (int k = 0; k < kUtilityCount; ++k) {
    if (k >= out.count) break;
    out.utilities[k * out.rows + row] = utility(summary, out.which[k]);
  }
  if (out.argmax != nullptr) {
    out.argmax[row] = summary.p1 == summary.p1 ? state.argmax : -1;
    out.logsumexp[row] = summary.logsumexp;
    out.p1[row] = summary.p1;
    out.p2[row] = summary.p2;
  }
}

// The pool as a kernel sees it: rows x classes with any strides (in elements).
struct Pool {
  const void* data;
  int64_t rows;
  int64_t classes;
  int64_t row_stride;
  int64_t class_stride;
  bool probabilities;  // the values are probabilities: their logarithms are the logits
};

}  // namespace prunefuse
