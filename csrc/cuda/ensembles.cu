// The ensemble scorer on CUDA. Bound by reading the logits: S * N * C * size bytes in, K * N * 4 out.
//
// A row belongs to 1 to 32 lanes of a warp, from its first pass to its last. A lane owns the columns lane, lane +
// lanes,
// ...: it alone reads them and adds up what the passes say of them. The lanes meet in butterflies that merge their
// states.
//
// Where the sums of probabilities and the votes of a block's rows fit into shared memory (8 bytes per class and row: C
// <= 768 for float32 with a warp per row), passes are taken one by one, each walked twice: for its state, then for its
// probabilities; a warp's second walk finds the row in L1 or L2. Longer rows keep no sums: a first walk over all passes
// leaves of each its maximum, the largest probability and its class (16 bytes per pass and row under way), a second one
// adds up the passes of a column in a register and takes the entropy of the sum at once. The second walk reads memory
// again where S rows of all warps exceed L2; what is kept aside is small whatever C is.
//
// Long rows that are few leave multiprocessors idle: a warp is the most that works on one. Loads are one value per
// lane, neighbors in neighboring lanes. 6 blocks, 1,536 threads, are resident where registers (40) and shared memory
// allow. Not run on a GPU yet.
#include "../ensembles.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "lanes.h"

namespace prunefuse::cuda {
namespace {

constexpr int kWarpsPerBlock = 8;
constexpr int kBlockThreads = kWarpsPerBlock * kWarp;
constexpr int64_t kSharedBytes = 48 * 1024;

// What is kept aside of long rows, at most.
constexpr int64_t kRoomBytes = 32 << 20;

template <class T>
__device__ T lanes_max(T value, int lanes) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) {
    const T other = __shfl_xor_sync(0xffffffffu, value, mask);
    value = other > value ? other : value;
  }
  return value;
}

template <class Acc>
__device__ ShareState<Acc> merge_lanes(ShareState<Acc> state, int lanes) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) {
    const ShareState<Acc> other = {
        __shfl_xor_sync(0xffffffffu, state.max, mask), __shfl_xor_sync(0xffffffffu, state.ties, mask),
        __shfl_xor_sync(0xffffffffu, state.tail, mask), __shfl_xor_sync(0xffffffffu, state.dot, mask)};
    state = merge(state, other);
  }
  return state;
}

// What its probabilities follow from, of one pass of a row. `vote` is -1 where it has no distribution.
template <class Acc>
struct PassOfRow {
  Acc max;  // logit
  Acc p1;
  int64_t vote;
};

// The logits of one pass of a row, in the hands of `lanes` lanes.
template <class Stored>
struct RowOfPass {
  using Acc = accumulate_t<Stored>;

  const Stored* data;
  const Pool& pool;
  int lane, lanes;
  Acc inverse_temperature;

  __device__ Acc logit_of(int64_t column) const { return logit(data[column * pool.class_stride], pool.probabilities); }

  __device__ Acc probability(int64_t column, Acc max, Acc p1) const {
    const Acc x = logit_of(column);
    return (x == max ? Acc(1) : exp_of(shifted(x, max, inverse_temperature))) * p1;
  }

  // The same in every lane; also the entropy.
  __device__ PassOfRow<Acc> walk(Acc& entropy) const {
    RowState<Acc> state;
    for (int64_t column = lane; column < pool.classes; column += lanes) {
      const Acc value[1] = {logit_of(column)};
      absorb(state, value, column, 1, inverse_temperature);
    }
    state = cuda::merge_lanes(state, lanes, inverse_temperature);
    const RowSummary<Acc> summary = summarize(state, inverse_temperature);
    entropy = summary.entropy;
    return {state.max, summary.p1, summary.p1 == summary.p1 ? state.argmax : -1};
  }
};

// Adds one pass of one row to the sums and votes of the lane's columns; returns the pass's entropy, in every lane.
template <class Stored>
__device__ accumulate_t<Stored> add_pass(const RowOfPass<Stored>& row, accumulate_t<Stored>* sums, int32_t* votes,
                                         bool write) {
  accumulate_t<Stored> entropy;
  const auto pass = row.walk(entropy);
  if (!write) return entropy;
  for (int64_t column = row.lane; column < row.pool.classes; column += row.lanes) {
    sums[column] += row.probability(column, pass.max, pass.p1);
    if (column == pass.vote) votes[column] += 1;
  }
  return entropy;
}

// Calls body(row, source, group): every group of lanes gets rows of the pool. Every lane of a warp takes part in every
// shuffle; rows past the end are read as the last one, `source`, and must not be written.
template <class Body>
__device__ void for_rows(const Pool& pool, int lanes, const Body& body) {
  const int64_t groups = kBlockThreads / lanes, group = threadIdx.x / lanes;
  for (int64_t first = blockIdx.x * groups; first < pool.rows; first += gridDim.x * groups) {
    const int64_t row = first + group;
    body(row, row < pool.rows ? row : pool.rows - 1, group);
  }
}

template <class Stored>
__global__ void __launch_bounds__(kBlockThreads)
    score_rows(const __grid_constant__ Passes passes, const __grid_constant__ EnsembleOutputs<accumulate_t<Stored>> out,
               accumulate_t<Stored> inverse_temperature, int lanes) {
  using Acc = accumulate_t<Stored>;
  const Pool& pool = passes.pool;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  Acc* const memory = dynamic_shared<Acc>();
  for_rows(pool, lanes, [&](int64_t row, int64_t source, int64_t group) {
    Acc* const sums = memory + group * pool.classes;
    int32_t* const votes =
        reinterpret_cast<int32_t*>(memory + kBlockThreads / lanes * pool.classes) + group * pool.classes;
    for (int64_t column = lane; column < pool.classes; column += lanes) {
      sums[column] = 0;
      votes[column] = 0;
    }
    const Stored* data = static_cast<const Stored*>(pool.data) + source * pool.row_stride;
    Acc entropy = 0;
    for (int64_t s = 0; s < passes.count; ++s, data += passes.stride) {
      entropy += add_pass<Stored>({data, pool, lane, lanes, inverse_temperature}, sums, votes, true);
    }
    ShareState<Acc> shares;
    int32_t modal = 0;
    for (int64_t column = lane; column < pool.classes; column += lanes) {
      absorb(shares, sums[column]);
      modal = votes[column] > modal ? votes[column] : modal;
    }
    modal = lanes_max(modal, lanes);
    const Acc predictive = entropy_of(merge_lanes(shares, lanes));
    if (lane == 0 && row < pool.rows) {
      write_ensemble_row(
          out, row, summarize_ensemble(predictive, entropy, static_cast<Acc>(modal), static_cast<Acc>(passes.count)));
    }
  });
}

// A warp per row; `room`: a PassOfRow for every pass and warp of the grid.
template <class Stored>
__global__ void __launch_bounds__(kBlockThreads)
    score_long_rows(const __grid_constant__ Passes passes,
                    const __grid_constant__ EnsembleOutputs<accumulate_t<Stored>> out,
                    accumulate_t<Stored> inverse_temperature, PassOfRow<accumulate_t<Stored>>* room) {
  using Acc = accumulate_t<Stored>;
  const Pool& pool = passes.pool;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for_rows(pool, kWarp, [&](int64_t row, int64_t source, int64_t group) {
    PassOfRow<Acc>* const of = room + (blockIdx.x * int64_t{kWarpsPerBlock} + group) * passes.count;
    const Stored* const data = static_cast<const Stored*>(pool.data) + source * pool.row_stride;
    const auto pass_of_row = [&](int64_t s) {
      return RowOfPass<Stored>{data + s * passes.stride, pool, lane, kWarp, inverse_temperature};
    };
    Acc entropies = 0;
    for (int64_t s = 0; s < passes.count; ++s) {
      Acc entropy;
      const PassOfRow<Acc> pass = pass_of_row(s).walk(entropy);
      if (lane == 0) of[s] = pass;
      entropies += entropy;
    }
    __syncwarp();
    ShareState<Acc> shares;
    for (int64_t column = lane; column < pool.classes; column += kWarp) {
      Acc sum = 0;
      for (int64_t s = 0; s < passes.count; ++s) sum += pass_of_row(s).probability(column, of[s].max, of[s].p1);
      absorb(shares, sum);
    }
    int32_t modal = 0;
    for (int64_t s = lane; s < passes.count; s += kWarp) {
      int32_t votes = 0;
      for (int64_t other = 0; other < passes.count; ++other) votes += of[other].vote == of[s].vote;
      modal = votes > modal ? votes : modal;
    }
    modal = lanes_max(modal, kWarp);
    const Acc predictive = entropy_of(merge_lanes(shares, kWarp));
    __syncwarp();  // all have read what the next row's passes replace
    if (lane == 0 && row < pool.rows) {
      write_ensemble_row(
          out, row, summarize_ensemble(predictive, entropies, static_cast<Acc>(modal), static_cast<Acc>(passes.count)));
    }
  });
}

template <class Stored>
__global__ void __launch_bounds__(kBlockThreads)
    add_rows(const __grid_constant__ Pool pool, const EnsembleState<accumulate_t<Stored>> state,
             accumulate_t<Stored> inverse_temperature, int lanes) {
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  for_rows(pool, lanes, [&](int64_t row, int64_t source, int64_t) {
    const Stored* const data = static_cast<const Stored*>(pool.data) + source * pool.row_stride;
    const auto entropy =
        add_pass<Stored>({data, pool, lane, lanes, inverse_temperature}, state.sums + source * pool.classes,
                         state.votes + source * pool.classes, row < pool.rows);
    if (lane == 0 && row < pool.rows) state.entropies[row] += entropy;
  });
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
    if (bytes <= kSharedBytes) {
      launch_kernel(score_rows<Stored>,
                    {grid_for(divide_up(passes.pool.rows, groups)), kBlockThreads, static_cast<size_t>(bytes)},
                    current_stream(device), passes, out, inverse_temperature, lanes);
      return;
    }
    // 8 blocks of 256 threads fill a multiprocessor.
    const int64_t block_bytes = kWarpsPerBlock * passes.count * static_cast<int64_t>(sizeof(PassOfRow<Acc>));
    const int64_t most = std::max<int64_t>(1, std::min(multiprocessors_of(device) * 8, kRoomBytes / block_bytes));
    const int64_t blocks = std::min(divide_up(passes.pool.rows, kWarpsPerBlock), most);
    const Tensor room = new_rows(logits, {blocks * block_bytes}, torch::headeronly::ScalarType::Byte);
    launch_kernel(score_long_rows<Stored>, {grid_for(blocks), kBlockThreads}, current_stream(device), passes, out,
                  inverse_temperature, static_cast<PassOfRow<Acc>*>(room.data_ptr()));
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
