// Scores reduced over groups of rows on the CPU: many groups are shared out among torch's threads as they are, long
// ones in parts, whose states are merged in order. The cut depends on the shape alone, so results do not depend on
// threads.
#include "../groups.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "isa.h"
#include "kernels/groups.h"

namespace prunefuse::cpu {
namespace {

constexpr int64_t kGrainValues = 32768;
// Rows of a part come in whole tiles of the kernel.
constexpr int64_t kPartRows = 4096;

void check_offsets(const Groups& groups) {
  const int64_t* const offsets = groups.offsets;
  check(offsets[0] == 0 && offsets[groups.count] == groups.pool.rows, "score_groups",
        "offsets must begin with 0 and end with the rows of logits, ", groups.pool.rows, ", got ", offsets[0], " and ",
        offsets[groups.count]);
  for (int64_t g = 0; g < groups.count; ++g) {
    check(offsets[g] <= offsets[g + 1], "score_groups", "offsets must not fall, got ", offsets[g], " before ",
          offsets[g + 1]);
  }
}

struct ScoreGroups {
  template <class Stored>
  void operator()(const Groups& groups, const GroupOutputs<accumulate_t<Stored>>& out,
                  accumulate_t<Stored> inverse_temperature, Stored) const {
    if (groups.offsets != nullptr) check_offsets(groups);
    const int64_t rows = groups.pool.rows, classes = groups.pool.classes;
    const int64_t parts = groups.offsets == nullptr ? (rows + kPartRows - 1) / kPartRows : 1;
    if (parts <= 1) {
      const int64_t average = groups.offsets == nullptr ? rows : rows / groups.count + 1;
      const auto kernel = PRUNEFUSE_CHOOSE(score_groups<Stored>);
      torch::stable::parallel_for(
          0, groups.count, kGrainValues / (average * classes + 1) + 1,
          [&](int64_t begin, int64_t end) { kernel(groups, out, inverse_temperature, begin, end); });
      return;
    }
    const auto kernel = PRUNEFUSE_CHOOSE(score_part<Stored>);
    std::vector<GroupState> states(static_cast<size_t>(groups.count * parts * out.count));
    torch::stable::parallel_for(0, groups.count * parts, kGrainValues / (kPartRows * classes) + 1,
                                [&](int64_t begin, int64_t end) {
                                  for (int64_t unit = begin; unit < end; ++unit) {
                                    const int64_t from = unit % parts * kPartRows;
                                    kernel(groups, out, inverse_temperature, unit / parts, from,
                                           std::min(from + kPartRows, rows), states.data() + unit * out.count);
                                  }
                                });
    for (int64_t group = 0; group < groups.count; ++group) {
      for (int k = 0; k < out.count; ++k) {
        GroupState state = no_rows(groups.reduction);
        for (int64_t part = 0; part < parts; ++part) {
          const auto at = static_cast<size_t>((group * parts + part) * out.count + k);
          state = merge(state, states[at], groups.reduction);
        }
        out.utilities[k * groups.count + group] =
            static_cast<accumulate_t<Stored>>(result_of(state, groups.reduction, groups.empty));
      }
    }
  }
};

Tensor score_groups(const Tensor& logits, std::optional<Tensor> offsets, std::optional<Tensor> mask,
                    std::vector<int64_t> strategies, int64_t reduction, double threshold, double empty, bool labels,
                    bool probabilities, double temperature) {
  return prunefuse::score_groups(logits, offsets, mask, strategies, reduction, threshold, empty, labels, probabilities,
                                 temperature, ScoreGroups{});
}

}  // namespace
}  // namespace prunefuse::cpu

STABLE_TORCH_LIBRARY_IMPL(prunefuse, CPU, m) { m.impl("score_groups", TORCH_BOX(&prunefuse::cpu::score_groups)); }
