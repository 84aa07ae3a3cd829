// The scorer on CUDA. Bound by reading the logits once: N * C * size bytes in, K * N * 4 out.
//
// A row belongs to a group of lanes: 1 to 32 of a warp, or a whole block where rows are long and few. Each lane takes
// its share in 16-byte loads where the layout allows, keeps a RowState in registers, and the group's states are merged
// by a butterfly of shuffles (and shared memory between warps), whose order is fixed: results are the same run after
// run. At 40 registers 6 blocks, 1,536 threads, are resident on a
// multiprocessor; the float32 loop has one 16-byte load under way per thread (SASS), 24 KB, just what the latency of an
// H200's memory takes: a second one in flight is the first thing to try there. Registers: benchmarks/results/ptxas.txt.
// Not run on a GPU yet.
#include "../scores.h"

#include <torch/csrc/stable/library.h>

#include "lanes.h"

namespace prunefuse::cuda {
namespace {

constexpr int kBlockThreads = 256;
// From this many classes on, and with fewer rows than fill the GPU by warps, a block shares one row.
constexpr int64_t kBlockRowClasses = 4096;

// Lane `lane` of `lanes` takes its share of a row.
template <class Stored, bool Vectorized>
__device__ RowState<accumulate_t<Stored>> lane_state(const Stored* row, const Pool& pool, int64_t lane, int64_t lanes,
                                                     accumulate_t<Stored> inverse_temperature) {
  using Acc = accumulate_t<Stored>;
  RowState<Acc> state;
  int64_t column = 0;
  if constexpr (Vectorized) {
    constexpr int width = 16 / sizeof(Stored);
    const int64_t chunks = pool.classes / width;
    for (int64_t chunk = lane; chunk < chunks; chunk += lanes) {
      const uint4 raw = __ldg(reinterpret_cast<const uint4*>(row) + chunk);
      Stored stored[width];
      memcpy(stored, &raw, sizeof(raw));
      Acc values[width];
#pragma unroll
      for (int i = 0; i < width; ++i) values[i] = logit(stored[i], pool.probabilities);
      absorb(state, values, chunk * width, 1, inverse_temperature);
    }
    column = chunks * width;
  }
  for (column += lane; column < pool.classes; column += lanes) {
    const Acc value[1] = {logit(row[column * pool.class_stride], pool.probabilities)};
    absorb(state, value, column, 1, inverse_temperature);
  }
  return state;
}

template <class Stored, bool Vectorized>
__global__ void __launch_bounds__(kBlockThreads)
    group_per_row(const __grid_constant__ Pool pool, const __grid_constant__ RowOutputs<accumulate_t<Stored>> out,
                  accumulate_t<Stored> inverse_temperature, int lanes) {
  const int64_t groups_per_block = kBlockThreads / lanes;
  const int64_t group = threadIdx.x / lanes;
  // Every lane of a warp takes part in every round's shuffles; rows past the end are read as the last one and not
  // written.
  for (int64_t first = blockIdx.x * groups_per_block; first < pool.rows; first += gridDim.x * groups_per_block) {
    const int64_t row = first + group;
    const int64_t source = row < pool.rows ? row : pool.rows - 1;
    const Stored* data = static_cast<const Stored*>(pool.data) + source * pool.row_stride;
    auto state = lane_state<Stored, Vectorized>(data, pool, threadIdx.x % lanes, lanes, inverse_temperature);
    state = merge_lanes(state, lanes, inverse_temperature);
    if (threadIdx.x % lanes == 0 && row < pool.rows) write_row(out, row, state, inverse_temperature);
  }
}

template <class Stored, bool Vectorized>
__global__ void __launch_bounds__(kBlockThreads)
    block_per_row(const __grid_constant__ Pool pool, const __grid_constant__ RowOutputs<accumulate_t<Stored>> out,
                  accumulate_t<Stored> inverse_temperature) {
  using Acc = accumulate_t<Stored>;
  __shared__ alignas(RowState<Acc>) unsigned char storage[sizeof(RowState<Acc>) * (kBlockThreads / kWarp)];
  auto* warps = reinterpret_cast<RowState<Acc>*>(storage);
  for (int64_t row = blockIdx.x; row < pool.rows; row += gridDim.x) {
    const Stored* data = static_cast<const Stored*>(pool.data) + row * pool.row_stride;
    auto state = lane_state<Stored, Vectorized>(data, pool, threadIdx.x, kBlockThreads, inverse_temperature);
    state = merge_lanes(state, kWarp, inverse_temperature);
    if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = state;
    __syncthreads();
    if (threadIdx.x < kWarp) {
      constexpr int count = kBlockThreads / kWarp;
      state = threadIdx.x < count ? warps[threadIdx.x] : RowState<Acc>{};
      state = merge_lanes(state, count, inverse_temperature);
      if (threadIdx.x == 0) write_row(out, row, state, inverse_temperature);
    }
    __syncthreads();
  }
}

// Lanes to a row: the power of two up to 32 at which each lane has at least two loads.
int lanes_for(int64_t loads) {
  int lanes = 1;
  while (lanes < kWarp && lanes * 2 < loads) lanes *= 2;
  return lanes;
}

template <class Stored, bool Vectorized>
void launch(const Pool& pool, const RowOutputs<accumulate_t<Stored>>& out, accumulate_t<Stored> inverse_temperature,
            int64_t multiprocessors, cudaStream_t stream) {
  const int64_t warps_to_fill = multiprocessors * (2048 / kWarp);
  if (pool.classes >= kBlockRowClasses && pool.rows < warps_to_fill) {
    block_per_row<Stored, Vectorized>
        <<<grid_for(pool.rows), kBlockThreads, 0, stream>>>(pool, out, inverse_temperature);
  } else {
    const int lanes = lanes_for(Vectorized ? divide_up(pool.classes, 16 / sizeof(Stored)) : pool.classes);
    const int64_t blocks = divide_up(pool.rows, kBlockThreads / lanes);
    group_per_row<Stored, Vectorized>
        <<<grid_for(blocks), kBlockThreads, 0, stream>>>(pool, out, inverse_temperature, lanes);
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

struct ScoreRows {
  int32_t device;

  template <class Stored>
  void operator()(const Pool& pool, const RowOutputs<accumulate_t<Stored>>& out,
                  accumulate_t<Stored> inverse_temperature, Stored) const {
    const torch::stable::accelerator::DeviceGuard guard(device);
    const int64_t multiprocessors = multiprocessors_of(device);
    const bool aligned = reinterpret_cast<uintptr_t>(pool.data) % 16 == 0 &&
                         (pool.rows == 1 || pool.row_stride * static_cast<int64_t>(sizeof(Stored)) % 16 == 0) &&
                         pool.class_stride == 1;
    const cudaStream_t stream = current_stream(device);
    if (aligned) {
      launch<Stored, true>(pool, out, inverse_temperature, multiprocessors, stream);
    } else {
      launch<Stored, false>(pool, out, inverse_temperature, multiprocessors, stream);
    }
  }
};

Tensor score(const Tensor& logits, std::vector<int64_t> strategies, bool probabilities, double temperature) {
  return prunefuse::score(logits, strategies, probabilities, temperature, ScoreRows{logits.get_device_index()});
}

std::tuple<Tensor, Tensor, Tensor, Tensor> statistics(const Tensor& logits, bool probabilities, double temperature) {
  return prunefuse::statistics(logits, probabilities, temperature, ScoreRows{logits.get_device_index()});
}

void absorb_(Tensor state, const Tensor& logits, double temperature) {
  prunefuse::absorb_(state, logits, temperature, ScoreRows{logits.get_device_index()});
}

}  // namespace
}  // namespace prunefuse::cuda

STABLE_TORCH_LIBRARY_IMPL(prunefuse, CUDA, m) {
  m.impl("score", TORCH_BOX(&prunefuse::cuda::score));
  m.impl("absorb_", TORCH_BOX(&prunefuse::cuda::absorb_));
  m.impl("statistics", TORCH_BOX(&prunefuse::cuda::statistics));
}
