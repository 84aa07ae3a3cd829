// The scorer on CUDA. Bound by reading the logits once: N * C * size bytes in, K * N * 4 out.
//
// Short contiguous rows (up to 32 classes) belong to a thread each: a warp brings 32 of them into shared memory, in
// 16-byte loads of whole lines, and each thread walks its own row there. Other rows belong to a group of lanes: 1 to 32
// of a warp, or a whole block where rows are long and few. Each lane takes its share in 16-byte loads where the layout
// allows, asks for the next before it works on one, keeps a RowState in registers, and the group's states are merged by
// a butterfly of shuffles (and shared memory between warps), whose order is fixed: results are the same run after run.
//
// Instructions: about 15 to a value, 45 to a merge and 60 to a row's end, so lanes have at least four loads each.
// An H200 issues 28e12 lane instructions a second and moves 4.8e12 bytes: 24 a float32 value, 12 a bfloat16 one.
// At 40 registers (float32) 6 blocks, 1,536 threads, are resident on a multiprocessor; 16 bytes under way in each are
// 24 KB, just what the latency of an H200's memory takes. A short row's thread has 48 registers: 5 blocks, with at most
// 33 KB of shared memory each (4 fit on an A100). Registers: benchmarks/results/ptxas.txt. Not run on a GPU yet.
#include "../scores.h"

#include <torch/csrc/stable/library.h>

#include "lanes.h"

namespace prunefuse::cuda {
namespace {

constexpr int kBlockThreads = 256;
// From this many classes on, and with fewer rows than fill the GPU by warps, a block shares one row.
constexpr int64_t kBlockRowClasses = 4096;
// Up to here a thread has a row of its own, if the rows are contiguous.
constexpr int64_t kShortRow = 32;

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
  __shared__ __align__(alignof(RowState<Acc>)) unsigned char storage[sizeof(RowState<Acc>) * (kBlockThreads / kWarp)];
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

// A place in rows that lie one after the other, moved on without a division.
struct Place {
  int row, column;

  __device__ void advance(int rows, int columns, int classes) {
    row += rows;
    column += columns;
    if (column >= classes) {
      column -= classes;
      ++row;
    }
  }
};

// Contiguous rows of at most kShortRow classes. Rows in shared memory are an odd number of words apart, so that the
// threads of a warp, each in its own row, find their values in different banks.
template <class Stored, bool Vectorized>
__global__ void __launch_bounds__(kBlockThreads)
    thread_per_row(const __grid_constant__ Pool pool, const __grid_constant__ RowOutputs<float> out,
                   float inverse_temperature) {
  constexpr int width = Vectorized ? 16 / sizeof(Stored) : 1;
  const int classes = static_cast<int>(pool.classes), pitch = classes | 1;
  const int lane = threadIdx.x % kWarp;
  float* const rows_of_warp = dynamic_shared<float>() + (threadIdx.x - lane) * pitch;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x - lane; first < pool.rows;
       first += static_cast<int64_t>(gridDim.x) * kBlockThreads) {
    const int rows = pool.rows - first < kWarp ? static_cast<int>(pool.rows - first) : kWarp;
    const Stored* from = static_cast<const Stored*>(pool.data) + first * classes;
    const int values = rows * classes;
    Place place = {lane * width / classes, lane * width % classes};
    const int step_rows = kWarp * width / classes, step_columns = kWarp * width % classes;
#pragma unroll 4
    for (int i = lane * width; i < values; i += kWarp * width) {
      Stored stored[width];
      if (Vectorized && i + width <= values) {
        const uint4 raw = __ldg(reinterpret_cast<const uint4*>(from + i));
        memcpy(stored, &raw, sizeof(stored));
      } else {
        for (int j = 0; j < width && i + j < values; ++j) stored[j] = from[i + j];
      }
      Place at = place;
#pragma unroll
      for (int j = 0; j < width; ++j) {
        if (i + j < values) rows_of_warp[at.row * pitch + at.column] = logit(stored[j], pool.probabilities);
        at.advance(0, 1, classes);
      }
      place.advance(step_rows, step_columns, classes);
    }
    __syncwarp();
    if (lane < rows) {
      const float* row = rows_of_warp + lane * pitch;
      RowState<float> state;
      for (int column = 0; column < classes; column += 4) {
        float part[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          // A masked class changes nothing.
          part[j] = column + j < classes ? row[column + j] : -std::numeric_limits<float>::infinity();
        }
        absorb(state, part, column, 1, inverse_temperature);
      }
      write_row(out, first + lane, state, inverse_temperature);
    }
    __syncwarp();
  }
}

template <class Stored, bool Vectorized>
void launch(const Pool& pool, const RowOutputs<accumulate_t<Stored>>& out, accumulate_t<Stored> inverse_temperature,
            int64_t multiprocessors, cudaStream_t stream) {
  const int64_t warps_to_fill = multiprocessors * (2048 / kWarp);
  if constexpr (sizeof(accumulate_t<Stored>) == sizeof(float)) {
    if (pool.classes <= kShortRow && pool.class_stride == 1 && pool.row_stride == pool.classes) {
      const size_t room = kBlockThreads * static_cast<size_t>(pool.classes | 1) * sizeof(float);
      const unsigned blocks = grid_for(divide_up(pool.rows, kBlockThreads));
      // Rows together need less alignment than each of them.
      if (reinterpret_cast<uintptr_t>(pool.data) % 16 == 0) {
        launch_kernel(thread_per_row<Stored, true>, {blocks, kBlockThreads, room}, stream, pool, out,
                      inverse_temperature);
      } else {
        launch_kernel(thread_per_row<Stored, false>, {blocks, kBlockThreads, room}, stream, pool, out,
                      inverse_temperature);
      }
      return;
    }
  }
  if (pool.classes >= kBlockRowClasses && pool.rows < warps_to_fill) {
    launch_kernel(block_per_row<Stored, Vectorized>, {grid_for(pool.rows), kBlockThreads}, stream, pool, out,
                  inverse_temperature);
  } else {
    const int lanes = lanes_for(Vectorized ? divide_up(pool.classes, 16 / sizeof(Stored)) : pool.classes);
    const int64_t blocks = divide_up(pool.rows, kBlockThreads / lanes);
    launch_kernel(group_per_row<Stored, Vectorized>, {grid_for(blocks), kBlockThreads}, stream, pool, out,
                  inverse_temperature, lanes);
  }
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
