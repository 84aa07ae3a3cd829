// Training dynamics on CUDA. Nothing waits for the device: rows that the CPU would refuse are left out and counted.
//
// dynamics: bound by reading the logits once, N * C * size bytes. A row belongs to 1 to 32 lanes of a warp, which take
// 16 bytes at a time where the layout allows; the states merge by a butterfly of shuffles, the same run after run. The
// label's own value is one more load, of a line that is read anyway.
// divergence_: bound by the logits once and the kept logarithms in and out, B * C * (size + 2 * size kept). The second
// walk over a row finds it in L1 or L2: 8 rows of 1,000 float32 classes are 32 KB of a block. One exp and one
// logarithm, some 30 instructions, per class: below what an H200 issues while it moves 12 bytes. claim_, push_: a
// thread per row; a sample's ring is one line or two. At a batch's few hundred rows, a launch is all. Not run on a GPU
// yet.
#include "../dynamics.h"

#include <torch/csrc/stable/library.h>

#include "lanes.h"

namespace prunefuse::cuda {
namespace {

constexpr int kBlockThreads = 256;

template <class Acc>
__device__ OthersState<Acc> merge_lanes(OthersState<Acc> state, int lanes) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) {
    OthersState<Acc> other;
    other.max = __shfl_xor_sync(0xffffffffu, state.max, mask);
    other.ties = __shfl_xor_sync(0xffffffffu, state.ties, mask);
    other.tail = __shfl_xor_sync(0xffffffffu, state.tail, mask);
    other.squares = __shfl_xor_sync(0xffffffffu, state.squares, mask);
    other.has_nan = __shfl_xor_sync(0xffffffffu, static_cast<int>(state.has_nan), mask) != 0;
    state = merge(state, other);
  }
  return state;
}

// Lane `lane` of `lanes` takes its share of the others; `before`: it met the label's value ahead of the label.
template <class Stored, bool Vectorized>
__device__ OthersState<accumulate_t<Stored>> lane_others(const Stored* row, const Pool& pool, int64_t label,
                                                         accumulate_t<Stored> own, int64_t lane, int64_t lanes,
                                                         bool& before) {
  using Acc = accumulate_t<Stored>;
  OthersState<Acc> state;
  for_lane<Stored, Vectorized>(row, pool, lane, lanes, [&]<int Count>(const Stored(&stored)[Count], int64_t column) {
    Acc values[Count];
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      const Acc x = widen(stored[i]);
      before = before || (x == own && column + i < label);
      values[i] = column + i == label ? -std::numeric_limits<Acc>::infinity() : x;
    }
    absorb(state, values);
  });
  return state;
}

template <class Stored, bool Vectorized>
__global__ void __launch_bounds__(kBlockThreads)
    dynamics_rows(const __grid_constant__ Pool pool, const int64_t* labels, accumulate_t<Stored>* out, int lanes) {
  using Acc = accumulate_t<Stored>;
  const int64_t groups = kBlockThreads / lanes;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  // Every lane of a warp takes part in every shuffle; rows past the end are read as the last one and not written.
  for (int64_t first = blockIdx.x * groups; first < pool.rows; first += gridDim.x * groups) {
    const int64_t row = first + threadIdx.x / lanes;
    const int64_t source = row < pool.rows ? row : pool.rows - 1;
    const Stored* data = static_cast<const Stored*>(pool.data) + source * pool.row_stride;
    const int64_t label = labels[source];
    const bool is_class = label >= 0 && label < pool.classes;
    const Acc own =
        is_class ? static_cast<Acc>(widen(data[label * pool.class_stride])) : std::numeric_limits<Acc>::quiet_NaN();
    bool before = false;
    auto state = lane_others<Stored, Vectorized>(data, pool, label, own, lane, lanes, before);
    state = merge_lanes(state, lanes);
    for (int mask = lanes / 2; mask > 0; mask /= 2) {
      before = __shfl_xor_sync(0xffffffffu, static_cast<int>(before), mask) != 0 || before;
    }
    if (lane == 0 && row < pool.rows) write_dynamics(out, pool.rows, row, summarize(state, own, !before));
  }
}

template <class Stored, class Kept, class Acc>
__global__ void __launch_bounds__(kBlockThreads)
    divergence_rows(const __grid_constant__ Pool pool, const int64_t* samples, Kept* kept, int64_t count, Acc epsilon,
                    double* divergences, int lanes) {
  const int64_t groups = kBlockThreads / lanes;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  for (int64_t first = blockIdx.x * groups; first < pool.rows; first += gridDim.x * groups) {
    const int64_t row = first + threadIdx.x / lanes;
    const int64_t source = row < pool.rows ? row : pool.rows - 1;
    const int64_t sample = samples[source];
    const bool write = row < pool.rows && sample >= 0 && sample < count;
    const Stored* data = static_cast<const Stored*>(pool.data) + source * pool.row_stride;
    Kept* const logs = kept + (write ? sample : 0) * pool.classes;
    OthersState<Acc> state;
    for (int64_t column = lane; column < pool.classes; column += lanes) {
      const Acc value[1] = {static_cast<Acc>(widen(data[column * pool.class_stride]))};
      absorb(state, value);
    }
    const bool seen = write && !(widen(logs[0]) == kNeverSeen);
    state = merge_lanes(state, lanes);
    __syncwarp();  // all lanes have read logs[0] before one writes it
    const bool valid = !state.has_nan && state.max > -std::numeric_limits<Acc>::infinity();
    const Acc rest = (state.ties - 1) + state.tail, inverse = 1 / (rest + 1);
    const Acc log_largest = valid ? log_of_largest(rest, epsilon) : std::numeric_limits<Acc>::quiet_NaN();
    CompensatedSum<Acc> sum;
    for (int64_t column = lane; write && column < pool.classes; column += lanes) {
      const Acc x = widen(data[column * pool.class_stride]);
      Acc q = inverse, log = log_largest;
      if (valid && x != state.max) {
        q = exp_of(shifted(x, state.max, Acc(1))) * inverse;
        log = log_of_shifted(q, epsilon);
      }
      sum.add(::fabs(q * (log - static_cast<Acc>(widen(logs[column])))));
      narrow_to(log, logs[column]);
    }
    double total = sum.value();
    for (int mask = lanes / 2; mask > 0; mask /= 2) total += __shfl_xor_sync(0xffffffffu, total, mask);
    if (lane == 0 && row < pool.rows) divergences[row] = seen ? total : -1.0;
  }
}

__global__ void __launch_bounds__(kBlockThreads) claim_rows(const __grid_constant__ Claim batch, int64_t* result) {
  for (int64_t row = blockIdx.x * static_cast<int64_t>(kBlockThreads) + threadIdx.x; row < batch.rows;
       row += static_cast<int64_t>(gridDim.x) * kBlockThreads) {
    const int64_t index = batch.indices[row];
    bool fits = index >= 0 && index < batch.samples;
    if (batch.labels != nullptr) fits = fits && batch.labels[row] >= 0 && batch.labels[row] < batch.classes;
    // Of rows that name the same sample, one gets it.
    fits = fits && atomicExch(batch.seen + index, 1) == 0;
    result[row] = fits ? index : -1;
    if (!fits) atomicAdd(reinterpret_cast<unsigned long long*>(batch.rejected), 1ull);
  }
}

__global__ void __launch_bounds__(kBlockThreads)
    push_rows(const __grid_constant__ History history, const __grid_constant__ Window window, const double* values,
              const int64_t* samples, int64_t rows) {
  for (int64_t row = blockIdx.x * static_cast<int64_t>(kBlockThreads) + threadIdx.x; row < rows;
       row += static_cast<int64_t>(gridDim.x) * kBlockThreads) {
    const int64_t sample = samples[row];
    if (sample >= 0 && sample < history.samples) push_value(history, window, sample, values[row]);
  }
}

// Lanes to a row: the power of two up to a warp at which each lane has at least two loads.
int lanes_for(int64_t loads) {
  int lanes = 1;
  while (lanes < kWarp && lanes * 4 <= loads) lanes *= 2;
  return lanes;
}

Tensor dynamics(const Tensor& logits, const Tensor& labels) {
  const int32_t device = logits.get_device_index();
  const auto run = [&](const Pool& pool, const int64_t* of_row, auto* out, auto stored) {
    using Stored = decltype(stored);
    const torch::stable::accelerator::DeviceGuard guard(device);
    const bool aligned = reinterpret_cast<uintptr_t>(pool.data) % 16 == 0 && pool.class_stride == 1 &&
                         (pool.rows == 1 || pool.row_stride * static_cast<int64_t>(sizeof(Stored)) % 16 == 0);
    const int lanes = lanes_for(aligned ? divide_up(pool.classes, 16 / sizeof(Stored)) : pool.classes);
    const unsigned blocks = grid_for(divide_up(pool.rows, kBlockThreads / lanes));
    const cudaStream_t stream = current_stream(device);
    if (aligned) {
      launch_kernel(dynamics_rows<Stored, true>, {blocks, kBlockThreads}, stream, pool, of_row, out, lanes);
    } else {
      launch_kernel(dynamics_rows<Stored, false>, {blocks, kBlockThreads}, stream, pool, of_row, out, lanes);
    }
  };
  return prunefuse::dynamics(logits, labels, run);
}

Tensor claim_(Tensor seen, Tensor rejected, const Tensor& indices, std::optional<Tensor> labels, int64_t classes) {
  const int32_t device = indices.get_device_index();
  const auto run = [&](const Claim& batch, int64_t* result) {
    const torch::stable::accelerator::DeviceGuard guard(device);
    launch_kernel(claim_rows, {grid_for(divide_up(batch.rows, kBlockThreads)), kBlockThreads}, current_stream(device),
                  batch, result);
  };
  return prunefuse::claim(seen, rejected, indices, labels, classes, run);
}

Tensor divergence_(Tensor kept, const Tensor& logits, const Tensor& samples, double epsilon) {
  const int32_t device = logits.get_device_index();
  const auto run = [&](const Pool& pool, const int64_t* of_row, auto* logs, double* divergences, auto stored, auto of) {
    using Stored = decltype(stored);
    using Kept = decltype(of);
    using Acc = wider_t<Stored, Kept>;
    const torch::stable::accelerator::DeviceGuard guard(device);
    const int lanes = lanes_for(pool.classes);
    const unsigned blocks = grid_for(divide_up(pool.rows, kBlockThreads / lanes));
    launch_kernel(divergence_rows<Stored, Kept, Acc>, {blocks, kBlockThreads}, current_stream(device), pool, of_row,
                  logs, kept.size(0), static_cast<Acc>(epsilon), divergences, lanes);
  };
  return prunefuse::divergence(kept, logits, samples, epsilon, run);
}

void push_(Tensor ring, Tensor counts, Tensor sums, const Tensor& values, const Tensor& samples, int64_t window,
           double divisor, double keep, double gain) {
  const int32_t device = ring.get_device_index();
  const auto run = [&](const History& history, const Window& of, const double* of_row, const int64_t* sample_of,
                       int64_t rows) {
    const torch::stable::accelerator::DeviceGuard guard(device);
    launch_kernel(push_rows, {grid_for(divide_up(rows, kBlockThreads)), kBlockThreads}, current_stream(device), history,
                  of, of_row, sample_of, rows);
  };
  prunefuse::push(ring, counts, sums, values, samples, {window, divisor, keep, gain}, run);
}

}  // namespace
}  // namespace prunefuse::cuda

STABLE_TORCH_LIBRARY_IMPL(prunefuse, CUDA, m) {
  m.impl("dynamics", TORCH_BOX(&prunefuse::cuda::dynamics));
  m.impl("claim_", TORCH_BOX(&prunefuse::cuda::claim_));
  m.impl("divergence_", TORCH_BOX(&prunefuse::cuda::divergence_));
  m.impl("push_", TORCH_BOX(&prunefuse::cuda::push_));
}
