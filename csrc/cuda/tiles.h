// Rows as lanes read them, in tiles of 16-byte chunks, wherever in memory a row begins: math/row_tile.h for a GPU.
#pragma once

#include "../math/row_tile.h"
#include "lanes.h"

namespace prunefuse::cuda {

// The same pointer, which the compiler does not know how to work out anew: in loops it would, from the kernel's
// parameters, with many instructions to a row.
template <class T>
__device__ T* opaque(T* pointer) {
#if defined(__CUDA_ARCH__)
  asm("" : "+l"(pointer));
#endif
  return pointer;
}

// Copies 16 bytes into shared memory, which a thread need not wait for before it has closed a set of copies, and awaits
// all of its sets but the latest ones. Processors that cannot do so do it at once.
template <class T>
__device__ void copy_async(T* shared, const T* global) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "l"(global)
      : "memory");
#else
  *reinterpret_cast<uint4*>(shared) = __ldg(reinterpret_cast<const uint4*>(global));
#endif
}
__device__ inline void close_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int Latest>
__device__ void await_copies_but() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(Latest) : "memory");
#endif
}

// Rows with fewer classes have tiles; chunks and columns are 32-bit numbers there.
constexpr int64_t kMostTileClasses = int64_t{1} << 31;

// A row as chunks where memory is aligned, and fewer values than a chunk has before and behind them.
template <class Stored>
struct ChunkedRow {
  static constexpr int kWidth = Chunk<Stored>::kWidth;
  const uint4* body;
  int chunks;
  int before, edges;  // values before; before and behind

  __device__ ChunkedRow(const Stored* from, int64_t row_classes) {
    const int classes = static_cast<int>(row_classes);
    const auto past = static_cast<int>(reinterpret_cast<uintptr_t>(from) % 16 / sizeof(Stored));
    before = past == 0 ? 0 : kWidth - past;
    if (before > classes) before = classes;
    body = opaque(reinterpret_cast<const uint4*>(from + before));
    chunks = (classes - before) / kWidth;
    edges = classes - chunks * kWidth;
  }

  // On to a row that begins `step` values later; `alike` says that this is a number of chunks.
  __device__ void advance(int64_t step, bool alike, int64_t classes) {
    if (alike) {
      body = opaque(body + step / kWidth);
    } else {
      *this = ChunkedRow(reinterpret_cast<const Stored*>(body) - before + step, classes);
    }
  }

  // Where a chunk's first value stands, and a value of the edges.
  __device__ uint32_t column(int chunk) const { return static_cast<uint32_t>(before + chunk * kWidth); }
  __device__ int edge_column(int edge) const { return edge < before ? edge : chunks * kWidth + edge; }
  __device__ Stored edge(int edge) const { return (reinterpret_cast<const Stored*>(body) - before)[edge_column(edge)]; }
};

template <class Stored>
__device__ void load_chunk(Chunk<Stored>& chunk, const uint4* at) {
  const uint4 raw = __ldg(at);
  chunk.words[0] = raw.x;
  chunk.words[1] = raw.y;
  chunk.words[2] = raw.z;
  chunk.words[3] = raw.w;
}

// Every `Step`-th chunk from `at` on, of the `left` that there are. Every lane of the warp has at least `least`.
template <bool Probabilities, int Step, class Stored, int Count>
__device__ void load_chunks(Chunk<Stored> (&tile)[Count], const uint4* at, int left, int least) {
  const auto load = [&]<int Sure>(std::integral_constant<int, Sure>) {
#pragma unroll
    for (int l = 0; l < Count; ++l) {
      if (l < Sure || l * Step < left) {
        load_chunk(tile[l], at + l * Step);
      } else {
        tile[l] = masked_chunk<Stored, Probabilities>();
      }
    }
  };
  if (least >= Count - 1) {
    load(std::integral_constant<int, Count - 1>());
  } else if (least >= Count / 2) {
    load(std::integral_constant<int, Count / 2>());
  } else {
    load(std::integral_constant<int, 0>());
  }
}

// Over groups of `Lanes` lanes.
template <int Lanes, class Acc>
__device__ Acc largest_of_lanes(Acc value) {
#pragma unroll
  for (int mask = Lanes / 2; mask > 0; mask /= 2) value = larger(value, __shfl_xor_sync(kAllLanes, value, mask));
  return value;
}

// All lanes' shares of a row, as one.
template <int Lanes, class Acc>
__device__ TileState<Acc> merge_shares(TileState<Acc> state, bool with_argmax) {
#pragma unroll
  for (int mask = Lanes / 2; mask > 0; mask /= 2) {
    state.tail += __shfl_xor_sync(kAllLanes, state.tail, mask);
    state.dot += __shfl_xor_sync(kAllLanes, state.dot, mask);
    state.ties += __shfl_xor_sync(kAllLanes, state.ties, mask);
    state.second = larger(state.second, __shfl_xor_sync(kAllLanes, state.second, mask));
  }
  if (with_argmax) {
#pragma unroll
    for (int mask = Lanes / 2; mask > 0; mask /= 2) {
      const uint32_t other = __shfl_xor_sync(kAllLanes, state.argmax, mask);
      state.argmax = other < state.argmax ? other : state.argmax;
    }
  }
  return state;
}

// Takes in a tile: chunks first, first + Step, ... of the row. `Only` says that the row has no other. All lanes of the
// warp come here together.
template <bool Probabilities, int Lanes, int Step, bool Only, class Stored, int Count>
__device__ void absorb_tile(TileState<accumulate_t<Stored>>& state, Chunk<Stored> (&tile)[Count],
                            const ChunkedRow<Stored>& row, int first, accumulate_t<Stored> scale, bool with_argmax) {
  using Acc = accumulate_t<Stored>;
  Acc tops[Count];
#pragma unroll
  for (int l = 0; l < Count; ++l) tops[l] = top_of(tile[l]);
  Acc top = tops[0];
#pragma unroll
  for (int l = 1; l < Count; ++l) top = larger(top, tops[l]);
  if (Only || __any_sync(kAllLanes, !(top < state.max))) {
    const Acc max = largest_of_lanes<Lanes>(larger(top, state.max));
    if constexpr (Only) {
      state.max = max;
    } else {
      raise<Probabilities>(state, max, scale);
    }
    // Of a long row one chunk of one lane holds the maximum, mostly. Of many short ones, any chunk may.
    constexpr bool few = Lanes >= 16;
    if (!few || top == state.max) {
#pragma unroll
      for (int l = 0; l < Count; ++l) {
        if (few && tops[l] != state.max) continue;
        take_out<Probabilities>(state, tile[l], row.column(first + l * Step), with_argmax);
        tops[l] = top_of(tile[l]);
      }
      top = tops[0];
#pragma unroll
      for (int l = 1; l < Count; ++l) top = larger(top, tops[l]);
    }
  }
  state.second = larger(state.second, top);
  add<Probabilities>(state, tile, scale);
}

// Takes in the values before and behind the chunks, one to a lane.
template <bool Probabilities, int Lanes, class Stored>
__device__ void absorb_edges(TileState<accumulate_t<Stored>>& state, const ChunkedRow<Stored>& row, int lane,
                             accumulate_t<Stored> scale) {
  using Acc = accumulate_t<Stored>;
  for (int edge = lane; __any_sync(kAllLanes, edge < row.edges); edge += Lanes) {
    Acc value = widen(edge < row.edges ? row.edge(edge) : masked<Stored, Probabilities>());
    if (__any_sync(kAllLanes, !(value < state.max))) {
      raise<Probabilities>(state, largest_of_lanes<Lanes>(larger(value, state.max)), scale);
      if (value == state.max) {
        state.ties += 1;
        const auto column = static_cast<uint32_t>(row.edge_column(edge));
        state.argmax = column < state.argmax ? column : state.argmax;
        value = widen(masked<Stored, Probabilities>());
      }
    }
    state.second = larger(state.second, value);
    add_value<Probabilities>(state, value, scale);
  }
}

}  // namespace prunefuse::cuda
