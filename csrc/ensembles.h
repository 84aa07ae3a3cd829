// What the CPU and the CUDA ensemble scorer share: checking the arguments and laying out the results.
#pragma once

#include "math/ensembles.h"
#include "scores.h"

namespace prunefuse {

// `run(passes, out, inverse_temperature, stored)` is called once with the outputs for logits' dtype.
template <class Run>
Tensor score_ensemble(const Tensor& logits, const std::vector<int64_t>& strategies, bool probabilities,
                      double temperature, const Run& run) {
  constexpr const char* op = "score_ensemble";
  check_rank(op, "logits", logits, 3);
  check(logits.size(0) > 0, op, "logits must have at least one pass, got none");
  check(logits.size(0) < (int64_t{1} << 24), op, "logits must have fewer than 2^24 passes, got ", logits.size(0));
  const Passes passes = {pool_of(op, torch::stable::select(logits, 0, 0), probabilities, temperature), logits.size(0),
                         logits.stride(0)};
  const int64_t count = static_cast<int64_t>(strategies.size());
  check(count >= 1 && count <= kEnsembleUtilityCount, op, "strategies must name 1 to ", kEnsembleUtilityCount,
        " strategies, got ", count);
  for (const int64_t strategy : strategies) {
    check(strategy >= 0 && strategy < kEnsembleUtilityCount, op, "strategies: no strategy has the number ", strategy);
  }
  Tensor utilities = new_rows(logits, {count, passes.pool.rows}, result_dtype(logits));
  dispatch_floating(op, "logits", logits.scalar_type(), [&](auto stored) {
    using Acc = accumulate_t<decltype(stored)>;
    EnsembleOutputs<Acc> out;
    out.utilities = static_cast<Acc*>(utilities.data_ptr());
    out.count = static_cast<int>(count);
    out.rows = passes.pool.rows;
    for (int k = 0; k < out.count; ++k) out.which[k] = static_cast<EnsembleUtility>(strategies[static_cast<size_t>(k)]);
    if (passes.pool.rows > 0) run(passes, out, static_cast<Acc>(1 / temperature), stored);
  });
  return utilities;
}

// `run(pool, state, inverse_temperature, stored)` is called once.
template <class Run>
void ensemble_add(const Tensor& sums, const Tensor& votes, const Tensor& entropies, const Tensor& logits,
                  bool probabilities, double temperature, const Run& run) {
  using torch::headeronly::ScalarType;
  constexpr const char* op = "ensemble_add_";
  const Pool pool = pool_of(op, logits, probabilities, temperature);
  const ScalarType dtype = result_dtype(logits);
  const auto check_state = [&](const char* name, const Tensor& tensor, int64_t rank, ScalarType expected) {
    check_rank(op, name, tensor, rank);
    check_dtype(op, name, tensor, expected);
    check_same_device(op, name, tensor, "logits", logits);
    check(tensor.is_contiguous(), op, name, " must be contiguous");
    check(tensor.size(0) == pool.rows && (rank == 1 || tensor.size(1) == pool.classes), op, name,
          " must have the rows and classes of logits, (", pool.rows, ", ", pool.classes, ")");
  };
  check_state("sums", sums, 2, dtype);
  check_state("votes", votes, 2, ScalarType::Int);
  check_state("entropies", entropies, 1, dtype);
  dispatch_floating(op, "logits", logits.scalar_type(), [&](auto stored) {
    using Acc = accumulate_t<decltype(stored)>;
    const EnsembleState<Acc> state = {static_cast<Acc*>(sums.data_ptr()), static_cast<int32_t*>(votes.data_ptr()),
                                      static_cast<Acc*>(entropies.data_ptr())};
    if (pool.rows > 0) run(pool, state, static_cast<Acc>(1 / temperature), stored);
  });
}

}  // namespace prunefuse
