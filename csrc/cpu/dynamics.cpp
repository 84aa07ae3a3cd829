// Training dynamics on the CPU: rows shared out among torch's threads. What a batch says of samples is checked whole
// before anything is written.
#include "../dynamics.h"

#include <torch/csrc/stable/library.h>

#include "isa.h"
#include "kernels/dynamics.h"

namespace prunefuse::cpu {
namespace {

constexpr int64_t kGrainValues = 32768;

Tensor dynamics(const Tensor& logits, const Tensor& labels) {
  return prunefuse::dynamics(logits, labels, [](const Pool& pool, const int64_t* of_row, auto* out, auto stored) {
    using Stored = decltype(stored);
    for (int64_t row = 0; row < pool.rows; ++row) {
      check(of_row[row] >= 0 && of_row[row] < pool.classes, "dynamics", "labels must lie in [0, ", pool.classes,
            "), got ", of_row[row], " in row ", row);
    }
    const auto kernel = PRUNEFUSE_CHOOSE(dynamics_rows<Stored>);
    torch::stable::parallel_for(0, pool.rows, kGrainValues / pool.classes + 1,
                                [&](int64_t begin, int64_t end) { kernel(pool, of_row, out, begin, end); });
  });
}

Tensor claim_(Tensor seen, Tensor rejected, const Tensor& indices, std::optional<Tensor> labels, int64_t classes) {
  const auto run = [](const Claim& batch, int64_t* result) {
    for (int64_t row = 0; batch.labels != nullptr && row < batch.rows; ++row) {
      check(batch.labels[row] >= 0 && batch.labels[row] < batch.classes, "claim_", "labels must lie in [0, ",
            batch.classes, "), got ", batch.labels[row], " in row ", row);
    }
    for (int64_t row = 0; row < batch.rows; ++row) {
      check(batch.indices[row] >= 0 && batch.indices[row] < batch.samples, "claim_", "indices must lie in [0, ",
            batch.samples, "), got ", batch.indices[row], " in row ", row);
    }
    for (int64_t row = 0; row < batch.rows; ++row) {
      int32_t& seen_before = batch.seen[batch.indices[row]];
      if (seen_before != 0) {
        for (int64_t undone = 0; undone < row; ++undone) batch.seen[batch.indices[undone]] = 0;
        check(false, "claim_", "indices must name a sample once in an epoch, got ", batch.indices[row],
              " again in row ", row);
      }
      seen_before = 1;
      result[row] = batch.indices[row];
    }
  };
  return prunefuse::claim(seen, rejected, indices, labels, classes, run);
}

void check_samples(const char* op, const int64_t* samples, int64_t rows, int64_t count) {
  for (int64_t row = 0; row < rows; ++row) {
    check(samples[row] >= -1 && samples[row] < count, op, "samples must lie in [-1, ", count, "), got ", samples[row],
          " in row ", row);
  }
}

Tensor divergence_(Tensor kept, const Tensor& logits, const Tensor& samples, double epsilon) {
  const auto run = [&](const Pool& pool, const int64_t* of_row, auto* logs, double* divergences, auto stored, auto of) {
    using Stored = decltype(stored);
    using Kept = decltype(of);
    using Acc = wider_t<Stored, Kept>;
    check_samples("divergence_", of_row, pool.rows, kept.size(0));
    const auto kernel = PRUNEFUSE_CHOOSE(divergence_rows<Stored, Kept>);
    const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
    const int64_t by_work = pool.rows * pool.classes / kGrainValues + 1;
    const int64_t parts = threads < by_work ? threads : by_work, part = (pool.rows + parts - 1) / parts;
    const auto dtype = sizeof(Acc) == 8 ? torch::headeronly::ScalarType::Double : torch::headeronly::ScalarType::Float;
    const Tensor room = new_rows(logits, {parts, pool.classes}, dtype);
    Acc* const memory = static_cast<Acc*>(room.data_ptr());
    torch::stable::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
      for (int64_t p = first; p < last; ++p) {
        const int64_t end = (p + 1) * part < pool.rows ? (p + 1) * part : pool.rows;
        kernel(pool, of_row, logs, epsilon, divergences, memory + p * pool.classes, p * part, end);
      }
    });
  };
  return prunefuse::divergence(kept, logits, samples, epsilon, run);
}

void push_(Tensor ring, Tensor counts, Tensor sums, const Tensor& values, const Tensor& samples, int64_t window,
           double divisor, double keep, double gain) {
  const auto run = [](const History& history, const Window& of, const double* of_row, const int64_t* sample_of,
                      int64_t rows) {
    check_samples("push_", sample_of, rows, history.samples);
    torch::stable::parallel_for(0, rows, kGrainValues / of.length + 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        if (sample_of[row] >= 0) push_value(history, of, sample_of[row], of_row[row]);
      }
    });
  };
  prunefuse::push(ring, counts, sums, values, samples, {window, divisor, keep, gain}, run);
}

}  // namespace
}  // namespace prunefuse::cpu

STABLE_TORCH_LIBRARY_IMPL(prunefuse, CPU, m) {
  m.impl("dynamics", TORCH_BOX(&prunefuse::cpu::dynamics));
  m.impl("claim_", TORCH_BOX(&prunefuse::cpu::claim_));
  m.impl("divergence_", TORCH_BOX(&prunefuse::cpu::divergence_));
  m.impl("push_", TORCH_BOX(&prunefuse::cpu::push_));
}
