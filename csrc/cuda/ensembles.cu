// The ensemble scorer on CUDA. Bound by reading the logits once: S * N * C * size bytes in, K * N * 4 out.
//
// A row belongs to 1 to 32 lanes of a warp, from its first pass to its last. A lane owns the columns lane, lane +
// lanes,
// ...: it alone reads them and keeps their sums of probabilities and votes, so that no pass waits for another lane but
// in the butterfly that merges the lanes' RowStates. The sums stand in shared memory where a block's rows fit (8 bytes
// per class and row: C <= 768 for float32 with a warp per row), else in global working memory, one slot per group of
// the grid, which is no larger than what is resident.
//
// A pass of a row is walked twice: for its state, then for its probabilities. A warp's second walk finds the row in L1
// or L2 (8 rows of 1,000 float32 classes are 32 KB of a block); for C above some ten thousand the rows under way exceed
// L2 and the second walk reads memory again. Long rows that are few leave multiprocessors idle: a warp is the most that
// works on one. Loads are one value per lane, neighbors in neighboring lanes.
// At 40 registers (float32) 6 blocks, 1,536 threads, are resident where shared memory allows. Not run on a GPU yet.
#include "../ensembles.h"

#include <torch/csrc/stable/library.h>

#include "lanes.h"

namespace prunefuse::cuda {
namespace {

constexpr int kBlockThreads = 256;
constexpr int64_t kSharedBytes = 48 * 1024;

template <class T>
__device__ T lanes_max(T value, int lanes) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) {
    const T other = __shfl_xor_sync(0xffffffffu, value, mask);
    value = other > value ? other : value;
  }
  return value;
}

template <class T>
__device__ T lanes_sum(T value, int lanes) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) value += __shfl_xor_sync(0xffffffffu, value, mask);
  return value;
}

// Adds one pass of one row to the sums and votes of the lane's columns; returns the pass's entropy, in every lane.
template <class Stored>
__device__ accumulate_t<Stored> add_pass(const Stored* row, const Pool& pool, int lane, int lanes,
                                         accumulate_t<Stored> inverse_temperature, accumulate_t<Stored>* sums,
                                         int32_t* votes, bool write) {
  using Acc = accumulate_t<Stored>;
  RowState<Acc> state;
  for (int64_t column = lane; column < pool.classes; column += lanes) {
    const Acc value[1] = {logit(row[column * pool.class_stride], pool.probabilities)};
    absorb(state, value, column, 1, inverse_temperature);
  }
  state = merge_lanes(state, lanes, inverse_temperature);
  const RowSummary<Acc> summary = summarize(state, inverse_temperature);
  if (!write) return summary.entropy;
  for (int64_t column = lane; column < pool.classes; column += lanes) {
    const Acc x = logit(row[column * pool.class_stride], pool.probabilities);
    const Acc e = x == state.max ? Acc(1) : exp_of(shifted(x, state.max, inverse_temperature));
    sums[column] += e * summary.p1;
    if (column == state.argmax && summary.p1 == summary.p1) votes[column] += 1;
  }
  return summary.entropy;
}

// Entropy of the distribution proportional to `sums`, in every lane.
template <class Acc>
__device__ Acc entropy_of(const Acc* sums, int64_t classes, int lane, int lanes) {
  Acc top = 0;
  for (int64_t column = lane; column < classes; column += lanes) top = sums[column] > top ? sums[column] : top;
  top = lanes_max(top, lanes);
  const Acc scale = 1 / top;
  Acc ties = 0, tail = 0, dot = 0;
  for (int64_t column = lane; column < classes; column += lanes) {
    if (sums[column] == top) {
      ties += 1;
    } else {
      const Acc e = sums[column] * scale;
      tail += e;
      dot += e * log_share(e);
    }
  }
  const Acc rest = (lanes_sum(ties, lanes) - 1) + lanes_sum(tail, lanes);
  return log1p_of(rest) - lanes_sum(dot, lanes) / (rest + 1);
}

// `room`: working memory of the whole grid (sums and votes of a slot per group), or null for shared memory.
template <class Stored>
__global__ void __launch_bounds__(kBlockThreads)
    score_rows(const __grid_constant__ Passes passes, const __grid_constant__ EnsembleOutputs<accumulate_t<Stored>> out,
               accumulate_t<Stored> inverse_temperature, int lanes, accumulate_t<Stored>* room) {
  using Acc = accumulate_t<Stored>;
  const Pool& pool = passes.pool;
  const int64_t groups = kBlockThreads / lanes;
  const int64_t group = threadIdx.x / lanes;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const int64_t slots = room == nullptr ? groups : groups * gridDim.x;
  const int64_t slot = room == nullptr ? group : blockIdx.x * groups + group;
  Acc* const memory = room == nullptr ? dynamic_shared<Acc>() : room;
  Acc* const sums = memory + slot * pool.classes;
  int32_t* const votes = reinterpret_cast<int32_t*>(memory + slots * pool.classes) + slot * pool.classes;
  // Every lane of a warp takes part in every shuffle; rows past the end are read as the last one and not written.
  for (int64_t first = blockIdx.x * groups; first < pool.rows; first += gridDim.x * groups) {
    const int64_t row = first + group;
    const int64_t source = row < pool.rows ? row : pool.rows - 1;
    const Stored* data = static_cast<const Stored*>(pool.data) + source * pool.row_stride;
    for (int64_t column = lane; column < pool.classes; column += lanes) {
      sums[column] = 0;
      votes[column] = 0;
    }
    Acc entropy = 0;
    for (int64_t s = 0; s < passes.count; ++s, data += passes.stride) {
      entropy += add_pass(data, pool, lane, lanes, inverse_temperature, sums, votes, true);
    }
    int32_t modal = 0;
    for (int64_t column = lane; column < pool.classes; column += lanes) {
      modal = votes[column] > modal ? votes[column] : modal;
    }
    modal = lanes_max(modal, lanes);
    const Acc predictive = entropy_of(sums, pool.classes, lane, lanes);
    if (lane == 0 && row < pool.rows) {
      write_ensemble_row(
          out, row, summarize_ensemble(predictive, entropy, static_cast<Acc>(modal), static_cast<Acc>(passes.count)));
    }
  }
}

template <class Stored>
__global__ void __launch_bounds__(kBlockThreads)
    add_rows(const __grid_constant__ Pool pool, const EnsembleState<accumulate_t<Stored>> state,
             accumulate_t<Stored> inverse_temperature, int lanes) {
  const int64_t groups = kBlockThreads / lanes;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  for (int64_t first = blockIdx.x * groups; first < pool.rows; first += gridDim.x * groups) {
    const int64_t row = first + threadIdx.x / lanes;
    const int64_t source = row < pool.rows ? row : pool.rows - 1;
    const Stored* data = static_cast<const Stored*>(pool.data) + source * pool.row_stride;
    const auto entropy = add_pass(data, pool, lane, lanes, inverse_temperature, state.sums + source * pool.classes,
                                  state.votes + source * pool.classes, row < pool.rows);
    if (lane == 0 && row < pool.rows) state.entropies[row] += entropy;
  }
}

// Lanes to a row: the power of two up to a warp at which each lane has at least two columns.
int lanes_for(int64_t classes) {
  int lanes = 1;
  while (lanes < kWarp && lanes * 4 <= classes) lanes *= 2;
  return lanes;
}

Tensor score_ensemble(const Tensor& logits, std::vector<int64_t> strategies, bool probabilities, double temperature) {
  const int32_t device = logits.get_device_index();
  const auto run = [&](const Passes& passes, const auto& out, auto inverse_temperature, auto stored) {
    using Stored = decltype(stored);
    using Acc = accumulate_t<Stored>;
    const torch::stable::accelerator::DeviceGuard guard(device);
    const int lanes = lanes_for(passes.pool.classes);
    const int64_t groups = kBlockThreads / lanes;
    const int64_t bytes = groups * passes.pool.classes * static_cast<int64_t>(sizeof(Acc) + sizeof(int32_t));
    const int64_t wanted = divide_up(passes.pool.rows, groups);
    if (bytes <= kSharedBytes) {
      launch_kernel(score_rows<Stored>, {grid_for(wanted), kBlockThreads, static_cast<size_t>(bytes)},
                    current_stream(device), passes, out, inverse_temperature, lanes, nullptr);
      return;
    }
    // 8 blocks of 256 threads fill a multiprocessor.
    const int64_t resident = multiprocessors_of(device) * 8;
    const int64_t blocks = wanted < resident ? wanted : resident;
    const Tensor room = new_rows(logits, {blocks * groups, 2 * passes.pool.classes}, result_dtype(logits));
    launch_kernel(score_rows<Stored>, {grid_for(blocks), kBlockThreads}, current_stream(device), passes, out,
                  inverse_temperature, lanes, static_cast<Acc*>(room.data_ptr()));
  };
  return prunefuse::score_ensemble(logits, strategies, probabilities, temperature, run);
}

void ensemble_add(const Tensor& sums, const Tensor& votes, const Tensor& entropies, const Tensor& logits,
                  bool probabilities, double temperature) {
  const int32_t device = logits.get_device_index();
  const auto run = [&](const Pool& pool, const auto& state, auto inverse_temperature, auto stored) {
    using Stored = decltype(stored);
    const torch::stable::accelerator::DeviceGuard guard(device);
    const int lanes = lanes_for(pool.classes);
    const int64_t blocks = divide_up(pool.rows, kBlockThreads / lanes);
    launch_kernel(add_rows<Stored>, {grid_for(blocks), kBlockThreads}, current_stream(device), pool, state,
                  inverse_temperature, lanes);
  };
  prunefuse::ensemble_add(sums, votes, entropies, logits, probabilities, temperature, run);
}

}  // namespace
}  // namespace prunefuse::cuda

STABLE_TORCH_LIBRARY_IMPL(prunefuse, CUDA, m) {
  m.impl("score_ensemble", TORCH_BOX(&prunefuse::cuda::score_ensemble));
  m.impl("ensemble_add_", TORCH_BOX(&prunefuse::cuda::ensemble_add));
}
