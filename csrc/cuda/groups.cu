// Scores reduced over groups of rows on CUDA. Bound by reading the logits once.
//
// A warp takes a part of a group: all of it, or some hundred rows where groups are long, so that a few images fill a
// GPU. Labels, and rows whose classes lie in planes, belong to a lane each: neighboring lanes read neighboring values.
// Other rows belong to a group of lanes, as in scores.cu. Each lane adds up the utilities of its rows, a butterfly of
// shuffles adds up the lanes, and where groups came in parts a second launch adds up these, always in the same order.
//
// A label is one load, an exponential, a division and a polynomial, about 50 instructions: an H200 issues these about
// as fast as it moves 2e12 bytes of float32 a second (arithmetic, not measured). Not run on a GPU yet.
#include "../groups.h"

#include <torch/csrc/stable/library.h>

#include "lanes.h"

namespace prunefuse::cuda {
namespace {

constexpr int kBlockThreads = 256;
constexpr int kWarps = kBlockThreads / kWarp;
constexpr int64_t kMostPartRows = 1024, kLeastPartRows = 128;

// How a row is read: a label, a row by single loads, or a row by loads of 16 bytes.
enum class Read { kLabel, kSingle, kVector };

// Where parts leave their states: utilities x groups x parts, and groups x parts.
struct Parts {
  double* values;
  int64_t* rows;
  int64_t count;
  int64_t length;
};

__device__ GroupState merge_warp(GroupState state, Reduction reduction) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    GroupState other;
    other.value = __shfl_xor_sync(kAllLanes, state.value, mask);
    other.rows = __shfl_xor_sync(kAllLanes, static_cast<long long>(state.rows), mask);
    state = merge(state, other, reduction);
  }
  return state;
}

template <class Stored, Read How>
__device__ RowSummary<accumulate_t<Stored>> row_summary(const Stored* row, const Pool& pool, int lane, int lanes,
                                                        accumulate_t<Stored> inverse_temperature) {
  if constexpr (How == Read::kLabel) {
    return summarize_label(label_logits(widen(*row), pool.probabilities), inverse_temperature);
  } else {
    auto state = lane_state<Stored, How == Read::kVector>(row, pool, lane, lanes, inverse_temperature);
    return summarize(merge_lanes(state, lanes, inverse_temperature), inverse_temperature);
  }
}

template <class Stored, Read How>
__global__ void __launch_bounds__(kBlockThreads)
    score_parts(const __grid_constant__ Groups groups, const __grid_constant__ GroupOutputs<accumulate_t<Stored>> out,
                const __grid_constant__ Parts parts, accumulate_t<Stored> inverse_temperature, int lanes) {
  using Acc = accumulate_t<Stored>;
  const Pool& pool = groups.pool;
  const int lane = threadIdx.x % kWarp;
  const int64_t units = groups.count * parts.count;
  for (int64_t unit = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp; unit < units;
       unit += static_cast<int64_t>(gridDim.x) * kWarps) {
    const int64_t group = unit / parts.count;
    int64_t begin = unit % parts.count * parts.length;
    int64_t end = begin + parts.length < pool.rows ? begin + parts.length : pool.rows;
    const Stored* data = static_cast<const Stored*>(pool.data);
    const uint8_t* mask = nullptr;
    if (groups.offsets != nullptr) {
      // What is out of range is left out: nobody has looked at the offsets.
      begin = groups.offsets[group] > 0 ? groups.offsets[group] : 0;
      end = groups.offsets[group + 1] < pool.rows ? groups.offsets[group + 1] : pool.rows;
    } else {
      data += group * groups.group_stride;
      if (groups.mask != nullptr) mask = groups.mask + group / groups.shared * groups.mask_group_stride;
    }
    GroupState states[kUtilityCount];
#pragma unroll
    for (int k = 0; k < kUtilityCount; ++k) states[k] = no_rows(groups.reduction);
    // Every lane takes part in every round's shuffles; rows past the end are read as the last one and not counted.
    const int step = kWarp / lanes;
#pragma unroll 2
    for (int64_t first = begin; first < end; first += step) {
      const int64_t row = first + lane / lanes;
      const int64_t source = row < end ? row : end - 1;
      const RowSummary<Acc> summary =
          row_summary<Stored, How>(data + source * pool.row_stride, pool, lane % lanes, lanes, inverse_temperature);
      const bool counts =
          row < end && lane % lanes == 0 && (mask == nullptr || mask[source * groups.mask_row_stride] != 0);
#pragma unroll
      for (int k = 0; k < kUtilityCount; ++k) {
        if (!counts || k >= out.count) continue;
        const GroupState one =
            state_of(utility(summary, out.which[k]), groups.reduction, static_cast<Acc>(groups.threshold));
        states[k] = merge(states[k], one, groups.reduction);
      }
    }
#pragma unroll
    for (int k = 0; k < kUtilityCount; ++k) {
      if (k >= out.count) break;
      const GroupState state = merge_warp(states[k], groups.reduction);
      if (lane != 0) continue;
      if (parts.count == 1) {
        out.utilities[k * groups.count + group] = static_cast<Acc>(result_of(state, groups.reduction, groups.empty));
      } else {
        parts.values[k * units + unit] = state.value;
        if (k == 0) parts.rows[unit] = state.rows;
      }
    }
  }
}

// A warp adds up the parts of a group, for one utility.
template <class Acc>
__global__ void __launch_bounds__(kBlockThreads)
    merge_parts(const __grid_constant__ Groups groups, const __grid_constant__ GroupOutputs<Acc> out,
                const __grid_constant__ Parts parts) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t result = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
       result < groups.count * out.count; result += static_cast<int64_t>(gridDim.x) * kWarps) {
    GroupState state = no_rows(groups.reduction);
    for (int64_t part = lane; part < parts.count; part += kWarp) {
      const GroupState one = {parts.values[result * parts.count + part],
                              parts.rows[result % groups.count * parts.count + part]};
      state = merge(state, one, groups.reduction);
    }
    state = merge_warp(state, groups.reduction);
    if (lane == 0) out.utilities[result] = static_cast<Acc>(result_of(state, groups.reduction, groups.empty));
  }
}

struct ScoreGroups {
  const Tensor& logits;

  template <class Stored>
  void operator()(const Groups& groups, const GroupOutputs<accumulate_t<Stored>>& out,
                  accumulate_t<Stored> inverse_temperature, Stored) const {
    using torch::headeronly::ScalarType;
    const int32_t device = logits.get_device_index();
    const torch::stable::accelerator::DeviceGuard guard(device);
    const cudaStream_t stream = current_stream(device);
    const Pool& pool = groups.pool;
    Parts parts = {nullptr, nullptr, 1, pool.rows > 0 ? pool.rows : 1};
    if (groups.offsets == nullptr) {
      // Until there are warps for all of the GPU.
      const int64_t warps = 2 * multiprocessors_of(device) * (2048 / kWarp);
      parts.length = kMostPartRows;
      while (parts.length > kLeastPartRows && groups.count * divide_up(pool.rows, parts.length) < warps) {
        parts.length /= 2;
      }
      parts.count = pool.rows > parts.length ? divide_up(pool.rows, parts.length) : 1;
    }
    Tensor values =
        new_rows(logits, {parts.count > 1 ? out.count * groups.count * parts.count : 0}, ScalarType::Double);
    Tensor rows = new_rows(logits, {parts.count > 1 ? groups.count * parts.count : 0}, ScalarType::Long);
    parts.values = static_cast<double*>(values.data_ptr());
    parts.rows = static_cast<int64_t*>(rows.data_ptr());
    const bool aligned = reinterpret_cast<uintptr_t>(pool.data) % 16 == 0 &&
                         pool.row_stride * static_cast<int64_t>(sizeof(Stored)) % 16 == 0 &&
                         groups.group_stride * static_cast<int64_t>(sizeof(Stored)) % 16 == 0 && pool.class_stride == 1;
    const unsigned blocks = grid_for(divide_up(groups.count * parts.count, kWarps));
    const auto start = [&](auto kernel, int lanes) {
      launch_kernel(kernel, {blocks, kBlockThreads}, stream, groups, out, parts, inverse_temperature, lanes);
    };
    if (groups.labels) {
      start(score_parts<Stored, Read::kLabel>, 1);
    } else if (pool.row_stride == 1 && pool.class_stride != 1) {
      start(score_parts<Stored, Read::kSingle>, 1);
    } else if (aligned) {
      start(score_parts<Stored, Read::kVector>, lanes_for(divide_up(pool.classes, 16 / sizeof(Stored))));
    } else {
      start(score_parts<Stored, Read::kSingle>, lanes_for(pool.classes));
    }
    if (parts.count > 1) {
      const unsigned merging = grid_for(divide_up(groups.count * out.count, kWarps));
      launch_kernel(merge_parts<accumulate_t<Stored>>, {merging, kBlockThreads}, stream, groups, out, parts);
    }
  }
};

Tensor score_groups(const Tensor& logits, std::optional<Tensor> offsets, std::optional<Tensor> mask,
                    std::vector<int64_t> strategies, int64_t reduction, double threshold, double empty, bool labels,
                    bool probabilities, double temperature) {
  return prunefuse::score_groups(logits, offsets, mask, strategies, reduction, threshold, empty, labels, probabilities,
                                 temperature, ScoreGroups{logits});
}

}  // namespace
}  // namespace prunefuse::cuda

STABLE_TORCH_LIBRARY_IMPL(prunefuse, CUDA, m) { m.impl("score_groups", TORCH_BOX(&prunefuse::cuda::score_groups)); }
