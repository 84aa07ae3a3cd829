// The statistics of row_state.h in the form that a GPU's lanes take them in: a tile of 16-byte chunks at a time, held
// in registers, against a maximum that the lanes of a group share.
//
// A tile's largest value is found first. Where the group's maximum is not below it, which happens O(log tiles) times in
// a row, `raise` brings the sums to the new maximum and `take_out` counts the values that equal it and replaces them by
// masked ones. What is left to `add` needs no comparison: subtract, multiply, bound, exponential, two sums. Lanes with
// one maximum merge by plain sums, and `row_state_of` makes of those a RowState, which merges with any other.
//
// A NaN is never a maximum and makes the sum of the exponentials NaN, so it is looked for once a row. Of probabilities,
// maxima are compared as they are and sums are of their logarithms; they are masked by 0.
#pragma once

#include <type_traits>

#include "pieces.h"
#include "row_state.h"

namespace prunefuse {

// 16 bytes of a row.
template <class Stored>
using Chunk = Piece<Stored, 16 / static_cast<int>(sizeof(Stored))>;

template <class Stored>
PRUNEFUSE_HD void put(Chunk<Stored>& chunk, int i, Stored stored) {
  if constexpr (sizeof(Stored) == 2) {
    const uint32_t bits = bits_as<uint16_t>(stored);
    chunk.words[i / 2] =
        i % 2 == 0 ? (chunk.words[i / 2] & 0xffff0000u) | bits : (chunk.words[i / 2] & 0xffffu) | bits << 16;
  } else if constexpr (sizeof(Stored) == 4) {
    chunk.words[i] = bits_as<uint32_t>(stored);
  } else {
    chunk.words[2 * i] = static_cast<uint32_t>(bits_as<uint64_t>(stored));
    chunk.words[2 * i + 1] = static_cast<uint32_t>(bits_as<uint64_t>(stored) >> 32);
  }
}

// What a masked class is stored as: no value is below it, but a probability that makes its row NaN.
template <class Stored, bool Probabilities>
PRUNEFUSE_HD Stored masked() {
  if constexpr (Probabilities)
    return Stored{};
  else if constexpr (sizeof(Stored) == 2)
    return Stored{0xff80};
  else
    return -std::numeric_limits<Stored>::infinity();
}
template <>
PRUNEFUSE_HD half_bits masked<half_bits, false>() {
  return {0xfc00};
}

template <class Stored, bool Probabilities>
PRUNEFUSE_HD Chunk<Stored> masked_chunk() {
  Chunk<Stored> chunk = {};
  for (int i = 0; i < Chunk<Stored>::kWidth; ++i) put(chunk, i, masked<Stored, Probabilities>());
  return chunk;
}

// Of values of 16 bits some processors take two at a time. So they are widened only once, where they are added.
#if defined(__CUDA_ARCH__)
constexpr bool kLargestByPairs = __CUDA_ARCH__ >= 800, kEqualByPairs = __CUDA_ARCH__ >= 900;
#else
constexpr bool kLargestByPairs = false, kEqualByPairs = false;
#endif

// The largest number of a chunk.
template <class Stored>
PRUNEFUSE_HD accumulate_t<Stored> top_of(const Chunk<Stored>& chunk) {
  if constexpr (kLargestByPairs && sizeof(Stored) == 2) {
    const uint32_t (&pairs)[4] = chunk.words;
    uint32_t top =
        larger_pair<Stored>(larger_pair<Stored>(pairs[0], pairs[1]), larger_pair<Stored>(pairs[2], pairs[3]));
    top = larger_pair<Stored>(top, top << 16 | top >> 16);
    return widen(Stored{static_cast<uint16_t>(top)});
  } else {
    accumulate_t<Stored> top = value_at(chunk, 0);
    PRUNEFUSE_UNROLL
    for (int i = 1; i < Chunk<Stored>::kWidth; ++i) top = larger(top, value_at(chunk, i));
    return top;
  }
}

template <bool Probabilities, class Acc>
PRUNEFUSE_HD Acc logit_of(Acc value) {
  if constexpr (Probabilities) return log_of(value);
  return value;
}

// (x - m) in units, bounded where the exponential is zero, so that zero times it is zero. A NaN stays one.
PRUNEFUSE_HD float exponent(float difference, float scale) {
  const float t = difference * scale;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float bounded;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(bounded) : "f"(t), "f"(kLowestLog2));
  return bounded;
#else
  return t < kLowestLog2 ? kLowestLog2 : t;
#endif
}
PRUNEFUSE_HD double exponent(double difference, double scale) {
  const double t = difference * scale;
  return t < -800 ? -800 : t;
}

constexpr uint32_t kNoColumn = 0xffffffff;

// A lane's share of a row: `max` is the group's, all else is of the lane's own values.
template <class Acc>
struct TileState {
  Acc max, second;
  Acc ties = 0, tail = 0, dot = 0;
  uint32_t argmax = kNoColumn;  // rows in tiles have fewer columns
};

template <class Acc, bool Probabilities>
PRUNEFUSE_HD TileState<Acc> no_tiles() {
  const Acc lowest = Probabilities ? Acc(0) : -std::numeric_limits<Acc>::infinity();
  return {lowest, lowest};
}

// Brings the sums to a larger maximum. Every lane's runner-up is the maximum before, then.
template <bool Probabilities, class Acc>
PRUNEFUSE_HD void raise(TileState<Acc>& state, Acc max, Acc scale) {
  if (!(max > state.max)) return;
  const Acc t = exponent(logit_of<Probabilities>(state.max) - logit_of<Probabilities>(max), scale);
  const Acc e = exponential(t), mass = state.ties + state.tail;
  state.tail = e * mass;
  state.dot = e * (state.dot + mass * t);
  state.ties = 0;
  state.second = state.max;
  state.max = max;
  state.argmax = kNoColumn;
}

// mask_equal with the instruction that compares two 16-bit values at a time.
template <bool Probabilities, class Stored>
PRUNEFUSE_HD uint32_t mask_equal_pairs(Chunk<Stored>& chunk, float max) {
  uint32_t even = 0, odd = 0;  // bits 2 i and 2 i + 17 of word i
  constexpr bool brain = std::is_same_v<Stored, bfloat16_bits>;
  uint32_t of_max = bits_as<uint32_t>(max) & 0xffff0000u;
  if constexpr (brain) {
    of_max |= of_max >> 16;
  } else {
    asm("{ .reg .b16 half; cvt.rn.f16.f32 half, %1; mov.b32 %0, {half, half}; }" : "=r"(of_max) : "f"(max));
  }
  const uint32_t lowest = bits_as<uint16_t>(masked<Stored, Probabilities>()) * 0x10001u;
  PRUNEFUSE_UNROLL
  for (int i = 0; i < 4; ++i) {
    uint32_t& pair = chunk.words[i];
    uint32_t equal;
    if constexpr (brain) {
      asm("set.eq.u32.bf16x2 %0, %1, %2;" : "=r"(equal) : "r"(pair), "r"(of_max));
    } else {
      asm("set.eq.u32.f16x2 %0, %1, %2;" : "=r"(equal) : "r"(pair), "r"(of_max));
    }
    pair = (pair & ~equal) | (lowest & equal);
    even |= equal & (1u << (2 * i));
    odd |= equal & (1u << (2 * i + 17));
  }
  return even | odd >> 16;
}

// Masks the values of a chunk that equal the maximum; the bits of the result that are set are as many as these, and the
// number of the lowest, if there is one, is that of the first.
template <bool Probabilities, class Stored, class Acc>
PRUNEFUSE_HD uint32_t mask_equal(Chunk<Stored>& chunk, Acc max) {
  if constexpr (kEqualByPairs && sizeof(Stored) == 2) {
    return mask_equal_pairs<Probabilities>(chunk, max);
  } else {
    uint32_t hits = 0;
    PRUNEFUSE_UNROLL
    for (int i = 0; i < Chunk<Stored>::kWidth; ++i) {
      if (value_at(chunk, i) == max) {
        put(chunk, i, masked<Stored, Probabilities>());
        hits |= 1u << i;
      }
    }
    return hits;
  }
}

// Counts the values of a chunk that equal the maximum, and masks them. `column` is where the chunk begins.
template <bool Probabilities, class Stored, class Acc>
PRUNEFUSE_HD void take_out(TileState<Acc>& state, Chunk<Stored>& chunk, uint32_t column, bool with_argmax) {
  const uint32_t hits = mask_equal<Probabilities>(chunk, state.max);
#if defined(__CUDA_ARCH__)
  const int count = __popc(hits);
#else
  const int count = __builtin_popcount(hits);
#endif
  state.ties += static_cast<Acc>(count);
  if (!with_argmax || hits == 0) return;
#if defined(__CUDA_ARCH__)
  const int place = __ffs(static_cast<int>(hits)) - 1;
#else
  const int place = __builtin_ctz(hits);
#endif
  const uint32_t first = column + static_cast<uint32_t>(place);
  state.argmax = first < state.argmax ? first : state.argmax;
}

// What exponents are of differences from: the maximum, or, where all is masked, any number.
template <bool Probabilities, class Acc>
PRUNEFUSE_HD Acc origin_of(const TileState<Acc>& state) {
  const Acc max = logit_of<Probabilities>(state.max);
  return max == -std::numeric_limits<Acc>::infinity() ? Acc(0) : max;
}

// Adds a value that is not above the maximum, nor an infinite one.
template <bool Probabilities, class Acc>
PRUNEFUSE_HD void add_value(TileState<Acc>& state, Acc value, Acc scale) {
  const Acc t = exponent(logit_of<Probabilities>(value) - origin_of<Probabilities>(state), scale);
  const Acc e = exponential(t);
  state.tail += e;
  state.dot += e * t;
}

// The same of a tile's values.
template <bool Probabilities, class Stored, int Count, class Acc>
PRUNEFUSE_HD void add(TileState<Acc>& state, const Chunk<Stored> (&tile)[Count], Acc scale) {
  const Acc origin = origin_of<Probabilities>(state);
  Acc tail = 0, dot = 0;
  PRUNEFUSE_UNROLL
  for (int l = 0; l < Count; ++l) {
    PRUNEFUSE_UNROLL
    for (int i = 0; i < Chunk<Stored>::kWidth; ++i) {
      const Acc t = exponent(logit_of<Probabilities>(value_at(tile[l], i)) - origin, scale);
      const Acc e = exponential(t);
      tail += e;
      dot += e * t;
    }
  }
  state.tail += tail;
  state.dot += dot;
}

// A whole row whose values one thread holds; places past its end are masked.
template <bool Probabilities, int Count, class Acc>
PRUNEFUSE_HD TileState<Acc> state_of_values(const Acc (&values)[Count], Acc scale, bool with_argmax) {
  auto state = no_tiles<Acc, Probabilities>();
  PRUNEFUSE_UNROLL
  for (int i = 0; i < Count; ++i) state.max = larger(state.max, values[i]);
  const Acc origin = origin_of<Probabilities>(state);
  PRUNEFUSE_UNROLL
  for (int i = 0; i < Count; ++i) {
    const Acc t = exponent(logit_of<Probabilities>(values[i]) - origin, scale);
    const Acc e = exponential(t);
    if (values[i] != state.max) {
      state.tail += e;
      state.dot += e * t;
      state.second = larger(state.second, values[i]);
    } else {
      state.ties += 1;
    }
  }
  if (with_argmax) {
    PRUNEFUSE_UNROLL
    for (int i = Count - 1; i >= 0; --i) {
      if (values[i] == state.max) state.argmax = static_cast<uint32_t>(i);
    }
  }
  return state;
}

// Of all lanes' sums, largest runner-up and least arg-max.
template <bool Probabilities, class Acc>
PRUNEFUSE_HD RowState<Acc> row_state_of(const TileState<Acc>& total) {
  RowState<Acc> row;
  row.max = logit_of<Probabilities>(total.max);
  row.second = total.ties > 1 ? row.max : logit_of<Probabilities>(total.second);
  row.ties = total.ties;
  row.tail = total.tail;
  row.dot = total.dot * kNatsPerUnit<Acc>;
  row.argmax = total.argmax == kNoColumn ? -1 : static_cast<int64_t>(total.argmax);
  row.has_nan = total.tail != total.tail;
  return row;
}

}  // namespace prunefuse
