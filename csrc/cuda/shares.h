// Rows whose lanes hold a share of them in registers: reading it, and what the lanes that share a row find together.
#pragma once

#include <initializer_list>

#include "../math/shares.h"
#include "lanes.h"

namespace prunefuse::cuda {

// Values of a row that a lane holds.
template <class Acc>
constexpr int kShare = sizeof(Acc) == sizeof(float) ? 32 : 8;

// Aligned to its size, up to 16 bytes.
template <class Stored, int Width>
__device__ Piece<Stored, Width> load_piece(const Stored* from) {
  Piece<Stored, Width> piece;
  constexpr int bytes = Piece<Stored, Width>::kBytes;
  if constexpr (bytes % 16 == 0) {
#pragma unroll
    for (int i = 0; i < bytes / 16; ++i) {
      const uint4 raw = __ldg(reinterpret_cast<const uint4*>(from) + i);
      memcpy(piece.words + 4 * i, &raw, sizeof(raw));
    }
  } else if constexpr (bytes == 8) {
    const auto raw = __ldg(reinterpret_cast<const unsigned long long*>(from));
    memcpy(piece.words, &raw, sizeof(raw));
  } else if constexpr (bytes == 4) {
    piece.words[0] = __ldg(reinterpret_cast<const unsigned*>(from));
  } else {
    static_assert(bytes == 2);
    piece.words[0] = __ldg(reinterpret_cast<const unsigned short*>(from));
  }
  return piece;
}

// The `lanes` lanes of a warp, or the warps of a block, that share a row; each is the `lane`-th.
template <bool Block>
struct Sharers {
  int lanes, lane;

  // What meet(a, b) makes of all their values, in every one of them. Warps meet in `room`, a value for each: another
  // meeting in another room must lie between two in the same.
  template <class T>
  __device__ T all(T value, T* room) const {
    if (Block || lanes == kWarp) {
#pragma unroll
      for (int mask = kWarp / 2; mask > 0; mask /= 2) value = meet(value, value.exchanged(mask));
    } else {
      for (int mask = lanes / 2; mask > 0; mask /= 2) value = meet(value, value.exchanged(mask));
    }
    if constexpr (Block) {
      if (threadIdx.x % kWarp == 0) room[threadIdx.x / kWarp] = value;
      __syncthreads();
      value = room[0];
      for (int warp = 1; warp < lanes / kWarp; ++warp) value = meet(value, room[warp]);
    }
    return value;
  }
};

template <class T>
__device__ T from_lane(T value, int mask) {
  return __shfl_xor_sync(kAllLanes, value, mask);
}

template <class Acc>
struct Largest {
  Acc value;

  __device__ Largest exchanged(int mask) const { return {from_lane(value, mask)}; }
};

template <class Acc>
__device__ Largest<Acc> meet(Largest<Acc> a, Largest<Acc> b) {
  return {larger(a.value, b.value)};
}

// A lane's share of a row: pieces lane, lane + lanes, ... of `pieces`.
template <class Stored, int Width>
struct Share {
  using Acc = accumulate_t<Stored>;
  static constexpr int kPieces = kShare<Acc> / Width;

  int pieces, lane, lanes;
  int64_t class_stride;

  __device__ bool has(int l) const { return l * lanes + lane < pieces; }
  __device__ bool any_has(int l) const { return l * lanes < pieces; }  // of the lanes
  __device__ uint32_t column(int l) const { return static_cast<uint32_t>((l * lanes + lane) * Width); }

  // Where there is none, the one before again. Where they lie is found anew each time: kept, it would take a register
  // for every piece.
  __device__ void load(Piece<Stored, Width> (&into)[kPieces], const Stored* row) const {
    int at = lane;
    asm volatile("" : "+r"(at));
    const int64_t stride = Width == 1 ? class_stride : Width;
    const Stored* from = row + (at < pieces ? at : 0) * stride;
#pragma unroll
    for (int l = 0; l < kPieces; ++l) {
      into[l] = load_piece<Stored, Width>(from);
      at += lanes;
      from += (at < pieces ? lanes : 0) * stride;
    }
  }
};

// The most bytes, up to 16, in whose loads rows can be read that have `classes` values of `size` bytes: all of them lie
// side by side, and the first of every row, `strides` values apart, at a multiple of it.
inline int piece_bytes(const void* data, int64_t classes, int64_t class_stride, std::initializer_list<int64_t> strides,
                       int64_t size) {
  for (int64_t bytes = 16; bytes > size; bytes /= 2) {
    bool fits = class_stride == 1 && reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(bytes) == 0 &&
                classes * size % bytes == 0;
    for (const int64_t stride : strides) fits = fits && stride * size % bytes == 0;
    if (fits) return static_cast<int>(bytes);
  }
  return static_cast<int>(size);
}

}  // namespace prunefuse::cuda
