// Scores reduced over groups of rows. Rows are scored a tile at a time, across the borders of groups where rows go on
// in memory from one group to the next, and the utilities of a tile, which stay in the L1 cache, are then added up by
// group.
//
// What there is to read is read once: rows by the scorer's own loop. Rows whose classes lie in planes, as those of
// pixels do, are brought together by score_planes. Masked rows are scored and then left out. Labels are reduced as they
// lie (labels.h).
#include "groups.h"

#include "labels.h"
#include "scores.h"

namespace prunefuse::cpu::PRUNEFUSE_ISA {
namespace {

// Rows to a tile, and utilities added up in lanes before their sum goes on as one number.
constexpr int64_t kTile = 2048, kSum = 512;

// Utilities of `rows` rows from `data` on, to room[k * kTile + row]; `behind` rows lie in memory from there on.
template <class Stored>
void score_tile(const Groups& groups, const Stored* data, int64_t rows, int64_t behind,
                const GroupOutputs<accumulate_t<Stored>>& out, accumulate_t<Stored> inverse_temperature,
                accumulate_t<Stored>* room) {
  const Pool& all = groups.pool;
  if (groups.labels) {
    for (int64_t j = 0; j < rows; ++j) {
      const auto x = label_logit(static_cast<accumulate_t<Stored>>(widen(data[j * all.row_stride])), all.probabilities);
      for (int k = 0; k < out.count; ++k) {
        room[k * kTile + j] = out.which[k] == Utility::kEnergy
                                  ? label_energy(x, all.probabilities, inverse_temperature)
                                  : label_utility(magnitude_of(x), out.which[k], inverse_temperature);
      }
    }
    return;
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

// Which of a group's rows count: every byte that is not 0, or null for all.
struct Mask {
  const uint8_t* bytes;
  int64_t stride;
};

// A tile of rows, as their utilities.
template <class Stored>
struct RowTile {
  using Acc = accumulate_t<Stored>;
  static constexpr int64_t kRows = kTile;
  const Groups& groups;
  const GroupOutputs<Acc>& out;
  Acc inverse_temperature;
  Acc* room;  // kUtilityCount * kTile

  void fill(const Stored* data, int64_t rows, int64_t behind) {
    score_tile(groups, data, rows, behind, out, inverse_temperature, room);
  }

  // Adds `rows` of its rows, from `first` on, to a group's states.
  void add(int64_t first, int64_t rows, const Mask& mask, GroupState* states) {
    for (int64_t begin = first; begin < first + rows;) {
      const int64_t border = begin - begin % kSum + kSum, end = border < first + rows ? border : first + rows;
      for (int k = 0; k < out.count; ++k) {
        Acc* const utilities = room + k * kTile + begin;
        int64_t kept = end - begin;
        if (mask.bytes != nullptr) {
          kept = keep_counting(utilities, kept, mask.bytes + (begin - first) * mask.stride, mask.stride);
        }
        const GroupState piece = reduced(utilities, kept, groups.reduction, static_cast<Acc>(groups.threshold));
        states[k] = merge(states[k], piece, groups.reduction);
      }
      begin = end;
    }
  }
};

// A tile of labels: they stay where they are, unless they must be brought together or made logits.
template <class Stored>
struct LabelTile {
  static constexpr int64_t kRows = kTile;
  const Groups& groups;
  const LabelWork& work;
  float* room;      // kTile
  int32_t* counts;  // kTile, and kLanes that may be read
  const Stored* in_place = nullptr;

  void fill(const Stored* data, int64_t rows, int64_t) {
    const int64_t stride = groups.pool.row_stride;
    if (stride == 1 && !work.probabilities) {
      in_place = data;
      return;
    }
    widen_block(data, room, rows, stride);
    if (work.probabilities) take_label_logits(room, rows);
  }

  void add(int64_t first, int64_t rows, const Mask& mask, GroupState* states) {
    if (mask.bytes != nullptr && mask.stride == 1) {
      for (int64_t j = 0; j < rows; ++j) counts[j] = -(mask.bytes[j] != 0);
    } else if (mask.bytes != nullptr) {
      for (int64_t j = 0; j < rows; ++j) counts[j] = -(mask.bytes[j * mask.stride] != 0);
    }
    const int32_t* const counting = mask.bytes == nullptr ? nullptr : counts;
    const auto threshold = static_cast<float>(groups.threshold);
    if (in_place != nullptr) {
      add_labels(work, threshold, in_place + first, counting, rows, states);
    } else {
      add_labels(work, threshold, room + first, counting, rows, states);
    }
  }
};

// Calls use(tile) with a tile for the kind of rows.
template <class Stored, class Use>
void with_tile(const Groups& groups, const GroupOutputs<accumulate_t<Stored>>& out,
               accumulate_t<Stored> inverse_temperature, const Use& use) {
  if constexpr (sizeof(accumulate_t<Stored>) == sizeof(float)) {
    if (groups.labels) {
      const LabelWork work = {out, groups.reduction, groups.pool.probabilities, inverse_temperature};
      alignas(64) float room[kTile];
      alignas(64) int32_t counts[kTile + kLanes];
      LabelTile<Stored> tile{groups, work, room, counts};
      return use(tile);
    }
  }
  alignas(64) accumulate_t<Stored> room[kUtilityCount * kTile];
  RowTile<Stored> tile{groups, out, inverse_temperature, room};
  use(tile);
}

// Rows from..to, numbered from `base` on, of groups first..last; group g has those from start_of(g) to end_of(g). Calls
// done(g, states) for every group in turn.
template <class Stored, class Tile, class Start, class End, class Done>
void walk(const Groups& groups, int utilities, Tile& tile, const Stored* base, int64_t from, int64_t to, int64_t first,
          int64_t last, const Start& start_of, const End& end_of, const Done& done) {
  GroupState states[kUtilityCount];
  const auto clear = [&] {
    for (int k = 0; k < utilities; ++k) states[k] = no_rows(groups.reduction);
  };
  clear();
  int64_t group = first;
  for (int64_t begin = from; group < last;) {
    const int64_t end = to - begin < Tile::kRows ? to : begin + Tile::kRows;
    if (begin < end) tile.fill(base + begin * groups.pool.row_stride, end - begin, to - begin);
    for (int64_t row = begin; group < last;) {
      const int64_t stop = end_of(group) < end ? end_of(group) : end;
      if (row < stop) {
        Mask mask = {nullptr, groups.mask_row_stride};
        if (groups.mask != nullptr) {
          mask.bytes = groups.mask + group / groups.shared * groups.mask_group_stride +
                       (row - start_of(group)) * groups.mask_row_stride;
        }
        tile.add(row - begin, stop - row, mask, states);
        row = stop;
      }
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
  if constexpr (sizeof(Acc) == sizeof(float)) {
    if (groups.labels && groups.offsets == nullptr && rows <= kShortRow) {
      const LabelWork work = {out, groups.reduction, groups.pool.probabilities, inverse_temperature};
      return score_short_groups<Stored>(groups, work, begin, end);
    }
  }
  const auto write = [&](int64_t group, const GroupState* states) {
    for (int k = 0; k < out.count; ++k) {
      out.utilities[k * groups.count + group] = static_cast<Acc>(result_of(states[k], groups.reduction, groups.empty));
    }
  };
  with_tile<Stored>(groups, out, inverse_temperature, [&](auto& tile) {
    if (groups.offsets != nullptr) {
      const int64_t* const offsets = groups.offsets;
      return walk(
          groups, out.count, tile, data, offsets[begin], offsets[end], begin, end,
          [&](int64_t group) { return offsets[group]; }, [&](int64_t group) { return offsets[group + 1]; }, write);
    }
    if (groups.group_stride == rows * groups.pool.row_stride) {
      return walk(
          groups, out.count, tile, data, begin * rows, end * rows, begin, end,
          [&](int64_t group) { return group * rows; }, [&](int64_t group) { return (group + 1) * rows; }, write);
    }
    for (int64_t one = begin; one < end; ++one) {
      walk(
          groups, out.count, tile, data + one * groups.group_stride, 0, rows, one, one + 1,
          [](int64_t) { return int64_t{0}; }, [&](int64_t) { return rows; }, write);
    }
  });
}

template <class Stored>
void score_part(const Groups& groups, const GroupOutputs<accumulate_t<Stored>>& out,
                accumulate_t<Stored> inverse_temperature, int64_t group, int64_t begin, int64_t end,
                GroupState* states) {
  const auto* const data = static_cast<const Stored*>(groups.pool.data) + group * groups.group_stride;
  with_tile<Stored>(groups, out, inverse_temperature, [&](auto& tile) {
    walk(
        groups, out.count, tile, data, begin, end, group, group + 1, [](int64_t) { return int64_t{0}; },
        [&](int64_t) { return end; },
        [&](int64_t, const GroupState* found) {
          for (int k = 0; k < out.count; ++k) states[k] = found[k];
        });
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
