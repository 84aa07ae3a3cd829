// Scores of groups of rows, each reduced to one number: labels of a sample, pixels of an image, boxes of an image.
//
// A row is one of row_state.h, or a label: one logit x, which stands for the two logits (x, 0), or one probability p,
// whose logit is log p - log(1 - p). So a label has every utility that a row has. With t = -|x| / T and e = exp(t):
//   least confidence = e / (1 + e),  margin = twice that,  entropy = log(1 + e) - t e / (1 + e).
// These fall with |x|. So the largest of them is that of the least |x|, and those above a threshold have |x| up to some
// limit: neither needs an exponential for each label. Sums need one, but not a logarithm or a division: see LabelSums.
//
// A group's state is a sum (or a maximum, or how many rows are above a threshold) and how many rows counted. States of
// disjoint parts merge. A NaN among the rows that count makes the result NaN.
#pragma once

#include <type_traits>

#include "row_state.h"

namespace prunefuse {

enum class Reduction : int64_t { kMean = 0, kMax = 1, kSum = 2, kShare = 3, kCount = 4 };
constexpr int64_t kReductionCount = 5;

PRUNEFUSE_HD float magnitude_of(float x) { return ::fabsf(x); }
PRUNEFUSE_HD double magnitude_of(double x) { return ::fabs(x); }

// A probability's logit; NaN outside of [0, 1].
template <class Acc>
PRUNEFUSE_HD Acc label_logit(Acc value, bool probabilities) {
  return probabilities ? log_of(value) - log_of(1 - value) : value;
}

// Sums over labels as fractions of one denominator, the product of their 1 + e: rest is the product minus 1, mass the
// numerator of the sum of e / (1 + e), and dot that of the sum of t e / (1 + e). The logarithm of the product is the
// sum of the logarithms. Nothing is subtracted, so sums of labels that are all sure have full relative precision.
template <class V>
struct LabelSums {
  V rest, mass, dot;
};

// Labels that may be added: the product is below 2^16 then. Each adds at most four roundings of the sums.
constexpr int64_t kLabels = 16;

// `t` is in any unit, see totals_of.
template <class V>
PRUNEFUSE_HD void absorb(LabelSums<V>& sums, V e, V t) {
  const V factor = e + 1.0f, part = e * (sums.rest + 1.0f);
  sums.mass = sums.mass * factor + part;
  sums.dot = sums.dot * factor + part * t;
  sums.rest = sums.rest * factor + e;
}

template <class V>
struct LabelTotals {
  V confidence;  // sum of the least confidences
  V entropy;
};

// `log_sum` is log1p(rest), and t is in `unit` nats.
template <class V>
PRUNEFUSE_HD LabelTotals<V> totals_of(const LabelSums<V>& sums, V log_sum, V unit) {
  const V inverse = 1.0f / (sums.rest + 1.0f);
  return {sums.mass * inverse, log_sum - sums.dot * inverse * unit};
}

PRUNEFUSE_HD bool is_fraction(Utility which) {
  return which == Utility::kLeastConfidence || which == Utility::kMargin || which == Utility::kEntropy;
}

// Of the three that are sums of fractions.
template <class V>
PRUNEFUSE_HD V utility(const LabelTotals<V>& totals, Utility which) {
  if (which == Utility::kEntropy) return totals.entropy;
  return which == Utility::kMargin ? totals.confidence + totals.confidence : totals.confidence;
}

// log(1 + e) of a label.
template <class Acc>
PRUNEFUSE_HD Acc label_log_sum(Acc size, Acc inverse_temperature) {
  return log1p_unit_of(exp_of(shifted(-size, Acc(0), inverse_temperature)));
}

template <class Acc>
PRUNEFUSE_HD Acc label_energy(Acc x, bool probabilities, Acc inverse_temperature) {
  const Acc size = magnitude_of(x);
  // The larger of log p and log(1 - p), or of x and 0.
  const Acc top = probabilities ? -label_log_sum(size, Acc(1)) : (x > 0 ? x : Acc(0));
  return x == x ? -(top + label_log_sum(size, inverse_temperature) / inverse_temperature) : x;
}

// A utility of one label but the energy: it depends on the size of the logit alone.
template <class Acc>
PRUNEFUSE_HD Acc label_utility(Acc size, Utility which, Acc inverse_temperature) {
  if (which == Utility::kLogitMargin || size != size) return -size;
  const Acc t = shifted(-size, Acc(0), inverse_temperature), e = exp_of(t);
  return utility(totals_of<Acc>({e, e, e * t}, log1p_unit_of(e), Acc(1)), which);
}

// The largest |x| with a utility, one that falls with |x|, above the threshold; -1 if there is none.
template <class Acc>
Acc label_limit(Utility which, Acc threshold, Acc inverse_temperature) {
  using Bits = std::conditional_t<sizeof(Acc) == sizeof(float), int32_t, int64_t>;
  const auto above = [&](Bits bits) {
    return label_utility(bits_as<Acc>(bits), which, inverse_temperature) > threshold;
  };
  // Numbers that are not negative have the order of their bits.
  Bits yes = -1, no = bits_as<Bits>(std::numeric_limits<Acc>::infinity());
  if (above(no)) return std::numeric_limits<Acc>::infinity();
  while (no - yes > 1) {
    const Bits middle = yes + (no - yes) / 2;
    (above(middle) ? yes : no) = middle;
  }
  return yes < 0 ? Acc(-1) : bits_as<Acc>(yes);
}

// float64 whatever the rows are in: an image has a million of them.
struct GroupState {
  double value;
  int64_t rows = 0;
};

PRUNEFUSE_HD GroupState no_rows(Reduction reduction) {
  return {reduction == Reduction::kMax ? -std::numeric_limits<double>::infinity() : 0.0, 0};
}

// The larger one, NaN where either is.
PRUNEFUSE_HD double larger_or_nan(double a, double b) { return a > b || a != a ? a : b; }

PRUNEFUSE_HD GroupState merge(GroupState a, GroupState b, Reduction reduction) {
  return {reduction == Reduction::kMax ? larger_or_nan(a.value, b.value) : a.value + b.value, a.rows + b.rows};
}

// One row's utility as a state of its own.
template <class Acc>
PRUNEFUSE_HD GroupState state_of(Acc utility, Reduction reduction, Acc threshold) {
  if (reduction != Reduction::kShare && reduction != Reduction::kCount) return {static_cast<double>(utility), 1};
  if (utility != utility) return {static_cast<double>(utility), 1};
  return {utility > threshold ? 1.0 : 0.0, 1};
}

// `empty` where no row counts.
PRUNEFUSE_HD double result_of(const GroupState& state, Reduction reduction, double empty) {
  if (state.rows == 0) return empty;
  const bool per_row = reduction == Reduction::kMean || reduction == Reduction::kShare;
  return per_row ? state.value / static_cast<double>(state.rows) : state.value;
}

// Groups x rows x classes with any strides (in elements), or the rows of one pool cut at offsets.
struct Groups {
  Pool pool;  // of the first group; with offsets, of all
  int64_t count;
  int64_t group_stride;
  const int64_t* offsets;  // count + 1 of them, or null
  // Which rows count, as bytes that are 0 or 1; null: all. `shared` neighboring groups have the same.
  const uint8_t* mask;
  int64_t mask_group_stride, mask_row_stride, shared;
  Reduction reduction;
  double threshold;
  double empty;
  bool labels;  // every row is a label of one class
};

// Which utilities, in which order, and where they go: `count` x groups.
template <class Acc>
struct GroupOutputs {
  Acc* utilities;
  Utility which[kUtilityCount];
  int count;
  Acc limits[kUtilityCount];  // of labels above a threshold: the largest |x| with such a utility
};

}  // namespace prunefuse
