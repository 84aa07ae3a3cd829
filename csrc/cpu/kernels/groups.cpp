// Scores reduced over groups of rows. Rows are scored a tile at a time, across the borders of groups where rows go on
// in memory from one group to the next, and the utilities of a tile, which stay in the L1 cache, are then added up by
// group.
//
// What there is to read is read once: labels as they lie, rows by the scorer's own loop. Rows whose classes lie in
// planes, as those of pixels do, are brought together by score_planes. Masked rows are scored and then left out.
#include "groups.h"

#include "rows.h"
#include "scores.h"

namespace prunefuse::cpu::PRUNEFUSE_ISA {
namespace {

// Rows to a tile: a plane's share of it is 2 KiB of float32, long enough for the processor to fetch ahead.
constexpr int64_t kTile = 512;

bool needs_logarithm(const Utility* which, int count) {
  bool needed = false;
  for (int k = 0; k < count; ++k) needed |= which[k] == Utility::kEntropy || which[k] == Utility::kEnergy;
  return needed;
}

// Utilities of `rows` labels that stand `stride` apart, to room[k * kTile + row].
template <class Stored>
void score_labels(const Stored* data, int64_t stride, int64_t rows, bool probabilities, const GroupOutputs<float>& out,
                  float inverse_temperature, float* room) {
  alignas(64) float gathered[kTile];
  const bool in_place = stride == 1;
  if (!in_place) {
    for (int64_t j = 0; j < rows; ++j) gathered[j] = widen(data[j * stride]);
  }
  const bool logarithm = needs_logarithm(out.which, out.count);
  const floats scale = broadcast(inverse_temperature * kLog2E);
  const floats nan = broadcast(std::numeric_limits<float>::quiet_NaN());
  for (int64_t j = 0; j < rows; j += kLanes) {
    const int64_t left = rows - j < kLanes ? rows - j : kLanes;
    const floats x = !in_place       ? load_first(gathered + j, left, 0.0f)
                     : left < kLanes ? load_first(data + j, left, 0.0f)
                                     : load(data + j);
    floats present = x, absent = {};
    if (probabilities) {
      present = log_nonnegative<floats, ints>(x);
      absent = log_nonnegative<floats, ints>(1.0f - x);
    }
    const ints bad = (present != present) | (absent != absent);
    const floats max = larger(present, absent), gap = smaller(present, absent) - max;
    const floats t = larger(gap * scale, broadcast(kLowestLog2));
    const floats e = exp2_of<floats, ints>(t);
    const floats log_sum = logarithm ? log1p_unit(e) : floats{};
    const RowSummary<floats> summary = summary_of<floats>(
        max, e, log_sum, e, e * t * kLn2, gap, broadcast(inverse_temperature), broadcast(1.0f / inverse_temperature));
    for (int k = 0; k < out.count; ++k) {
      store(room + k * kTile + j, select(bad, nan, utility(summary, out.which[k])));
    }
  }
}

void score_labels(const double* data, int64_t stride, int64_t rows, bool probabilities, const GroupOutputs<double>& out,
                  double inverse_temperature, double* room) {
  for (int64_t j = 0; j < rows; ++j) {
    const RowSummary<double> summary =
        summarize_label(label_logits(data[j * stride], probabilities), inverse_temperature);
    for (int k = 0; k < out.count; ++k) room[k * kTile + j] = utility(summary, out.which[k]);
  }
}

// Utilities of `rows` rows from `data` on, to room[k * kTile + row]; `behind` rows lie in memory from there on.
template <class Stored>
void score_tile(const Groups& groups, const Stored* data, int64_t rows, int64_t behind,
                const GroupOutputs<accumulate_t<Stored>>& out, accumulate_t<Stored> inverse_temperature,
                accumulate_t<Stored>* room) {
  const Pool& all = groups.pool;
  if (groups.labels) {
    return score_labels(data, all.row_stride, rows, all.probabilities, out, inverse_temperature, room);
  }
  Pool pool = all;
  pool.data = data;
  pool.rows = behind;
  RowOutputs<accumulate_t<Stored>> outputs;
  outputs.utilities = room;
  outputs.count = out.count;
  for (int k = 0; k < out.count; ++k) outputs.which[k] = out.which[k];
  outputs.rows = kTile;
  if constexpr (sizeof(accumulate_t<Stored>) == sizeof(float)) {
    if (pool.row_stride == 1 && pool.class_stride != 1 && pool.classes <= kPlanes) {
      return score_planes<Stored>(pool, outputs, inverse_temperature, 0, rows);
    }
  }
  score_rows<Stored>(pool, outputs, inverse_temperature, 0, rows);
}

// Brings the utilities of rows that count together at the front; how many there are.
template <class Acc>
int64_t keep_counting(Acc* utilities, int64_t rows, const uint8_t* mask, int64_t stride) {
  int64_t kept = 0;
  for (int64_t j = 0; j < rows; ++j) {
    utilities[kept] = utilities[j];
    kept += mask[j * stride] != 0;
  }
  return kept;
}

// Calls take(lanes) for all utilities; the last lanes are filled up.
template <class Take>
void for_lanes(const float* utilities, int64_t rows, float filler, const Take& take) {
  int64_t j = 0;
  for (; j + kLanes <= rows; j += kLanes) take(load(utilities + j));
  if (j < rows) take(load_first(utilities + j, rows - j, filler));
}

GroupState reduced(const float* utilities, int64_t rows, Reduction reduction, float threshold) {
  if (reduction == Reduction::kMean || reduction == Reduction::kSum) {
    floats total{};
    for_lanes(utilities, rows, 0.0f, [&](floats u) { total += u; });
    return {static_cast<double>(sum(total)), rows};
  }
  const float lowest = -std::numeric_limits<float>::infinity();
  floats top = broadcast(lowest);
  ints bad{}, above{};
  if (reduction == Reduction::kMax) {
    for_lanes(utilities, rows, lowest, [&](floats u) {
      top = larger(u, top);
      bad |= u != u;
    });
  } else {
    // The filler is above no threshold.
    for_lanes(utilities, rows, lowest, [&](floats u) {
      above -= u > threshold;
      bad |= u != u;
    });
  }
  if (any(bad)) return {std::numeric_limits<double>::quiet_NaN(), rows};
  const float value = reduction == Reduction::kMax ? largest(top) : sum(__builtin_convertvector(above, floats));
  return {static_cast<double>(value), rows};
}

GroupState reduced(const double* utilities, int64_t rows, Reduction reduction, double threshold) {
  GroupState state = no_rows(reduction);
  for (int64_t j = 0; j < rows; ++j) state = merge(state, state_of(utilities[j], reduction, threshold), reduction);
  return state;
}

// Rows from..to, numbered from `base` on, of groups first..last; group g has those from start_of(g) to end_of(g). Calls
// done(g, states) for every group in turn.
template <class Stored, class Start, class End, class Done>
void walk(const Groups& groups, const GroupOutputs<accumulate_t<Stored>>& out, accumulate_t<Stored> inverse_temperature,
          const Stored* base, int64_t from, int64_t to, int64_t first, int64_t last, const Start& start_of,
          const End& end_of, const Done& done) {
  using Acc = accumulate_t<Stored>;
  alignas(64) Acc room[kUtilityCount * kTile];
  GroupState states[kUtilityCount];
  const auto clear = [&] {
    for (int k = 0; k < out.count; ++k) states[k] = no_rows(groups.reduction);
  };
  clear();
  int64_t group = first;
  for (int64_t begin = from; group < last;) {
    const int64_t end = to - begin < kTile ? to : begin + kTile;
    if (begin < end) {
      score_tile(groups, base + begin * groups.pool.row_stride, end - begin, to - begin, out, inverse_temperature,
                 room);
    }
    for (int64_t row = begin; group < last;) {
      const int64_t stop = end_of(group) < end ? end_of(group) : end;
      for (int k = 0; k < out.count && row < stop; ++k) {
        Acc* const utilities = room + k * kTile + (row - begin);
        int64_t rows = stop - row;
        if (groups.mask != nullptr) {
          const uint8_t* const mask = groups.mask + group / groups.shared * groups.mask_group_stride +
                                      (row - start_of(group)) * groups.mask_row_stride;
          rows = keep_counting(utilities, rows, mask, groups.mask_row_stride);
        }
        const GroupState piece = reduced(utilities, rows, groups.reduction, static_cast<Acc>(groups.threshold));
        states[k] = merge(states[k], piece, groups.reduction);
      }
      row = row > stop ? row : stop;
      if (end_of(group) > end) break;
      done(group, states);
      clear();
      ++group;
    }
    begin = end;
  }
}

}  // namespace

template <class Stored>
void score_groups(const Groups& groups, const GroupOutputs<accumulate_t<Stored>>& out,
                  accumulate_t<Stored> inverse_temperature, int64_t begin, int64_t end) {
  using Acc = accumulate_t<Stored>;
  const auto* const data = static_cast<const Stored*>(groups.pool.data);
  const int64_t rows = groups.pool.rows;
  const auto write = [&](int64_t group, const GroupState* states) {
    for (int k = 0; k < out.count; ++k) {
      out.utilities[k * groups.count + group] = static_cast<Acc>(result_of(states[k], groups.reduction, groups.empty));
    }
  };
  if (groups.offsets != nullptr) {
    const int64_t* const offsets = groups.offsets;
    return walk(
        groups, out, inverse_temperature, data, offsets[begin], offsets[end], begin, end,
        [&](int64_t group) { return offsets[group]; }, [&](int64_t group) { return offsets[group + 1]; }, write);
  }
  if (groups.group_stride == rows * groups.pool.row_stride) {
    return walk(
        groups, out, inverse_temperature, data, begin * rows, end * rows, begin, end,
        [&](int64_t group) { return group * rows; }, [&](int64_t group) { return (group + 1) * rows; }, write);
  }
  for (int64_t one = begin; one < end; ++one) {
    walk(
        groups, out, inverse_temperature, data + one * groups.group_stride, 0, rows, one, one + 1,
        [](int64_t) { return int64_t{0}; }, [&](int64_t) { return rows; }, write);
  }
}

template <class Stored>
void score_part(const Groups& groups, const GroupOutputs<accumulate_t<Stored>>& out,
                accumulate_t<Stored> inverse_temperature, int64_t group, int64_t begin, int64_t end,
                GroupState* states) {
  const auto* const data = static_cast<const Stored*>(groups.pool.data) + group * groups.group_stride;
  walk(
      groups, out, inverse_temperature, data, begin, end, group, group + 1, [](int64_t) { return int64_t{0}; },
      [&](int64_t) { return end; },
      [&](int64_t, const GroupState* found) {
        for (int k = 0; k < out.count; ++k) states[k] = found[k];
      });
}

#define PRUNEFUSE_INSTANTIATE(Stored)                                                                                \
  template void score_groups<Stored>(const Groups&, const GroupOutputs<accumulate_t<Stored>>&, accumulate_t<Stored>, \
                                     int64_t, int64_t);                                                              \
  template void score_part<Stored>(const Groups&, const GroupOutputs<accumulate_t<Stored>>&, accumulate_t<Stored>,   \
                                   int64_t, int64_t, int64_t, GroupState*);
PRUNEFUSE_INSTANTIATE(float)
PRUNEFUSE_INSTANTIATE(double)
PRUNEFUSE_INSTANTIATE(half_bits)
PRUNEFUSE_INSTANTIATE(bfloat16_bits)
#undef PRUNEFUSE_INSTANTIATE

}  // namespace prunefuse::cpu::PRUNEFUSE_ISA
