// Scores of groups of rows, each reduced to one number: labels of a sample, pixels of an image, boxes of an image.
//
// A row is one of row_state.h, or a label: one logit x, which stands for the two logits (x, 0), or one probability p,
// which stands for the two probabilities (p, 1 - p). So a label has every utility that a row has.
//
// A group's state is a sum (or a maximum, or how many rows are above a threshold) and how many rows counted. States of
// disjoint parts merge. A NaN among the rows that count makes the result NaN.
#pragma once

#include "row_state.h"

namespace prunefuse {

enum class Reduction : int64_t { kMean = 0, kMax = 1, kSum = 2, kShare = 3, kCount = 4 };
constexpr int64_t kReductionCount = 5;

// A label's two logits, from what is stored of it: a NaN, or a probability outside of [0, 1], is NaN in either.
template <class Acc>
struct LabelLogits {
  Acc present, absent;
};

template <class Acc>
PRUNEFUSE_HD LabelLogits<Acc> label_logits(Acc value, bool probabilities) {
  if (probabilities) return {log_of(value), log_of(1 - value)};
  return {value, Acc(0)};
}

template <class Acc>
PRUNEFUSE_HD RowSummary<Acc> summarize_label(const LabelLogits<Acc>& label, Acc inverse_temperature) {
  constexpr Acc nan = std::numeric_limits<Acc>::quiet_NaN();
  const Acc a = label.present, b = label.absent;
  if (a != a || b != b) return {nan, nan, nan, nan, nan, nan, nan, nan};
  const Acc max = a > b ? a : b, second = a > b ? b : a;
  const Acc z = shifted(second, max, inverse_temperature);
  const Acc e = exp_of(z);
  return summary_of<Acc>(max, e, log1p_unit_of(e), e, e * z, second - max, inverse_temperature,
                         1 / inverse_temperature);
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
};

}  // namespace prunefuse
