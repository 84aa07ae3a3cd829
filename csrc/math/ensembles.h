// What an ensemble's passes say about one row: sums of probabilities, votes and entropies, and the utilities they give.
//
// With p_s the probabilities of pass s of S and p the mean over s: predictive entropy H(p), mean entropy mean_s H(p_s),
// BALD their difference (never negative but for rounding, which is cut off at 0), and the variation ratio
// 1 - (votes for the modal class) / S, where a pass votes for its largest probability, the lower class of equals.
//
// H(p) comes from the sums q_j alone, scaled by the largest of them: with e_j = q_j / max q and `rest` the sum of e
// without the maximum's own 1, H = log1p(rest) - sum(e_j ln e_j) / (1 + rest), which is precise where p is saturated.
// A row that has no distribution in one pass has none: its entropy is NaN, and so is every utility.
#pragma once

#include "row_state.h"

namespace prunefuse {

enum class EnsembleUtility : int64_t { kBald = 0, kPredictiveEntropy = 1, kVariationRatio = 2, kMeanEntropy = 3 };
constexpr int64_t kEnsembleUtilityCount = 4;

// The logits as a kernel sees them: `pool` is the first of `count` passes that stand `stride` elements apart.
struct Passes {
  Pool pool;
  int64_t count;
  int64_t stride;
};

// Sums over passes: probabilities and votes (rows x classes, contiguous), entropies (rows).
template <class Acc>
struct EnsembleState {
  Acc* sums = nullptr;
  int32_t* votes = nullptr;
  Acc* entropies = nullptr;
};

// Where a kernel writes: utilities (count x rows), in the order of `which`.
template <class Acc>
struct EnsembleOutputs {
  Acc* utilities = nullptr;
  EnsembleUtility which[kEnsembleUtilityCount] = {};
  int count = 0;
  int64_t rows = 0;
};

// `V` is one row's number or a vector with a row in every lane. `entropy_sum` and `modal_votes` are over `passes`
// passes; a NaN among the entropies makes every result NaN.
template <class V>
struct EnsembleSummary {
  V bald, predictive_entropy, variation_ratio, mean_entropy;
};

template <class Acc>
PRUNEFUSE_HD EnsembleSummary<Acc> summarize_ensemble(Acc predictive_entropy, Acc entropy_sum, Acc modal_votes,
                                                     Acc passes) {
  const Acc mean = entropy_sum / passes;
  if (mean != mean) return {mean, mean, mean, mean};
  const Acc gain = predictive_entropy - mean;
  return {gain > 0 ? gain : Acc(0), predictive_entropy, (passes - modal_votes) / passes, mean};
}

template <class V>
PRUNEFUSE_HD V ensemble_utility(const EnsembleSummary<V>& row, EnsembleUtility which) {
  if (which == EnsembleUtility::kBald) return row.bald;
  if (which == EnsembleUtility::kPredictiveEntropy) return row.predictive_entropy;
  return which == EnsembleUtility::kVariationRatio ? row.variation_ratio : row.mean_entropy;
}

template <class Acc>
PRUNEFUSE_HD void write_ensemble_row(const EnsembleOutputs<Acc>& out, int64_t row,
                                     const EnsembleSummary<Acc>& summary) {
  for (int k = 0; k < out.count; ++k) out.utilities[k * out.rows + row] = ensemble_utility(summary, out.which[k]);
}

// ln(e) made safe for e = 0: a finite number, so that e ln e is 0.
template <class Acc>
PRUNEFUSE_HD Acc log_share(Acc e) {
  return e > 0 ? log_of(e) : Acc(0);
}

// The entropy of a distribution from its unnormalized shares, which come one by one: as the sums above, relative to the
// largest so far.
template <class Acc>
struct ShareState {
  Acc max = 0;
  Acc ties = 0;
  Acc tail = 0;
  Acc dot = 0;
};

template <class Acc>
PRUNEFUSE_HD void raise(ShareState<Acc>& state, Acc max) {
  const Acc e = state.max / max, mass = state.ties + state.tail;
  state = {max, 0, e * mass, e * (state.dot + log_share(e) * mass)};
}

template <class Acc>
PRUNEFUSE_HD void absorb(ShareState<Acc>& state, Acc share) {
  if (share > state.max) raise(state, share);
  if (share == state.max) {
    state.ties += 1;
  } else {
    const Acc e = share / state.max;
    state.tail += e;
    state.dot += e * log_share(e);
  }
}

template <class Acc>
PRUNEFUSE_HD ShareState<Acc> merge(ShareState<Acc> a, ShareState<Acc> b) {
  const Acc ties = a.max == b.max ? a.ties + b.ties : a.max > b.max ? a.ties : b.ties;
  const Acc max = a.max > b.max ? a.max : b.max;
  if (a.max < max) raise(a, max);
  if (b.max < max) raise(b, max);
  return {max, ties, a.tail + b.tail, a.dot + b.dot};
}

template <class Acc>
PRUNEFUSE_HD Acc entropy_of(const ShareState<Acc>& state) {
  const Acc rest = (state.ties - 1) + state.tail;
  return log1p_of(rest) - state.dot / (rest + 1);
}

}  // namespace prunefuse
