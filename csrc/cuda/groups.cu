// Scores reduced over groups of rows on CUDA. Bound by reading the logits once.
//
// A warp takes a part of a group: all of it, or some hundred rows where groups are long, so that a few images fill a
// GPU. Rows whose classes lie in planes belong to a lane each: neighboring lanes read neighboring values. Other rows
// belong to a group of lanes, as in scores.cu. Each lane adds up the utilities of its rows, a butterfly of shuffles
// adds up the lanes, and where groups came in parts a second launch adds up these, always in the same order.
//
// Labels have a kernel of their own: as many lanes share a group as have a logarithm's worth of labels each. A lane
// asks for four labels at a time and adds them up as the CPU does (math/groups.h). Not run on a GPU yet.
#include "../groups.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "lanes.h"

namespace prunefuse::cuda {
namespace {

constexpr int kBlockThreads = 256;
constexpr int kWarps = kBlockThreads / kWarp;
constexpr int64_t kMostPartRows = 1024, kLeastPartRows = 128;

// Labels that a lane has under way.
constexpr int kBatch = 4;

// Where parts leave their states: utilities x groups x parts, and groups x parts.
struct Parts {
  double* values;
  int64_t* rows;
  int64_t count;
  int64_t length;
};

// Rows begin..end of a group, as a warp or some lanes of one take them.
template <class Stored>
struct Unit {
  const Stored* data;
  const uint8_t* mask;
  int64_t group, begin, end;

  __device__ bool counts(const Groups& groups, int64_t row) const {
    return mask == nullptr || mask[row * groups.mask_row_stride] != 0;
  }
};

template <class Stored>
__device__ Unit<Stored> unit_of(const Groups& groups, const Parts& parts, int64_t number) {
  Unit<Stored> unit = {static_cast<const Stored*>(groups.pool.data), nullptr, number / parts.count, 0, 0};
  const int64_t rows = groups.pool.rows;
  if (groups.offsets != nullptr) {
    // What is out of range is left out: nobody has looked at the offsets.
    unit.begin = groups.offsets[unit.group] > 0 ? groups.offsets[unit.group] : 0;
    unit.end = groups.offsets[unit.group + 1] < rows ? groups.offsets[unit.group + 1] : rows;
  } else {
    unit.begin = number % parts.count * parts.length;
    unit.end = unit.begin + parts.length < rows ? unit.begin + parts.length : rows;
    unit.data += unit.group * groups.group_stride;
    if (groups.mask != nullptr) unit.mask = groups.mask + unit.group / groups.shared * groups.mask_group_stride;
  }
  return unit;
}

template <class Acc>
__device__ void write_state(const Groups& groups, const GroupOutputs<Acc>& out, const Parts& parts, int64_t number,
                            int k, const GroupState& state) {
  const int64_t units = groups.count * parts.count;
  if (parts.count == 1) {
    out.utilities[k * groups.count + number] = static_cast<Acc>(result_of(state, groups.reduction, groups.empty));
  } else {
    parts.values[k * units + number] = state.value;
    if (k == 0) parts.rows[number] = state.rows;
  }
}

__device__ GroupState merge_states(GroupState state, int lanes, Reduction reduction) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) {
    GroupState other;
    other.value = __shfl_xor_sync(kAllLanes, state.value, mask);
    other.rows = __shfl_xor_sync(kAllLanes, static_cast<long long>(state.rows), mask);
    state = merge(state, other, reduction);
  }
  return state;
}

template <class Stored, bool Vectorized>
__global__ void __launch_bounds__(kBlockThreads)
    score_parts(const __grid_constant__ Groups groups, const __grid_constant__ GroupOutputs<accumulate_t<Stored>> out,
                const __grid_constant__ Parts parts, accumulate_t<Stored> inverse_temperature, int lanes) {
  using Acc = accumulate_t<Stored>;
  const Pool& pool = groups.pool;
  const int lane = threadIdx.x % kWarp;
  const int64_t units = groups.count * parts.count;
  for (int64_t number = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp; number < units;
       number += static_cast<int64_t>(gridDim.x) * kWarps) {
    const Unit<Stored> unit = unit_of<Stored>(groups, parts, number);
    GroupState states[kUtilityCount];
#pragma unroll
    for (int k = 0; k < kUtilityCount; ++k) states[k] = no_rows(groups.reduction);
    // Every lane takes part in every round's shuffles; rows past the end are read as the last one and not counted.
    const int step = kWarp / lanes;
#pragma unroll 2
    for (int64_t first = unit.begin; first < unit.end; first += step) {
      const int64_t row = first + lane / lanes;
      const int64_t source = row < unit.end ? row : unit.end - 1;
      auto row_state = lane_state<Stored, Vectorized>(unit.data + source * pool.row_stride, pool, lane % lanes, lanes,
                                                      inverse_temperature);
      row_state = merge_lanes(row_state, lanes, inverse_temperature);
      const RowSummary<Acc> summary = summarize(row_state, inverse_temperature);
      const bool counts = row < unit.end && lane % lanes == 0 && unit.counts(groups, source);
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
      const GroupState state = merge_states(states[k], kWarp, groups.reduction);
      if (lane == 0) write_state(groups, out, parts, number, k, state);
    }
  }
}

// What a lane has met of labels that are to be added up, or compared.
template <class Acc, bool Sums>
struct LaneLabels {
  const Groups& groups;
  const GroupOutputs<Acc>& out;
  Acc inverse_temperature;
  bool fractions = false, others = false;  // whether some utility is one of these
  LabelSums<Acc> sums = {};
  int held = 0;
  double confidence = 0, entropy = 0, energy = 0, size = 0;
  Acc least = std::numeric_limits<Acc>::infinity(), highest = -std::numeric_limits<Acc>::infinity();
  bool has_nan = false;
  int64_t rows = 0;
  int above[kUtilityCount] = {};

  __device__ LaneLabels(const Groups& of, const GroupOutputs<Acc>& to, Acc inverse)
      : groups(of), out(to), inverse_temperature(inverse) {
#pragma unroll
    for (int k = 0; k < kUtilityCount; ++k) {
      fractions = fractions || (k < out.count && is_fraction(out.which[k]));
      others = others || (k < out.count && !is_fraction(out.which[k]));
    }
  }

  __device__ void take(Acc x) {
    const Acc of_x = magnitude_of(x);
    const Acc energy_of_x = others ? label_energy(x, groups.pool.probabilities, inverse_temperature) : Acc(0);
    ++rows;
    has_nan = has_nan || x != x;
    if constexpr (Sums) {
      if (others) {
        energy += static_cast<double>(energy_of_x);
        size += static_cast<double>(of_x);
      }
      if (!fractions) return;
      const Acc t = shifted(-of_x, Acc(0), inverse_temperature);
      absorb(sums, exp_of(t), t);
    } else if (groups.reduction == Reduction::kMax) {
      least = of_x < least ? of_x : least;
      highest = energy_of_x > highest ? energy_of_x : highest;
    } else {
#pragma unroll
      for (int k = 0; k < kUtilityCount; ++k) {
        if (k >= out.count) break;
        const bool energy_is = energy_of_x > static_cast<Acc>(groups.threshold);
        above[k] += out.which[k] == Utility::kEnergy ? energy_is : of_x <= out.limits[k];
      }
    }
  }

  // Call it after every `taken` labels, which are few.
  __device__ void add_up_after(int taken) {
    held += taken;
    if (Sums && held >= kLabels) add_up();
  }

  __device__ void add_up() {
    const LabelTotals<Acc> totals = totals_of(sums, log1p_of(sums.rest), Acc(1));
    confidence += static_cast<double>(totals.confidence);
    entropy += static_cast<double>(totals.entropy);
    sums = {};
    held = 0;
  }

  // Of the labels for `which`, number `k` of those asked for.
  __device__ GroupState state(Utility which, int k) const {
    double value = static_cast<double>(above[k]);
    if constexpr (Sums) {
      value = which == Utility::kEnergy        ? energy
              : which == Utility::kLogitMargin ? -size
                                               : utility(LabelTotals<double>{confidence, entropy}, which);
    } else if (groups.reduction == Reduction::kMax) {
      value =
          static_cast<double>(which == Utility::kEnergy ? highest : label_utility(least, which, inverse_temperature));
      if (rows == 0) value = no_rows(groups.reduction).value;
    }
    return {has_nan ? std::numeric_limits<double>::quiet_NaN() : value, rows};
  }
};

template <class Stored, bool Sums>
__global__ void __launch_bounds__(kBlockThreads)
    label_parts(const __grid_constant__ Groups groups, const __grid_constant__ GroupOutputs<accumulate_t<Stored>> out,
                const __grid_constant__ Parts parts, accumulate_t<Stored> inverse_temperature, int lanes) {
  using Acc = accumulate_t<Stored>;
  const Pool& pool = groups.pool;
  const int lane = threadIdx.x % lanes;
  const int64_t units = groups.count * parts.count, step = kBlockThreads / lanes;
  // Every lane of a warp takes part in the shuffles; units past the end are read as the last one and not written.
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * step; first < units;
       first += static_cast<int64_t>(gridDim.x) * step) {
    const int64_t wanted = first + threadIdx.x / lanes, number = wanted < units ? wanted : units - 1;
    const Unit<Stored> unit = unit_of<Stored>(groups, parts, number);
    LaneLabels<Acc, Sums> labels(groups, out, inverse_temperature);
    const auto take = [&](Stored stored) {
      labels.take(label_logit(static_cast<Acc>(widen(stored)), pool.probabilities));
    };
    int64_t row = unit.begin + lane;
    const Stored* from = unit.data + row * pool.row_stride;
    const int64_t step_of_lane = lanes * pool.row_stride;
    for (; unit.mask == nullptr && row + (kBatch - 1) * lanes < unit.end; row += kBatch * lanes) {
      Stored stored[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) stored[i] = from[i * step_of_lane];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) take(stored[i]);
      labels.add_up_after(kBatch);
      from += kBatch * step_of_lane;
    }
    for (; row < unit.end; row += lanes, from += step_of_lane) {
      if (!unit.counts(groups, row)) continue;
      take(*from);
      labels.add_up_after(1);
    }
    if (Sums && labels.fractions) labels.add_up();
#pragma unroll
    for (int k = 0; k < kUtilityCount; ++k) {
      if (k >= out.count) break;
      const GroupState state = merge_states(labels.state(out.which[k], k), lanes, groups.reduction);
      if (lane == 0 && wanted < units) write_state(groups, out, parts, number, k, state);
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
    state = merge_states(state, kWarp, groups.reduction);
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
    const int64_t units = groups.count * parts.count;
    const auto start = [&](auto kernel, int lanes, int64_t per_block) {
      launch_kernel(kernel, {grid_for(divide_up(units, per_block)), kBlockThreads}, stream, groups, out, parts,
                    inverse_temperature, lanes);
    };
    if (groups.labels) {
      const int64_t average =
          groups.offsets != nullptr ? pool.rows / groups.count + 1 : std::min(parts.length, pool.rows);
      int lanes = 1;
      while (lanes < kWarp && lanes * kLabels < average) lanes *= 2;
      const bool sums = groups.reduction == Reduction::kMean || groups.reduction == Reduction::kSum;
      start(sums ? label_parts<Stored, true> : label_parts<Stored, false>, lanes, kBlockThreads / lanes);
    } else if (pool.row_stride == 1 && pool.class_stride != 1) {
      start(score_parts<Stored, false>, 1, kWarps);
    } else if (aligned) {
      start(score_parts<Stored, true>, lanes_for(divide_up(pool.classes, 16 / sizeof(Stored))), kWarps);
    } else {
      start(score_parts<Stored, false>, lanes_for(pool.classes), kWarps);
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
