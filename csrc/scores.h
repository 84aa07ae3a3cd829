// What the CPU and the CUDA scorer share: checking the arguments and laying out the results.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>
#include <vector>

#include "dispatch.h"
#include "math/row_state.h"

namespace prunefuse {

using torch::stable::Tensor;

inline Pool pool_of(const char* op, const Tensor& logits, bool probabilities, double temperature) {
  check_rank(op, "logits", logits, 2);
  check(logits.size(1) > 0, op, "logits must have at least one class, got shape (", logits.size(0), ", 0)");
  check(temperature > 0 && temperature <= std::numeric_limits<double>::max(), op,
        "temperature must be positive and finite, got ", temperature);
  return {logits.data_ptr(), logits.size(0), logits.size(1), logits.stride(0), logits.stride(1), probabilities};
}

inline torch::headeronly::ScalarType result_dtype(const Tensor& logits) {
  using torch::headeronly::ScalarType;
  return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Tensor new_rows(const Tensor& like, std::vector<int64_t> sizes, torch::headeronly::ScalarType dtype) {
  return torch::stable::new_empty(like, sizes, dtype);
}

// `run(pool, out, inverse_temperature, stored)` is called once with the outputs for logits' dtype.
template <class Run>
Tensor score(const Tensor& logits, const std::vector<int64_t>& strategies, bool probabilities, double temperature,
             const Run& run) {
  const Pool pool = pool_of("score", logits, probabilities, temperature);
  const int64_t count = static_cast<int64_t>(strategies.size());
  check(count >= 1 && count <= kUtilityCount, "score", "strategies must name 1 to ", kUtilityCount, " strategies, got ",
        count);
  for (const int64_t strategy : strategies) {
    check(strategy >= 0 && strategy < kUtilityCount, "score", "strategies: no strategy has the number ", strategy);
  }
  Tensor utilities = new_rows(logits, {count, pool.rows}, result_dtype(logits));
  dispatch_floating("score", "logits", logits.scalar_type(), [&](auto stored) {
    using Acc = accumulate_t<decltype(stored)>;
    RowOutputs<Acc> out;
    out.utilities = static_cast<Acc*>(utilities.data_ptr());
    out.count = static_cast<int>(count);
    out.rows = pool.rows;
    for (int k = 0; k < out.count; ++k) out.which[k] = static_cast<Utility>(strategies[static_cast<size_t>(k)]);
    if (pool.rows > 0) run(pool, out, static_cast<Acc>(1 / temperature), stored);
  });
  return utilities;
}

template <class Run>
std::tuple<Tensor, Tensor, Tensor, Tensor> statistics(const Tensor& logits, bool probabilities, double temperature,
                                                      const Run& run) {
  using torch::headeronly::ScalarType;
  const Pool pool = pool_of("statistics", logits, probabilities, temperature);
  const ScalarType dtype = result_dtype(logits);
  Tensor argmax = new_rows(logits, {pool.rows}, ScalarType::Long);
  Tensor logsumexp = new_rows(logits, {pool.rows}, dtype);
  Tensor p1 = new_rows(logits, {pool.rows}, dtype);
  Tensor p2 = new_rows(logits, {pool.rows}, dtype);
  dispatch_floating("statistics", "logits", logits.scalar_type(), [&](auto stored) {
    using Acc = accumulate_t<decltype(stored)>;
    RowOutputs<Acc> out;
    out.argmax = static_cast<int64_t*>(argmax.data_ptr());
    out.logsumexp = static_cast<Acc*>(logsumexp.data_ptr());
    out.p1 = static_cast<Acc*>(p1.data_ptr());
    out.p2 = static_cast<Acc*>(p2.data_ptr());
    out.rows = pool.rows;
    if (pool.rows > 0) run(pool, out, static_cast<Acc>(1 / temperature), stored);
  });
  return {argmax, logsumexp, p1, p2};
}

template <class Run>
void absorb_(const Tensor& state, const Tensor& logits, double temperature, const Run& run) {
  const Pool pool = pool_of("absorb_", logits, /*probabilities=*/false, temperature);
  check(state.dim() == 2 && state.size(0) == kStateValues && state.size(1) == pool.rows && state.is_contiguous(),
        "absorb_", "state must be contiguous, of shape (", kStateValues, ", ", pool.rows, ")");
  check_dtype("absorb_", "state", state, result_dtype(logits));
  check_same_device("absorb_", "state", state, "logits", logits);
  dispatch_floating("absorb_", "logits", logits.scalar_type(), [&](auto stored) {
    using Acc = accumulate_t<decltype(stored)>;
    RowOutputs<Acc> out;
    out.state = static_cast<Acc*>(state.data_ptr());
    out.rows = pool.rows;
    if (pool.rows > 0) run(pool, out, static_cast<Acc>(1 / temperature), stored);
  });
}

}  // namespace prunefuse
