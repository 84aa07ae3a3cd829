// Labels reduced in lanes (math/groups.h): either the labels of one group side by side, or a group in every lane.
//
// Vector instructions per vector of labels, AVX-512: 22 for sums (12 of them the exponential) and some 3 for each
// lane's logarithm and division every kLabels; 5 for a maximum, 6 for what is above a threshold.
#pragma once

#include "../../math/groups.h"
#include "rows.h"

namespace prunefuse::cpu::PRUNEFUSE_ISA {
namespace {

// What is asked of labels.
struct LabelWork {
  const GroupOutputs<float>& out;
  Reduction reduction;
  bool probabilities;
  float inverse_temperature;
};

// Of what every lane has met, each utility's sum, maximum or count.
struct LabelLanes {
  floats values[kUtilityCount];
};

inline floats size_lanes(floats x) { return bits_as<floats>(bits_as<ints>(x) & 0x7fffffff); }

// -size / T, in units of ln 2; a NaN stays.
inline floats label_exponent(floats size, float inverse_temperature) {
  return larger(broadcast(kLowestLog2), size * (inverse_temperature * -kLog2E));
}

inline floats energy_lanes(floats x, const LabelWork& work) {
  const auto log_sum_at = [&](float inverse_temperature) {
    return log1p_unit(exp2_of<floats, ints>(label_exponent(size_lanes(x), inverse_temperature)));
  };
  const floats top = work.probabilities ? -log_sum_at(1.0f) : larger(floats{}, x);
  const floats energy = -(top + log_sum_at(work.inverse_temperature) * (1.0f / work.inverse_temperature));
  return select(x == x, energy, x);
}

// Sums, by lane, of what is a sum of fractions. take(i, use) calls use(logits, which of these count).
template <class Take>
LabelTotals<floats> label_totals(const LabelWork& work, int64_t count, const Take& take) {
  bool logarithm = false;
  for (int k = 0; k < work.out.count; ++k) logarithm |= work.out.which[k] == Utility::kEntropy;
  LabelTotals<floats> totals{};
  for (int64_t begin = 0; begin < count; begin += kLabels) {
    LabelSums<floats> sums{};
    for (int64_t i = begin; i < count && i < begin + kLabels; ++i) {
      take(i, [&](floats x, ints counts) {
        // Infinite logits add nothing.
        const floats size = select(counts, size_lanes(x), broadcast(std::numeric_limits<float>::infinity()));
        const floats t = label_exponent(size, work.inverse_temperature);
        absorb(sums, exp2_of<floats, ints>(t), t);
      });
    }
    // A NaN among the exponents is one in `dot`, and no number in particular elsewhere.
    const ints bad = sums.dot != sums.dot;
    sums.rest = zero_where(bad, sums.rest);
    const floats log_sum = logarithm ? log1p_nonnegative<floats, ints>(sums.rest) : floats{};
    const LabelTotals<floats> some = totals_of(sums, log_sum, broadcast(kLn2));
    totals.confidence += select(bad, sums.dot, some.confidence);
    totals.entropy += some.entropy;
  }
  return totals;
}

template <class Take>
LabelLanes sum_labels(const LabelWork& work, int64_t count, const Take& take) {
  LabelLanes lanes{};
  LabelTotals<floats> totals;
  bool known = false;
  for (int k = 0; k < work.out.count; ++k) {
    const Utility which = work.out.which[k];
    if (is_fraction(which)) {
      if (!known) totals = label_totals(work, count, take);
      known = true;
      lanes.values[k] = utility(totals, which);
      continue;
    }
    floats total{};
    for (int64_t i = 0; i < count; ++i) {
      take(i, [&](floats x, ints counts) {
        const floats one = which == Utility::kEnergy ? energy_lanes(x, work) : -size_lanes(x);
        total += zero_where(~counts, one);
      });
    }
    lanes.values[k] = total;
  }
  return lanes;
}

// The largest, or how many are above the threshold.
template <class Take>
LabelLanes compare_labels(const LabelWork& work, float threshold, int64_t count, const Take& take) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  LabelLanes lanes{};
  ints bad{};
  floats least = broadcast(infinity);
  for (int64_t i = 0; i < count; ++i) {
    take(i, [&](floats x, ints counts) {
      bad |= (x != x) & counts;
      // Of a NaN and a number, the number.
      least = smaller(select(counts, size_lanes(x), broadcast(infinity)), least);
    });
  }
  const floats t = label_exponent(least, work.inverse_temperature), e = exp2_of<floats, ints>(t);
  const LabelTotals<floats> totals = totals_of<floats>({e, e, e * t}, log1p_unit(e), broadcast(kLn2));
  for (int k = 0; k < work.out.count; ++k) {
    const Utility which = work.out.which[k];
    floats value = which == Utility::kLogitMargin ? -least : utility(totals, which);
    if (work.reduction != Reduction::kMax) {
      ints above{};
      const float limit = work.out.limits[k];
      for (int64_t i = 0; i < count; ++i) {
        take(i, [&](floats x, ints counts) {
          const ints is_above = which == Utility::kEnergy ? energy_lanes(x, work) > threshold : size_lanes(x) <= limit;
          above -= is_above & counts;
        });
      }
      value = __builtin_convertvector(above, floats);
    } else if (which == Utility::kEnergy) {
      value = broadcast(-infinity);
      for (int64_t i = 0; i < count; ++i) {
        take(i, [&](floats x, ints counts) {
          value = larger(select(counts, energy_lanes(x, work), broadcast(-infinity)), value);
        });
      }
    }
    lanes.values[k] = select(bad, broadcast(std::numeric_limits<float>::quiet_NaN()), value);
  }
  return lanes;
}

template <class Take>
LabelLanes reduce_labels(const LabelWork& work, float threshold, int64_t count, const Take& take) {
  const bool sums = work.reduction == Reduction::kMean || work.reduction == Reduction::kSum;
  return sums ? sum_labels(work, count, take) : compare_labels(work, threshold, count, take);
}

// A group's states of `rows` labels side by side; `counts` says which count, null: all.
template <class Stored>
void add_labels(const LabelWork& work, float threshold, const Stored* x, const int32_t* counts, int64_t rows,
                GroupState* states) {
  const int64_t whole = rows / kLanes, rest = rows % kLanes;
  const ints inside = numbered(all_lanes{}) < static_cast<int32_t>(rest);
  const auto reduce = [&](const auto& counts_at) {
    return reduce_labels(work, threshold, whole + (rest > 0), [&](int64_t i, const auto& use) {
      if (i < whole) {
        use(load(x + i * kLanes), counts_at(i));
      } else {
        use(load_first(x + i * kLanes, rest, 0.0f), counts_at(i) & inside);
      }
    });
  };
  int64_t counted = rows;
  LabelLanes lanes;
  if (counts == nullptr) {
    lanes = reduce([](int64_t) { return ints{} - 1; });
  } else {
    lanes = reduce([&](int64_t i) { return load(counts + i * kLanes); });
    counted = 0;
    for (int64_t j = 0; j < rows; ++j) counted -= counts[j];
  }
  for (int k = 0; k < work.out.count; ++k) {
    const floats values = lanes.values[k];
    float value = std::numeric_limits<float>::quiet_NaN();
    if (!any(values != values)) value = work.reduction == Reduction::kMax ? largest(values) : sum(values);
    states[k] = merge(states[k], GroupState{static_cast<double>(value), counted}, work.reduction);
  }
}

// Probabilities as logits, where they are.
void take_label_logits(float* x, int64_t count) {
  for (int64_t j = 0; j < count; j += kLanes) {
    const int64_t left = count - j < kLanes ? count - j : kLanes;
    const floats p = load_first(x + j, left, 0.5f);
    store_first(x + j, log_nonnegative<floats, ints>(p) - log_nonnegative<floats, ints>(1.0f - p), left);
  }
}

// Groups begin..end of at most kShortRow labels each: a group in every lane.
template <class Stored>
void score_short_groups(const Groups& groups, const LabelWork& work, int64_t begin, int64_t end) {
  const int64_t labels = groups.pool.rows;
  const Pool across = {groups.pool.data, groups.count, labels, groups.group_stride, groups.pool.row_stride, false};
  alignas(64) float values[kShortRow * kLanes];
  alignas(64) int32_t counts[kShortRow * kLanes];
  const auto* const data = static_cast<const Stored*>(groups.pool.data);
  for (int64_t group = begin; group < end; group += kLanes) {
    const int64_t lanes = end - group < kLanes ? end - group : kLanes;
    gather_group<Stored>(across, group, lanes, values);
    if (work.probabilities) take_label_logits(values, labels * kLanes);
    ints rows = ints{} + static_cast<int32_t>(labels);
    if (groups.mask != nullptr) {
      rows = ints{};
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const int64_t from = (group + (lane < lanes ? lane : lanes - 1)) / groups.shared;
        const uint8_t* const mask = groups.mask + from * groups.mask_group_stride;
        for (int64_t i = 0; i < labels; ++i) counts[i * kLanes + lane] = -(mask[i * groups.mask_row_stride] != 0);
      }
      for (int64_t i = 0; i < labels; ++i) rows -= load(counts + i * kLanes);
    }
    // Asks for what comes two rounds later.
    const Stored* const next = data + (group + 2 * kLanes) * groups.group_stride;
    const auto reduce = [&](const auto& counts_at) {
      return reduce_labels(work, static_cast<float>(groups.threshold), labels, [&](int64_t i, const auto& use) {
        __builtin_prefetch(next + i * kLanes);
        use(load(values + i * kLanes), counts_at(i));
      });
    };
    const LabelLanes found = groups.mask == nullptr ? reduce([](int64_t) { return ints{} - 1; })
                                                    : reduce([&](int64_t i) { return load(counts + i * kLanes); });
    const bool per_row = groups.reduction == Reduction::kMean || groups.reduction == Reduction::kShare;
    for (int k = 0; k < work.out.count; ++k) {
      const floats value = per_row ? found.values[k] / __builtin_convertvector(rows, floats) : found.values[k];
      write_lanes(work.out.utilities + k * groups.count + group,
                  select(rows == 0, broadcast(static_cast<float>(groups.empty)), value), lanes);
    }
  }
}

}  // namespace
}  // namespace prunefuse::cpu::PRUNEFUSE_ISA
