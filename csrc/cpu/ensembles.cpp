// The ensemble scorer on the CPU: rows shared out among torch's threads, the row loop of the instruction-set level in
// use. A row is done by one thread from its first pass to its last, so results do not depend on their number.
#include "../ensembles.h"

#include <torch/csrc/stable/library.h>

#include "isa.h"
#include "kernels/ensembles.h"

namespace prunefuse::cpu {
namespace {

constexpr int64_t kGrainValues = 32768;

// Calls body(begin, end, room) for parts of the rows, each with working memory of its own: one part per thread at most.
template <class Acc, class Body>
void for_rows(const Tensor& logits, int64_t rows, int64_t classes, int64_t passes, const Body& body) {
  const int64_t by_work = rows * classes * passes / kGrainValues + 1;
  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t parts = threads < by_work ? threads : by_work;
  const int64_t part = (rows + parts - 1) / parts;
  const Tensor room = new_rows(logits, {parts, ensemble_room(classes)}, result_dtype(logits));
  Acc* memory = static_cast<Acc*>(room.data_ptr());
  torch::stable::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p) {
      const int64_t end = (p + 1) * part < rows ? (p + 1) * part : rows;
      if (p * part < end) body(p * part, end, memory + p * ensemble_room(classes));
    }
  });
}

Tensor score_ensemble(const Tensor& logits, std::vector<int64_t> strategies, bool probabilities, double temperature) {
  const auto run = [&](const Passes& passes, const auto& out, auto inverse_temperature, auto stored) {
    using Stored = decltype(stored);
    const auto kernel = PRUNEFUSE_CHOOSE(ensemble_rows<Stored>);
    for_rows<accumulate_t<Stored>>(logits, passes.pool.rows, passes.pool.classes, passes.count,
                                   [&](int64_t begin, int64_t end, accumulate_t<Stored>* room) {
                                     kernel(passes, out, inverse_temperature, room, begin, end);
                                   });
  };
  return prunefuse::score_ensemble(logits, strategies, probabilities, temperature, run);
}

void ensemble_add(const Tensor& sums, const Tensor& votes, const Tensor& entropies, const Tensor& logits,
                  bool probabilities, double temperature) {
  const auto run = [&](const Pool& pool, const auto& state, auto inverse_temperature, auto stored) {
    using Stored = decltype(stored);
    const auto kernel = PRUNEFUSE_CHOOSE(ensemble_add_rows<Stored>);
    for_rows<accumulate_t<Stored>>(logits, pool.rows, pool.classes, 1,
                                   [&](int64_t begin, int64_t end, accumulate_t<Stored>* room) {
                                     kernel(pool, state, inverse_temperature, room, begin, end);
                                   });
  };
  prunefuse::ensemble_add(sums, votes, entropies, logits, probabilities, temperature, run);
}

}  // namespace
}  // namespace prunefuse::cpu

STABLE_TORCH_LIBRARY_IMPL(prunefuse, CPU, m) {
  m.impl("score_ensemble", TORCH_BOX(&prunefuse::cpu::score_ensemble));
  m.impl("ensemble_add_", TORCH_BOX(&prunefuse::cpu::ensemble_add));
}
