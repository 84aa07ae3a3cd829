// Scores reduced over groups: any dtype, layout and mask, labels and rows, fixed and ragged groups, whole and in parts.
#include "../cpu/kernels/groups.h"

#include <algorithm>

#include "../cpu/isa.h"
#include "truth.h"

namespace prunefuse::fuzz {
namespace {

// What a group comes to, and what that may be off by.
struct Expected {
  long double value;
  long double allowed = 0;
  int64_t rows = 0;
};

template <class Acc>
Expected expected_of(const std::vector<RowTruth>& rows, int64_t which, const Groups& groups, double temperature) {
  const auto reduction = groups.reduction;
  const bool counted = reduction == Reduction::kShare || reduction == Reduction::kCount;
  Expected result = {reduction == Reduction::kMax ? -std::numeric_limits<long double>::infinity() : 0.0L};
  for (const RowTruth& row : rows) {
    const long double u = static_cast<long double>(static_cast<Acc>(row.utilities[which]));
    long double off = tolerance_of<Acc>(row) * std::fmax(1.0L, static_cast<long double>(temperature));
    if (std::isfinite(u)) off += 16 * std::numeric_limits<Acc>::epsilon() * std::fabs(u);
    ++result.rows;
    if (counted) {
      const long double gap = std::fabs(u - static_cast<long double>(groups.threshold));
      result.value += std::isnan(u) ? u : (u > static_cast<long double>(groups.threshold) ? 1.0L : 0.0L);
      result.allowed += gap <= off ? 1.0L : 0.0L;
    } else if (reduction == Reduction::kMax) {
      result.value = std::isnan(u) || std::isnan(result.value) ? u + result.value : std::fmax(result.value, u);
      result.allowed = std::fmax(result.allowed, off);
    } else {
      result.value += u;
      result.allowed += off;
    }
  }
  if (result.rows == 0) return {static_cast<long double>(groups.empty)};
  if (reduction == Reduction::kMean || reduction == Reduction::kShare) {
    result.value /= static_cast<long double>(result.rows);
    result.allowed /= static_cast<long double>(result.rows);
  }
  result.allowed += 4 * std::numeric_limits<Acc>::epsilon() * std::fmax(1.0L, std::fabs(result.value));
  return result;
}

template <class Stored>
RowTruth truth_of_label(const Array<Stored>& array, int64_t group, int64_t row, bool probabilities,
                        double temperature) {
  const long double x = value_of(array.memory[array.position(group, row, 0)]);
  if (!probabilities) return truth_of_row({x, 0.0L}, false, temperature);
  return truth_of_row({x, 1.0L - x}, true, temperature);
}

}  // namespace

void group_case(Random& random) {
  for_any_dtype(random, [&](auto stored) {
    using Stored = decltype(stored);
    using Acc = accumulate_t<Stored>;
    const bool labels = random.once_in(2), probabilities = random.once_in(4), ragged = random.once_in(3);
    const double temperature = random_temperature(random);
    const int64_t count = ragged ? 1 : random.below(4) + 1;
    const int64_t rows = random.once_in(20) ? 500 + random.below(50) : random_rows(random);
    const Array<Stored> array(random, Numbers(random, probabilities), count, rows,
                              labels ? 1 : std::min<int64_t>(random_classes(random), rows > 100 ? 5 : 2000));
    Groups groups = {};
    groups.pool = {array.data(), rows, array.layout.sizes[2], array.layout.strides[1], array.layout.strides[2],
                   probabilities};
    groups.count = count;
    groups.group_stride = array.layout.strides[0];
    groups.shared = 1;
    groups.reduction = static_cast<Reduction>(random.below(kReductionCount));
    groups.threshold = random.uniform();
    groups.empty = -7;
    groups.labels = labels;
    std::vector<uint8_t> mask;
    std::vector<int64_t> offsets;
    if (ragged) {
      offsets = random.cuts(rows);
      if (random.once_in(2)) offsets.insert(offsets.begin(), 0);
      groups.offsets = offsets.data();
      groups.count = static_cast<int64_t>(offsets.size()) - 1;
    } else if (random.once_in(2)) {
      for (int64_t i = 0; i < count * rows; ++i) mask.push_back(random.once_in(3) ? 0 : 1);
      groups.mask = mask.data();
      groups.mask_group_stride = rows;
      groups.mask_row_stride = 1;
    }
    std::vector<std::vector<RowTruth>> truth(static_cast<size_t>(groups.count));
    for (int64_t g = 0; g < groups.count; ++g) {
      const int64_t begin = ragged ? offsets[static_cast<size_t>(g)] : 0;
      const int64_t end = ragged ? offsets[static_cast<size_t>(g) + 1] : rows;
      for (int64_t i = begin; i < end; ++i) {
        if (!mask.empty() && mask[static_cast<size_t>(g * rows + i)] == 0) continue;
        const int64_t pass = ragged ? 0 : g;
        truth[static_cast<size_t>(g)].push_back(labels ? truth_of_label(array, pass, i, probabilities, temperature)
                                                       : truth_of(array, pass, i, probabilities, temperature));
      }
    }
    GroupOutputs<Acc> out = {};
    std::vector<Acc> results(static_cast<size_t>(3 * groups.count), Acc(-9));
    out.utilities = results.data();
    out.count = 3;  // sums of the others may be of numbers beyond the type
    const auto inverse = static_cast<Acc>(1 / temperature);
    for (int k = 0; k < out.count; ++k) {
      out.which[k] = static_cast<Utility>(k);
      out.limits[k] = label_limit(out.which[k], static_cast<Acc>(groups.threshold), inverse);
    }
    for_levels([&] {
      using namespace cpu;
      const auto whole = PRUNEFUSE_CHOOSE(score_groups<Stored>);
      const auto part = PRUNEFUSE_CHOOSE(score_part<Stored>);
      const std::vector<int64_t> cuts = random.cuts(groups.count);
      for (size_t i = 1; i < cuts.size(); ++i) whole(groups, out, inverse, cuts[i - 1], cuts[i]);
      for (int64_t g = 0; g < groups.count; ++g) {
        GroupState states[kUtilityCount];
        for (auto& state : states) state = no_rows(groups.reduction);
        const std::vector<int64_t> pieces = random.cuts(rows);
        for (size_t i = 1; i < pieces.size() && !ragged; ++i) {
          GroupState found[kUtilityCount];
          part(groups, out, inverse, g, pieces[i - 1], pieces[i], found);
          for (int k = 0; k < out.count; ++k) states[k] = merge(states[k], found[k], groups.reduction);
        }
        for (int k = 0; k < out.count; ++k) {
          const Expected expected = expected_of<Acc>(truth[static_cast<size_t>(g)], k, groups, temperature);
          const Acc got = results[static_cast<size_t>(k * groups.count + g)];
          expect(near(got, expected.value, expected.allowed), "utility ", k, " of group ", g, ": ", got, ", not ",
                 expected.value);
          if (ragged || rows == 0) continue;
          const auto merged = static_cast<Acc>(result_of(states[k], groups.reduction, groups.empty));
          expect(near(merged, expected.value, expected.allowed), "utility ", k, " of group ", g, " in parts: ", merged,
                 ", not ", expected.value);
        }
      }
    });
  });
}

}  // namespace prunefuse::fuzz
