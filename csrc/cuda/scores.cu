// The scorer on CUDA. Bound by reading the logits once: N * C * size bytes in, K * N * 4 out.
//
// Rows whose classes are neighbors are read in 16-byte loads wherever they begin: the few values before and behind the
// aligned part go one to a lane. Who has a row depends on its length:
//   up to 96 bytes     a thread. Warps copy such rows to shared memory as they lie, the next ones while these are
//                      worked on. Rows of whole 16-byte chunks need no copy and belong to 1 to 4 lanes.
//   up to 4,096 bytes  1 to 32 lanes, which hold all of it in registers: one tile, so its maximum is known before the
//                      first exponential. Rows' ends are worked out for 32 rows at a time.
//   longer             a warp, or, where rows are too few for that, a block of eight. Tiles of 4 chunks to a lane, the
//                      next tile under way. From 64 KB on all tiles of all rows are dealt out evenly to the blocks that
//                      are resident at a time, so that few rows use all of the GPU; a second, small launch merges the
//                      pieces of rows that blocks share. Their memory is torch's, and nothing waits for the device.
// Sums are merged by a butterfly of shuffles whose order is fixed: results are the same run after run. Rows whose
// classes are apart in memory are read value by value, as row_state.h takes them.
//
// Counted in the machine code for sm_90, with one utility, in instructions a float32 / bfloat16 value. A tile that
// raises no maximum: 9.9 / 9.2. These subtract, multiply, bound, take an exponential and add to two sums (6), find the
// maximum (1, or 0.6 by pairs), widen (1 of bfloat16), and the rest loads. Whole rows, with merges and ends: C = 10: 29
// / 27, 32: 28 / 20, 100: 21 / 20, 1,000: 13.5 / 11.7, 128,000: 10.8 / 10.0 but for the tiles that raise the maximum,
// of which a warp has about four in a row of 31, at 75 to 130 instructions each. An H200 issues 27e12 lane instructions
// a second at 80 % and copies 4.3e12 bytes: 27 to a float32 value and 13.8 to a bfloat16 one leave it at 0.9 of that.
// So short rows of bfloat16 are bound by instructions, at 0.56 to 0.67 of it, and all else by memory. An H200's latency
// takes 23 KB under way on each multiprocessor. Register rows have up to 8 loads of 16 bytes in each of 24 warps (80
// registers, 3 blocks) or 2 to 4 in 32 (64 registers), longer rows 4 to 8 in 24 warps, and threads with rows of their
// own two copies of 20 KB a block, 4 or 5 blocks of them. Not run on a GPU yet.
#include "../scores.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "tiles.h"

namespace prunefuse::cuda {
namespace {

constexpr int kBlockThreads = 256, kWarps = kBlockThreads / kWarp;
// Chunks of the longest rows that a warp holds in registers.
template <class Stored>
constexpr int kRegisterRowChunks = sizeof(Stored) == sizeof(double) ? 128 : 256;
// Chunks to a lane and tile of longer rows.
template <class Stored>
constexpr int kTileChunks = sizeof(Stored) == sizeof(double) ? 2 : 4;
// Blocks that are resident on a multiprocessor: registers are bounded by it.
template <class Stored, int Count>
constexpr int kRegisterRowBlocks = sizeof(Stored) == sizeof(double) ? 2 : (Count > 6 ? 3 : 4);
template <class Stored>
constexpr int kLongRowBlocks = sizeof(Stored) == sizeof(double) ? 2 : 3;
// Rounds of a warp from which on they come in several waves.
constexpr int64_t kMostRounds = 64;
// Bytes of a row from which on it may be split over blocks.
constexpr int64_t kSplitBytes = 64 * 1024;
// Up to here a thread has a row of its own, if the rows are contiguous; a warp has two times these bytes under way, or
// 32 rows if they are more.
constexpr int64_t kShortRowBytes = 96;
constexpr int kBroughtBytes = 3072;

// Rows whose classes are apart in memory, value by value.
template <class Stored>
__global__ void __launch_bounds__(kBlockThreads)
    strided_rows(const __grid_constant__ Pool pool, const __grid_constant__ RowOutputs<accumulate_t<Stored>> out,
                 accumulate_t<Stored> inverse_temperature, int lanes) {
  const int64_t groups_per_block = kBlockThreads / lanes;
  const int64_t group = threadIdx.x / lanes;
  // Every lane of a warp takes part in every round's shuffles; rows past the end are read as the last one and not
  // written.
  for (int64_t first = blockIdx.x * groups_per_block; first < pool.rows; first += gridDim.x * groups_per_block) {
    const int64_t row = first + group;
    const int64_t source = row < pool.rows ? row : pool.rows - 1;
    const Stored* data = static_cast<const Stored*>(pool.data) + source * pool.row_stride;
    auto state = lane_state<Stored, false>(data, pool, threadIdx.x % lanes, lanes, inverse_temperature);
    state = merge_lanes(state, lanes, inverse_temperature);
    if (threadIdx.x % lanes == 0 && row < pool.rows) write_row(out, row, state, inverse_temperature);
  }
}

// Rows that fit into the registers of `Lanes` lanes, `Count` chunks in each: a row is one tile. A warp has `rounds`
// times 32 / Lanes rows, one after the other. A lane keeps the state of one row of 32, so that the ends of 32 rows are
// worked out, and written, at a time.
template <class Stored, bool Probabilities, int Lanes, int Count>
__global__ void __launch_bounds__(kBlockThreads, kRegisterRowBlocks<Stored, Count>)
    register_rows(const __grid_constant__ Pool pool, const __grid_constant__ RowOutputs<accumulate_t<Stored>> out,
                  accumulate_t<Stored> inverse_temperature, int rounds) {
  using Acc = accumulate_t<Stored>;
  constexpr int together = kWarp / Lanes;
  const int lane = threadIdx.x % Lanes, group = threadIdx.x % kWarp / Lanes;
  const Acc scale = exponent_scale(inverse_temperature);
  const int rows_of_warp = rounds * together;
  const int64_t next_row = together * pool.row_stride;
  const bool alike = next_row % Chunk<Stored>::kWidth == 0;  // a lane's rows begin at the same place of 16 bytes
  // A row that begins askew has a chunk less.
  const int least_of_lane = (static_cast<int>(pool.classes) / Chunk<Stored>::kWidth - 1) / Lanes;
  for (int64_t first = (static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp) * rows_of_warp;
       first < pool.rows; first += static_cast<int64_t>(gridDim.x) * kWarps * rows_of_warp) {
    const int rows = pool.rows - first < rows_of_warp ? static_cast<int>(pool.rows - first) : rows_of_warp;
    ChunkedRow<Stored> chunks(
        static_cast<const Stored*>(pool.data) + (first + (group < rows ? group : rows - 1)) * pool.row_stride,
        pool.classes);
    for (int begin = 0; begin < rows; begin += kWarp) {
      auto kept = no_tiles<Acc, Probabilities>();
      for (int turn = 0; turn < Lanes && begin + turn * together < rows; ++turn) {
        Chunk<Stored> tile[Count];
        load_chunks<Probabilities, Lanes>(tile, chunks.body + lane, chunks.chunks - lane, least_of_lane);
        auto state = no_tiles<Acc, Probabilities>();
        absorb_tile<Probabilities, Lanes, Lanes, true>(state, tile, chunks, lane, scale, out.argmax != nullptr);
        absorb_edges<Probabilities, Lanes>(state, chunks, lane, scale);
        state = merge_shares<Lanes>(state, out.argmax != nullptr);
        if (turn == lane) kept = state;
        // Every lane takes part in every turn's shuffles; rows past the end are read as the last one and not written.
        if (begin + (turn + 1) * together + group < rows) chunks.advance(next_row, alike, pool.classes);
      }
      const int of_lane = begin + lane * together + group;
      if (of_lane < rows) {
        write_row(out, first + of_lane, row_state_of<Probabilities>(kept), inverse_temperature);
      }
    }
  }
}

// The tiles of a row from `begin` on, every `step`-th, as a warp takes them in: the next one is under way meanwhile.
template <class Stored, bool Probabilities>
__device__ void absorb_tiles(TileState<accumulate_t<Stored>>& state, const ChunkedRow<Stored>& row, int begin, int end,
                             int step, accumulate_t<Stored> scale, bool with_argmax) {
  constexpr int count = kTileChunks<Stored>, per_tile = kWarp * count;
  const int lane = threadIdx.x % kWarp, stride = step * per_tile;
  // Where the next tile is, and how many chunks there are from there on.
  const uint4* at = row.body + (begin * per_tile + lane);
  int left = row.chunks - begin * per_tile;
  Chunk<Stored> next[count];
  for (int number = begin, first = begin * per_tile + lane - stride;; first += stride) {
    Chunk<Stored> tile[count];
#pragma unroll
    for (int l = 0; l < count; ++l) tile[l] = next[l];
    const bool any = number > begin, more = number < end;
    if (more) {
      if (left >= per_tile) {
#pragma unroll
        for (int l = 0; l < count; ++l) load_chunk(next[l], at + l * kWarp);
      } else {
        load_chunks<Probabilities, kWarp>(next, at, left - lane, 0);
      }
      number += step;
      at += stride;
      left -= stride;
    }
    if (any) absorb_tile<Probabilities, kWarp, kWarp, false>(state, tile, row, first, scale, with_argmax);
    if (!more) break;
  }
}

// Longer rows, where there are enough for all warps of the GPU.
template <class Stored, bool Probabilities>
__global__ void __launch_bounds__(kBlockThreads, kLongRowBlocks<Stored>)
    warp_per_row(const __grid_constant__ Pool pool, const __grid_constant__ RowOutputs<accumulate_t<Stored>> out,
                 accumulate_t<Stored> inverse_temperature, int tiles) {
  const auto scale = exponent_scale(inverse_temperature);
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp; row < pool.rows;
       row += static_cast<int64_t>(gridDim.x) * kWarps) {
    const ChunkedRow<Stored> chunks(static_cast<const Stored*>(pool.data) + row * pool.row_stride, pool.classes);
    auto state = no_tiles<accumulate_t<Stored>, Probabilities>();
    absorb_tiles<Stored, Probabilities>(state, chunks, 0, tiles, 1, scale, out.argmax != nullptr);
    absorb_edges<Probabilities, kWarp>(state, chunks, threadIdx.x % kWarp, scale);
    state = merge_shares<kWarp>(state, out.argmax != nullptr);
    if (threadIdx.x % kWarp == 0) write_row(out, row, row_state_of<Probabilities>(state), inverse_temperature);
  }
}

// The state of a part of a row.
template <class Acc>
struct Piece {
  Acc max, second, ties, tail, dot, has_nan;
  int64_t argmax;
};

template <class Acc>
__device__ Piece<Acc> piece_of(const RowState<Acc>& state) {
  return {state.max, state.second, state.ties, state.tail, state.dot, state.has_nan ? Acc(1) : Acc(0), state.argmax};
}
template <class Acc>
__device__ RowState<Acc> state_of(const Piece<Acc>& piece) {
  RowState<Acc> state;
  state.max = piece.max;
  state.second = piece.second;
  state.ties = piece.ties;
  state.tail = piece.tail;
  state.dot = piece.dot;
  state.argmax = piece.argmax;
  state.has_nan = piece.has_nan != 0;
  return state;
}

// Which tiles of all rows, one row after the other, part `part` of `parts` has.
struct Span {
  int64_t begin, end;

  __host__ __device__ Span(int64_t all, int64_t part, int64_t parts)
      : begin(all / parts * part + all % parts * part / parts),
        end(all / parts * (part + 1) + all % parts * (part + 1) / parts) {}
};

// Long rows: all tiles of all rows are dealt out evenly, so that a block has some whole rows and parts of two others,
// whose states it leaves in pieces[2 * part] (a row that began before) and pieces[2 * part + 1]. As many parts as rows
// are a row for each, and no pieces.
template <class Stored, bool Probabilities>
__global__ void __launch_bounds__(kBlockThreads, kLongRowBlocks<Stored>)
    block_per_row(const __grid_constant__ Pool pool, const __grid_constant__ RowOutputs<accumulate_t<Stored>> out,
                  accumulate_t<Stored> inverse_temperature, int tiles, int parts, Piece<accumulate_t<Stored>>* pieces) {
  using Acc = accumulate_t<Stored>;
  // Two sets, so that warps may go on to the next row while one merges this one's.
  __shared__ Piece<Acc> of_warps[2][kWarps];
  const auto scale = exponent_scale(inverse_temperature);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  int turn = 0;
  for (int part = blockIdx.x; part < parts; part += gridDim.x) {
    const Span span(pool.rows * tiles, part, parts);
    int64_t row = span.begin / tiles;
    int begin = static_cast<int>(span.begin - row * tiles);
    for (int64_t left = span.end - span.begin; left > 0; ++row, ++turn) {
      const int end = left < tiles - begin ? begin + static_cast<int>(left) : tiles;
      const ChunkedRow<Stored> chunks(static_cast<const Stored*>(pool.data) + row * pool.row_stride, pool.classes);
      auto of_lane = no_tiles<Acc, Probabilities>();
      absorb_tiles<Stored, Probabilities>(of_lane, chunks, begin + warp, end, kWarps, scale, out.argmax != nullptr);
      if (begin == 0 && warp == 0) absorb_edges<Probabilities, kWarp>(of_lane, chunks, lane, scale);
      of_lane = merge_shares<kWarp>(of_lane, out.argmax != nullptr);
      if (lane == 0) of_warps[turn % 2][warp] = piece_of(row_state_of<Probabilities>(of_lane));
      __syncthreads();
      if (warp == turn % kWarps) {  // each in its turn
        auto state = state_of(of_warps[turn % 2][lane % kWarps]);
        state = merge_lanes(state, kWarps, inverse_temperature);
        if (lane == 0) {
          if (begin == 0 && end == tiles) {
            write_row(out, row, state, inverse_temperature);
          } else {
            pieces[2 * part + (begin == 0)] = piece_of(state);
          }
        }
      }
      left -= end - begin;
      begin = 0;
    }
  }
}

// Merges the pieces of the rows that parts share: a warp for each part that ends inside of a row which began in it.
template <class Acc>
__global__ void __launch_bounds__(kBlockThreads)
    merge_pieces(const __grid_constant__ RowOutputs<Acc> out, Acc inverse_temperature, int tiles, int parts,
                 const Piece<Acc>* pieces) {
  const int lane = threadIdx.x % kWarp;
  const int64_t all = out.rows * tiles;
  for (int part = blockIdx.x * kWarps + threadIdx.x / kWarp; part < parts; part += gridDim.x * kWarps) {
    const Span span(all, part, parts);
    const int64_t row = (span.end - 1) / tiles, end = (row + 1) * tiles;
    if (span.end == end || row * tiles < span.begin) continue;
    RowState<Acc> state;
    if (lane == 0) state = state_of(pieces[2 * part + 1]);
    for (int other = part + 1 + lane; other < parts && Span(all, other, parts).begin < end; other += kWarp) {
      state = merge(state, state_of(pieces[2 * other]), inverse_temperature);
    }
    state = merge_lanes(state, kWarp, inverse_temperature);
    if (lane == 0) write_row(out, row, state, inverse_temperature);
  }
}

// Rows of `Least` to `Most` classes that lie one after the other: a thread has a row of its own. A warp brings `depth`
// times 32 of them into shared memory as they are, in 16-byte copies of whole lines, and works on them while the next
// ones are on their way.
template <class Stored, bool Probabilities, int Least, int Most>
__global__ void __launch_bounds__(kBlockThreads)
    thread_per_row(const __grid_constant__ Pool pool, const __grid_constant__ RowOutputs<float> out,
                   float inverse_temperature, int depth, bool aligned) {
  const int classes = static_cast<int>(pool.classes), lane = threadIdx.x % kWarp;
  const float scale = exponent_scale(inverse_temperature);
  const int rows_at_once = kWarp * depth, room = rows_at_once * classes;
  Stored* const rooms = dynamic_shared<Stored>() + threadIdx.x / kWarp * 2 * room;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kWarps * rows_at_once;
  int64_t coming = (static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp) * rows_at_once;
  const Stored* from = static_cast<const Stored*>(pool.data) + coming * classes;
  for (int turn = 0, before = 0; before == 0 || coming - stride < pool.rows; turn ^= 1, before = 1) {
    Stored* const to = rooms + turn * room;
    if (aligned && coming + rows_at_once <= pool.rows) {
      constexpr int width = 16 / sizeof(Stored);
      const Stored* of_lane = from + lane * width;
#pragma unroll 4
      for (int i = lane * width; i < room; i += kWarp * width, of_lane += kWarp * width) copy_async(to + i, of_lane);
    } else if (coming < pool.rows) {
      const auto values = (pool.rows - coming) * classes < room ? static_cast<int>(pool.rows - coming) * classes : room;
#pragma unroll 1
      for (int i = lane; i < values; i += kWarp) to[i] = from[i];
    }
    close_copies();
    const int64_t first = coming - stride;
    coming += stride;
    from = opaque(from + stride * classes);
    if (before == 0) continue;
    await_copies_but<1>();
    __syncwarp();
    const Stored* of_lane = rooms + (turn ^ 1) * room + lane * classes;
    for (int64_t row = first + lane; row < pool.rows && row < first + rows_at_once; row += kWarp) {
      float values[Most];
#pragma unroll
      for (int i = 0; i < Most; ++i) {
        values[i] = widen(i < Least || i < classes ? of_lane[i] : masked<Stored, Probabilities>());
      }
      const auto state = state_of_values<Probabilities>(values, scale, out.argmax != nullptr);
      write_row(out, row, row_state_of<Probabilities>(state), inverse_temperature);
      of_lane += kWarp * classes;
    }
    __syncwarp();
  }
}

// Launches for rows of one dtype.
template <class Stored>
struct Launcher {
  using Acc = accumulate_t<Stored>;
  static constexpr int kWidth = Chunk<Stored>::kWidth;
  const Tensor& logits;
  const Pool& pool;
  const RowOutputs<Acc>& out;
  Acc inverse_temperature;
  int64_t multiprocessors;
  cudaStream_t stream;

  template <class... Parameters, class... Arguments>
  void start(void (*kernel)(Parameters...), int64_t blocks, size_t shared, Arguments... arguments) const {
    launch_kernel(kernel, {grid_for(blocks), kBlockThreads, shared}, stream, pool, out, inverse_temperature,
                  arguments...);
  }

  template <bool Probabilities, int Lanes, int Count>
  void in_registers() const {
    constexpr int64_t together = kWarp / Lanes;
    // Rounds that share the rows out evenly to the warps that are resident at a time; once that is enough work to a
    // warp, in several waves, each of them even.
    const int64_t warps = multiprocessors * kRegisterRowBlocks<Stored, Count> * kWarps;
    const int64_t rounds = divide_up(pool.rows, together * warps);
    const int64_t waves = rounds < kMostRounds ? 1 : rounds / (kMostRounds / 2);
    const int64_t each = divide_up(rounds, waves);
    start(register_rows<Stored, Probabilities, Lanes, Count>, divide_up(pool.rows, each * together * kWarps), 0, each);
  }

  template <bool Probabilities>
  void rows_in_registers(int64_t chunks) const {
    if constexpr (!Probabilities && sizeof(Stored) < sizeof(double)) {
      if (chunks <= 2) return in_registers<false, 1, 2>();
      if (chunks <= 4) return in_registers<false, 2, 2>();
      if (chunks <= 8) return in_registers<false, 4, 2>();
      if (chunks <= 16) return in_registers<false, 4, 4>();
      if (chunks <= 32) return in_registers<false, 4, 8>();
      if (chunks <= 64) return in_registers<false, 8, 8>();
      if (chunks <= 128) return in_registers<false, 16, 8>();
      if (chunks <= 192) return in_registers<false, 32, 6>();
      return in_registers<false, 32, 8>();
    } else {
      constexpr int count = kRegisterRowChunks<Stored> / kWarp;
      if (Probabilities && chunks <= 8) return in_registers<Probabilities, 4, 2>();
      if (chunks <= 4 * count) return in_registers<Probabilities, 4, count>();
      in_registers<Probabilities, 32, count>();
    }
  }

  template <bool Probabilities>
  void long_rows(int64_t chunks) const {
    constexpr int per_tile = kWarp * kTileChunks<Stored>;
    const int64_t tiles = divide_up(chunks, per_tile), resident = multiprocessors * kLongRowBlocks<Stored>;
    if (tiles < kWarps || pool.rows >= resident * kWarps) {
      return start(warp_per_row<Stored, Probabilities>, divide_up(pool.rows, kWarps), 0, tiles);
    }
    const bool split = tiles * per_tile * 16 >= kSplitBytes && pool.rows % resident != 0;
    const int64_t parts = split ? std::min(resident, pool.rows * divide_up(tiles, kWarps)) : pool.rows;
    Tensor memory = new_rows(logits, {split ? 2 * parts * static_cast<int64_t>(sizeof(Piece<Acc>)) : 0},
                             torch::headeronly::ScalarType::Byte);
    auto* const pieces = static_cast<Piece<Acc>*>(memory.data_ptr());
    start(block_per_row<Stored, Probabilities>, parts, 0, tiles, parts, pieces);
    if (split) {
      launch_kernel(merge_pieces<Acc>, {grid_for(divide_up(parts, kWarps)), kBlockThreads}, stream, out,
                    inverse_temperature, tiles, parts, pieces);
    }
  }

  template <bool Probabilities, int Least, int Most>
  void in_threads() const {
    const int bytes = kWarp * static_cast<int>(pool.classes * sizeof(Stored));
    const int depth = std::max(1, kBroughtBytes / bytes);
    const bool aligned = reinterpret_cast<uintptr_t>(pool.data) % 16 == 0;  // together they are aligned if the first is
    const int64_t blocks = divide_up(pool.rows, kBlockThreads * depth);
    start(thread_per_row<Stored, Probabilities, Least, Most>, std::min(blocks, 6 * multiprocessors),
          static_cast<size_t>(2 * kWarps * depth * bytes), depth, aligned);
  }

  template <bool Probabilities>
  void rows_in_threads() const {
    if constexpr (Probabilities) {
      if (pool.classes <= 8) return in_threads<true, 1, 8>();
      if (pool.classes <= 16) return in_threads<true, 9, 16>();
      in_threads<true, 17, 32>();
    } else {
      if (pool.classes <= 4) return in_threads<false, 1, 4>();
      if (pool.classes <= 8) return in_threads<false, 5, 8>();
      if (pool.classes <= 10) return in_threads<false, 9, 10>();
      if (pool.classes <= 16) return in_threads<false, 11, 16>();
      if (pool.classes <= 24) return in_threads<false, 17, 24>();
      in_threads<false, 25, 32>();
    }
  }

  template <bool Probabilities>
  void neighboring_classes() const {
    if constexpr (sizeof(Acc) == sizeof(float)) {
      // Rows of whole chunks belong to lanes: a thread of its own would wait for others at the same banks.
      const bool whole = pool.classes % kWidth == 0 && reinterpret_cast<uintptr_t>(pool.data) % 16 == 0;
      if (pool.row_stride == pool.classes && pool.classes * static_cast<int64_t>(sizeof(Stored)) <= kShortRowBytes &&
          pool.classes <= 32 && (Probabilities || !whole)) {
        return rows_in_threads<Probabilities>();
      }
    }
    const int64_t chunks = std::max<int64_t>(1, pool.classes / kWidth);  // at most: fewer in rows that begin askew
    if (chunks <= kRegisterRowChunks<Stored>) {
      rows_in_registers<Probabilities>(chunks);
    } else {
      long_rows<Probabilities>(chunks);
    }
  }

  void run() const {
    if ((pool.class_stride != 1 && pool.classes > 1) || pool.classes >= kMostTileClasses) {
      const int lanes = lanes_for(pool.classes);
      return start(strided_rows<Stored>, divide_up(pool.rows, kBlockThreads / lanes), 0, lanes);
    }
    if (pool.probabilities) {
      neighboring_classes<true>();
    } else {
      neighboring_classes<false>();
    }
  }
};

struct ScoreRows {
  const Tensor& logits;

  template <class Stored>
  void operator()(const Pool& pool, const RowOutputs<accumulate_t<Stored>>& out,
                  accumulate_t<Stored> inverse_temperature, Stored) const {
    const int32_t device = logits.get_device_index();
    const torch::stable::accelerator::DeviceGuard guard(device);
    Launcher<Stored>{logits, pool, out, inverse_temperature, multiprocessors_of(device), current_stream(device)}.run();
  }
};

Tensor score(const Tensor& logits, std::vector<int64_t> strategies, bool probabilities, double temperature) {
  return prunefuse::score(logits, strategies, probabilities, temperature, ScoreRows{logits});
}

std::tuple<Tensor, Tensor, Tensor, Tensor> statistics(const Tensor& logits, bool probabilities, double temperature) {
  return prunefuse::statistics(logits, probabilities, temperature, ScoreRows{logits});
}

void absorb_(Tensor state, const Tensor& logits, double temperature) {
  prunefuse::absorb_(state, logits, temperature, ScoreRows{logits});
}

}  // namespace
}  // namespace prunefuse::cuda

STABLE_TORCH_LIBRARY_IMPL(prunefuse, CUDA, m) {
  m.impl("score", TORCH_BOX(&prunefuse::cuda::score));
  m.impl("absorb_", TORCH_BOX(&prunefuse::cuda::absorb_));
  m.impl("statistics", TORCH_BOX(&prunefuse::cuda::statistics));
}
