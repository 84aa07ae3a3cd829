// The scorer on the CPU: rows shared out among torch's threads, the row loop of the instruction-set level in use.
#include "../scores.h"

#include <torch/csrc/stable/library.h>

#include "isa.h"
#include "kernels/scores.h"

namespace prunefuse::cpu {
namespace {

// About this many values to a task: some ten microseconds of work, well above the cost of handing it out.
constexpr int64_t kGrainValues = 32768;

struct ScoreRows {
  template <class Stored>
  void operator()(const Pool& pool, const RowOutputs<accumulate_t<Stored>>& out,
                  accumulate_t<Stored> inverse_temperature, Stored) const {
    const auto kernel = PRUNEFUSE_CHOOSE(score_rows<Stored>);
    const int64_t grain = kGrainValues / pool.classes + 1;
    torch::stable::parallel_for(
        0, pool.rows, grain, [&](int64_t begin, int64_t end) { kernel(pool, out, inverse_temperature, begin, end); });
  }
};

Tensor score(const Tensor& logits, std::vector<int64_t> strategies, bool probabilities, double temperature) {
  return prunefuse::score(logits, strategies, probabilities, temperature, ScoreRows{});
}

std::tuple<Tensor, Tensor, Tensor, Tensor> statistics(const Tensor& logits, bool probabilities, double temperature) {
  return prunefuse::statistics(logits, probabilities, temperature, ScoreRows{});
}

void absorb_(Tensor state, const Tensor& logits, double temperature) {
  prunefuse::absorb_(state, logits, temperature, ScoreRows{});
}

}  // namespace
}  // namespace prunefuse::cpu

STABLE_TORCH_LIBRARY_IMPL(prunefuse, CPU, m) {
  m.impl("score", TORCH_BOX(&prunefuse::cpu::score));
  m.impl("absorb_", TORCH_BOX(&prunefuse::cpu::absorb_));
  m.impl("statistics", TORCH_BOX(&prunefuse::cpu::statistics));
}
