// What the CPU and the CUDA operators of training dynamics share: checking the arguments and laying out the results.
#pragma once

#include <optional>

#include "math/dynamics.h"
#include "scores.h"

namespace prunefuse {

// A rank-one or rank-two contiguous tensor of the state or of a batch, beside `other` on its device.
inline void check_part(const char* op, const char* name, const Tensor& tensor, int64_t rank,
                       torch::headeronly::ScalarType dtype, const char* other_name, const Tensor& other) {
  check_rank(op, name, tensor, rank);
  check_dtype(op, name, tensor, dtype);
  check_same_device(op, name, tensor, other_name, other);
  check(tensor.is_contiguous(), op, name, " must be contiguous");
}

inline void check_rows(const char* op, const char* name, const Tensor& tensor, int64_t rows) {
  check(tensor.size(0) == rows, op, name, " must have one entry for each of ", rows, " rows, got ", tensor.size(0));
}

// `run(pool, labels, out, stored)` is called once.
template <class Run>
Tensor dynamics(const Tensor& logits, const Tensor& labels, const Run& run) {
  using torch::headeronly::ScalarType;
  constexpr const char* op = "dynamics";
  const Pool pool = pool_of(op, logits, /*probabilities=*/false, 1.0);
  check_part(op, "labels", labels, 1, ScalarType::Long, "logits", logits);
  check_rows(op, "labels", labels, pool.rows);
  Tensor out = new_rows(logits, {kDynamicsCount, pool.rows}, result_dtype(logits));
  dispatch_floating(op, "logits", logits.scalar_type(), [&](auto stored) {
    using Acc = accumulate_t<decltype(stored)>;
    if (pool.rows > 0) {
      run(pool, static_cast<const int64_t*>(labels.data_ptr()), static_cast<Acc*>(out.data_ptr()), stored);
    }
  });
  return out;
}

// Rows of a batch and what is said of them: `labels` is null where there are none.
struct Claim {
  int32_t* seen;
  int64_t* rejected;
  const int64_t* indices;
  const int64_t* labels;
  int64_t samples;
  int64_t rows;
  int64_t classes;
};

// `run(claim, result)` is called once.
template <class Run>
Tensor claim(const Tensor& seen, const Tensor& rejected, const Tensor& indices, const std::optional<Tensor>& labels,
             int64_t classes, const Run& run) {
  using torch::headeronly::ScalarType;
  constexpr const char* op = "claim_";
  check_rank(op, "seen", seen, 1);
  check_part(op, "seen", seen, 1, ScalarType::Int, "indices", indices);
  check_part(op, "rejected", rejected, 1, ScalarType::Long, "indices", indices);
  check(rejected.size(0) == 1, op, "rejected must have one entry, got ", rejected.size(0));
  check_part(op, "indices", indices, 1, ScalarType::Long, "seen", seen);
  Claim batch = {static_cast<int32_t*>(seen.data_ptr()),
                 static_cast<int64_t*>(rejected.data_ptr()),
                 static_cast<const int64_t*>(indices.data_ptr()),
                 nullptr,
                 seen.size(0),
                 indices.size(0),
                 classes};
  if (labels.has_value()) {
    check_part(op, "labels", *labels, 1, ScalarType::Long, "seen", seen);
    check_rows(op, "labels", *labels, batch.rows);
    batch.labels = static_cast<const int64_t*>(labels->data_ptr());
  }
  Tensor result = torch::stable::new_empty(indices, {batch.rows}, ScalarType::Long);
  if (batch.rows > 0) run(batch, static_cast<int64_t*>(result.data_ptr()));
  return result;
}

// `run(pool, samples, kept, divergences, stored, kept_type)` is called once.
template <class Run>
Tensor divergence(const Tensor& kept, const Tensor& logits, const Tensor& samples, double epsilon, const Run& run) {
  using torch::headeronly::ScalarType;
  constexpr const char* op = "divergence_";
  const Pool pool = pool_of(op, logits, /*probabilities=*/false, 1.0);
  check_part(op, "kept", kept, 2, kept.scalar_type(), "logits", logits);
  check(kept.size(1) == pool.classes, op, "kept must have the classes of logits, ", pool.classes, ", got ",
        kept.size(1));
  check_part(op, "samples", samples, 1, ScalarType::Long, "logits", logits);
  check_rows(op, "samples", samples, pool.rows);
  check(epsilon >= 1e-30 && epsilon < 1, op, "epsilon must lie in [1e-30, 1), got ", epsilon);
  Tensor divergences = new_rows(logits, {pool.rows}, ScalarType::Double);
  dispatch_floating(op, "logits", logits.scalar_type(), [&](auto stored) {
    dispatch_floating(op, "kept", kept.scalar_type(), [&](auto kept_type) {
      if (pool.rows == 0) return;
      run(pool, static_cast<const int64_t*>(samples.data_ptr()), static_cast<decltype(kept_type)*>(kept.data_ptr()),
          static_cast<double*>(divergences.data_ptr()), stored, kept_type);
    });
  });
  return divergences;
}

// `run(history, window, values, samples, rows)` is called once.
template <class Run>
void push(const Tensor& ring, const Tensor& counts, const Tensor& sums, const Tensor& values, const Tensor& samples,
          const Window& window, const Run& run) {
  using torch::headeronly::ScalarType;
  constexpr const char* op = "push_";
  check_part(op, "ring", ring, 2, ScalarType::Double, "values", values);
  check_part(op, "counts", counts, 1, ScalarType::Long, "ring", ring);
  check_part(op, "sums", sums, 2, ScalarType::Double, "ring", ring);
  check_part(op, "values", values, 1, ScalarType::Double, "ring", ring);
  check_part(op, "samples", samples, 1, ScalarType::Long, "ring", ring);
  check_rows(op, "samples", samples, values.size(0));
  const int64_t count = ring.size(0);
  check(counts.size(0) == count, op, "counts must have the samples of ring, ", count, ", got ", counts.size(0));
  check(sums.size(0) == 2 && sums.size(1) == count, op, "sums must have shape (2, ", count, ")");
  check(window.length >= 1 && window.length <= ring.size(1), op, "window must lie in [1, ", ring.size(1), "], got ",
        window.length);
  check(window.divisor > 0, op, "divisor must be positive, got ", window.divisor);
  const History history = {static_cast<double*>(ring.data_ptr()), static_cast<int64_t*>(counts.data_ptr()),
                           static_cast<double*>(sums.data_ptr()), count, ring.size(1)};
  if (values.size(0) > 0) {
    run(history, window, static_cast<const double*>(values.data_ptr()), static_cast<const int64_t*>(samples.data_ptr()),
        values.size(0));
  }
}

}  // namespace prunefuse
