// The ensemble scorer on CUDA. Bound by reading the logits once: S * N * C * size bytes in, K * N * 4 out.
//
// A row belongs to 1 to 32 lanes of a warp (C <= 1,024; float64: 256), or to a block of 256 (C <= 8,192; 2,048), from
// its first pass to its last. A lane holds its share of a pass, at most 32 values (float64: 8), in registers: it has it
// in loads of 16 bytes where the layout allows, all of the next pass's under way while it works on one. The largest
// value comes first, then one exponential a value; the lanes meet for the sums of those, add the probabilities to what
// they hold of the row, and keep votes in shared memory, each of its own columns. Every lane takes the entropies of
// some passes. Where a masked class or a NaN is in a pass, or the values are probabilities, its exponentials are taken
// a second time, more carefully.
//
// Counted (benchmarks/results/sass.txt), with the ends of rows of 10 passes: at C = 1,000 18 instructions a float32
// value and 15 a bfloat16 one; 2 blocks are resident, with 40 and 22 KB under way on a multiprocessor. bfloat16 rows in
// pieces of 8 bytes (C = 100) take 22. Sums of probabilities in memory (ensemble_add_) are read and written one by one.
//
// Rows that are longer keep no sums: a warp has one. A first walk over all passes leaves of each its maximum, the
// largest probability and its class (16 bytes per pass and row under way), a second one adds up the passes of a column
// in a register and takes the entropy of the sum at once. The second walk reads memory again where S rows of all warps
// exceed L2; what is kept aside is small whatever C is. Not run on a GPU yet.
#include "../ensembles.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "shares.h"

namespace prunefuse::cuda {
namespace {

constexpr int kWarpsPerBlock = 8;
constexpr int kBlockThreads = kWarpsPerBlock * kWarp;

// What is kept aside of long rows, at most.
constexpr int64_t kRoomBytes = 32 << 20;

constexpr uint32_t kNoColumn = 0xffffffffu;

// Of one pass of a row, or of the sums over its passes: values that equal the largest, and sums over all others.
template <class Acc>
struct Totals {
  Acc ties, tail, dot;
  uint32_t first;  // column of the largest

  static __device__ Totals none() { return {0, 0, 0, kNoColumn}; }
  __device__ Totals exchanged(int mask) const {
    return {from_lane(ties, mask), from_lane(tail, mask), from_lane(dot, mask), from_lane(first, mask)};
  }
  __device__ Acc rest() const { return (ties - 1) + tail; }
  __device__ Acc entropy() const { return entropy_of_rest(rest(), dot); }

  // `dot` in units of exponents.
  static __device__ Acc entropy_of_rest(Acc rest, Acc dot) {
    return log1p_of(rest) - dot * kNatsPerUnit<Acc> / (rest + 1);
  }
};

template <class Acc>
__device__ Totals<Acc> meet(const Totals<Acc>& a, const Totals<Acc>& b) {
  return {a.ties + b.ties, a.tail + b.tail, a.dot + b.dot, a.first < b.first ? a.first : b.first};
}

// What a row's end needs beside the sums' totals.
template <class Acc>
struct End {
  Acc entropies;
  int32_t modal;

  __device__ End exchanged(int mask) const { return {from_lane(entropies, mask), from_lane(modal, mask)}; }
};

template <class Acc>
__device__ End<Acc> meet(const End<Acc>& a, const End<Acc>& b) {
  return {a.entropies + b.entropies, a.modal > b.modal ? a.modal : b.modal};
}

// Rooms in which the warps of a block meet; used in turn, so that one is read before it is written again.
template <class Acc>
struct Rooms {
  Largest<Acc> largest[kWarpsPerBlock];
  Totals<Acc> totals[kWarpsPerBlock];
  End<Acc> ends[kWarpsPerBlock];
};

// Fills `e` with the exponentials of a pass's values, and adds those that are the lane's to `totals`; gives the factor
// that makes shares in the totals of them. `top` is the row's largest value as it is stored.
template <bool Quick, class Stored, int Width, int Pieces, class Acc>
__device__ Acc exponentials(const Piece<Stored, Width> (&pass)[Pieces], const PieceTop<Stored, Width> (&tops)[Pieces],
                            const Share<Stored, Width>& share, const Exponents<Acc>& exponents, Acc top,
                            bool probabilities, Acc (&e)[Pieces * Width], Totals<Acc>& totals) {
  const Acc excess = Quick ? exponential(exponents.error) : Acc(1);
#pragma unroll
  for (int l = 0; l < Pieces; ++l) {
    if (!share.any_has(l)) continue;
    Acc t[Width], tail = 0, dot = 0;
#pragma unroll
    for (int i = 0; i < Width; ++i) {
      const Acc value = value_at(pass[l], i);
      t[i] = Quick ? exponents.quick(value) : exponents.careful(probabilities ? log_of(value) : value);
      e[l * Width + i] = exponential(t[i]);
    }
    const bool mine = share.has(l);
    if (mine && tops[l].is(top)) {
#pragma unroll
      for (int i = Width - 1; i >= 0; --i) {
        Acc& of_value = e[l * Width + i];
        if (value_at(pass[l], i) == top) {
          totals.ties += 1;
          const uint32_t column = share.column(l) + static_cast<uint32_t>(i);
          totals.first = column < totals.first ? column : totals.first;
          of_value = excess;
        } else {
          tail += of_value;
          dot += of_value * t[i];
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < Width; ++i) {
        tail += e[l * Width + i];
        dot += e[l * Width + i] * t[i];
      }
    }
    totals.tail += mine ? tail : Acc(0);
    totals.dot += mine ? dot : Acc(0);
  }
  if constexpr (Quick) {
    // They are too large by this.
    const Acc factor = exponential(-exponents.error);
    totals.dot = factor * (totals.dot - exponents.error * totals.tail);
    totals.tail *= factor;
    return factor;
  }
  return 1;
}

// Takes in a pass: the lane's exponentials and totals, and what makes shares in the totals of the exponentials.
template <bool Block, class Stored, int Width, int Pieces, class Acc>
__device__ Totals<Acc> take_pass(const Piece<Stored, Width> (&pass)[Pieces], const Share<Stored, Width>& share,
                                 const Sharers<Block>& sharers, Rooms<Acc>& rooms, bool probabilities, Acc scale,
                                 Acc (&e)[Pieces * Width], Acc& factor) {
  PieceTop<Stored, Width> tops[Pieces];
  const Acc top = sharers.all(Largest<Acc>{find_tops(pass, tops)}, rooms.largest).value;
  Exponents<Acc> exponents(top, scale);
  Totals<Acc> totals = Totals<Acc>::none();
  bool carefully = probabilities || !exponents.usable;
  if (!__any_sync(kAllLanes, carefully)) {
    factor = exponentials<true>(pass, tops, share, exponents, top, false, e, totals);
    carefully = totals.dot != totals.dot;  // a masked class, or a NaN
  }
  if (__any_sync(kAllLanes, carefully)) {
    totals = Totals<Acc>::none();
    exponents.top = probabilities ? log_of(top) : top;
    factor = exponentials<false>(pass, tops, share, exponents, top, probabilities, e, totals);
    if (!(exponents.top > -std::numeric_limits<Acc>::infinity())) totals.tail = std::numeric_limits<Acc>::quiet_NaN();
  }
  return totals;
}

// How many votes the lane's columns have: a word for each, in shared memory.
template <class Acc>
struct Votes {
  int32_t* words;

  __device__ void clear() const {
#pragma unroll
    for (int k = 0; k < kShare<Acc>; k += 4)
      *reinterpret_cast<uint4*>(words + k * kBlockThreads + 4 * threadIdx.x) = {};
  }
  __device__ int32_t add(int k) const {
    return words[(k / 4 * kBlockThreads + static_cast<int>(threadIdx.x)) * 4 + k % 4] += 1;
  }
};

template <class Stored, int Width, bool Block>
__global__ void __launch_bounds__(kBlockThreads, 2)
    score_rows(const __grid_constant__ Passes passes, const __grid_constant__ EnsembleOutputs<accumulate_t<Stored>> out,
               accumulate_t<Stored> inverse_temperature, int lanes) {
  using Acc = accumulate_t<Stored>;
  constexpr int values = kShare<Acc>, pieces = values / Width;
  __shared__ Rooms<Acc> rooms;
  __shared__ __align__(16) int32_t votes_of_block[values * kBlockThreads];
  const Pool& pool = passes.pool;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const Share<Stored, Width> share = {static_cast<int>(pool.classes) / Width, lane, lanes, pool.class_stride};
  const Sharers<Block> sharers = {lanes, lane};
  const Votes<Acc> votes = {votes_of_block};
  const int lanes_log2 = __popc(static_cast<unsigned>(lanes - 1)), count = static_cast<int>(passes.count);
  const Acc scale = exponent_scale(inverse_temperature);
  const int64_t groups = kBlockThreads / lanes, step = gridDim.x * groups;
  // Every lane of a warp takes part in every shuffle; rows past the end are read as the last one and not written.
  const auto begin_of = [&](int64_t row) {
    return static_cast<const Stored*>(pool.data) + (row < pool.rows ? row : pool.rows - 1) * pool.row_stride;
  };
  int64_t row = blockIdx.x * groups + threadIdx.x / lanes;
  Piece<Stored, Width> pass[pieces];
  share.load(pass, begin_of(row));
  for (int64_t first = blockIdx.x * groups; first < pool.rows; first += step, row += step) {
    const Stored* data = begin_of(row);
    Acc sums[values] = {};
    End<Acc> end = {0, 0};
    Acc rest = 0, dot = 0;  // of the pass whose entropy is the lane's to take
    votes.clear();
    const Stored* const after = begin_of(row + step);
    for (int s = 0; s < count; ++s) {
      Acc e[values], factor;
      const Totals<Acc> mine = take_pass(pass, share, sharers, rooms, pool.probabilities, scale, e, factor);
      data += passes.stride;
      share.load(pass, s + 1 < count ? data : after);
      const Totals<Acc> totals = sharers.all(mine, rooms.totals);
      factor *= reciprocal_of(totals.ties + totals.tail);
#pragma unroll
      for (int l = 0; l < pieces; ++l) {
        if (!share.any_has(l)) continue;
#pragma unroll
        for (int k = l * Width; k < (l + 1) * Width; ++k) sums[k] += e[k] * factor;
      }
      if (mine.first == totals.first && mine.first != kNoColumn) {
        const int column = static_cast<int>(mine.first);
        const int32_t has = votes.add((column / Width >> lanes_log2) * Width + column % Width);
        end.modal = has > end.modal ? has : end.modal;
      }
      const int turn = s & (lanes - 1);
      if (turn == lane) {
        rest = totals.rest();
        dot = totals.dot;
      }
      if (turn == lanes - 1) {
        end.entropies += Totals<Acc>::entropy_of_rest(rest, dot);
        rest = dot = 0;
      }
    }
    end.entropies += Totals<Acc>::entropy_of_rest(rest, dot);
    Acc top = sums[0];
#pragma unroll
    for (int k = 1; k < values; ++k) top = larger(top, sums[k]);
    top = sharers.all(Largest<Acc>{top}, rooms.largest).value;
    const Acc inverse = 1 / top;
    Totals<Acc> shares = Totals<Acc>::none();
#pragma unroll
    for (int l = 0; l < pieces; ++l) {
      if (!share.has(l)) continue;
#pragma unroll
      for (int k = l * Width; k < (l + 1) * Width; ++k) {
        const Acc q = sums[k] == top ? Acc(0) : sums[k] * inverse;
        shares.ties += sums[k] == top ? Acc(1) : Acc(0);
        shares.tail += q;
        shares.dot += q * scaled_log_of(larger(q, std::numeric_limits<Acc>::min()));
      }
    }
    shares = sharers.all(shares, rooms.totals);
    end = sharers.all(end, rooms.ends);
    if (lane == 0 && row < pool.rows) {
      write_ensemble_row(out, row,
                         summarize_ensemble(shares.entropy(), end.entropies, static_cast<Acc>(end.modal),
                                            static_cast<Acc>(passes.count)));
    }
  }
}

template <class T>
__device__ T lanes_max(T value, int lanes) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) {
    const T other = __shfl_xor_sync(0xffffffffu, value, mask);
    value = other > value ? other : value;
  }
  return value;
}

template <class Acc>
__device__ ShareState<Acc> merge_lanes(ShareState<Acc> state, int lanes) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) {
    const ShareState<Acc> other = {
        __shfl_xor_sync(0xffffffffu, state.max, mask), __shfl_xor_sync(0xffffffffu, state.ties, mask),
        __shfl_xor_sync(0xffffffffu, state.tail, mask), __shfl_xor_sync(0xffffffffu, state.dot, mask)};
    state = merge(state, other);
  }
  return state;
}

// What its probabilities follow from, of one pass of a row. `vote` is -1 where it has no distribution.
template <class Acc>
struct PassOfRow {
  Acc max;  // logit
  Acc p1;
  int64_t vote;
};

// The logits of one pass of a row, in the hands of `lanes` lanes.
template <class Stored>
struct RowOfPass {
  using Acc = accumulate_t<Stored>;

  const Stored* data;
  const Pool& pool;
  int lane, lanes;
  Acc inverse_temperature;

  __device__ Acc logit_of(int64_t column) const { return logit(data[column * pool.class_stride], pool.probabilities); }

  __device__ Acc probability(int64_t column, Acc max, Acc p1) const {
    const Acc x = logit_of(column);
    return (x == max ? Acc(1) : exp_of(shifted(x, max, inverse_temperature))) * p1;
  }

  // The same in every lane; also the entropy.
  __device__ PassOfRow<Acc> walk(Acc& entropy) const {
    RowState<Acc> state;
    for (int64_t column = lane; column < pool.classes; column += lanes) {
      const Acc value[1] = {logit_of(column)};
      absorb(state, value, column, 1, inverse_temperature);
    }
    state = cuda::merge_lanes(state, lanes, inverse_temperature);
    const RowSummary<Acc> summary = summarize(state, inverse_temperature);
    entropy = summary.entropy;
    return {state.max, summary.p1, summary.p1 == summary.p1 ? state.argmax : -1};
  }
};

// Calls body(row, source, group): every group of lanes gets rows of the pool. Every lane of a warp takes part in every
// shuffle; rows past the end are read as the last one, `source`, and must not be written.
template <class Body>
__device__ void for_rows(const Pool& pool, int lanes, const Body& body) {
  const int64_t groups = kBlockThreads / lanes, group = threadIdx.x / lanes;
  for (int64_t first = blockIdx.x * groups; first < pool.rows; first += gridDim.x * groups) {
    const int64_t row = first + group;
    body(row, row < pool.rows ? row : pool.rows - 1, group);
  }
}

// A warp per row; `room`: a PassOfRow for every pass and warp of the grid.
template <class Stored>
__global__ void __launch_bounds__(kBlockThreads)
    score_long_rows(const __grid_constant__ Passes passes,
                    const __grid_constant__ EnsembleOutputs<accumulate_t<Stored>> out,
                    accumulate_t<Stored> inverse_temperature, PassOfRow<accumulate_t<Stored>>* room) {
  using Acc = accumulate_t<Stored>;
  const Pool& pool = passes.pool;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for_rows(pool, kWarp, [&](int64_t row, int64_t source, int64_t group) {
    PassOfRow<Acc>* const of = room + (blockIdx.x * int64_t{kWarpsPerBlock} + group) * passes.count;
    const Stored* const data = static_cast<const Stored*>(pool.data) + source * pool.row_stride;
    const auto pass_of_row = [&](int64_t s) {
      return RowOfPass<Stored>{data + s * passes.stride, pool, lane, kWarp, inverse_temperature};
    };
    Acc entropies = 0;
    for (int64_t s = 0; s < passes.count; ++s) {
      Acc entropy;
      const PassOfRow<Acc> pass = pass_of_row(s).walk(entropy);
      if (lane == 0) of[s] = pass;
      entropies += entropy;
    }
    __syncwarp();
    ShareState<Acc> shares;
    for (int64_t column = lane; column < pool.classes; column += kWarp) {
      Acc sum = 0;
      for (int64_t s = 0; s < passes.count; ++s) sum += pass_of_row(s).probability(column, of[s].max, of[s].p1);
      absorb(shares, sum);
    }
    int32_t modal = 0;
    for (int64_t s = lane; s < passes.count; s += kWarp) {
      int32_t votes = 0;
      for (int64_t other = 0; other < passes.count; ++other) votes += of[other].vote == of[s].vote;
      modal = votes > modal ? votes : modal;
    }
    modal = lanes_max(modal, kWarp);
    const Acc predictive = entropy_of(merge_lanes(shares, kWarp));
    __syncwarp();  // all have read what the next row's passes replace
    if (lane == 0 && row < pool.rows) {
      write_ensemble_row(
          out, row, summarize_ensemble(predictive, entropies, static_cast<Acc>(modal), static_cast<Acc>(passes.count)));
    }
  });
}

// A pass into sums and votes in memory.
template <class Stored, int Width, bool Block>
__global__ void __launch_bounds__(kBlockThreads, 2)
    add_rows(const __grid_constant__ Pool pool, const EnsembleState<accumulate_t<Stored>> state,
             accumulate_t<Stored> inverse_temperature, int lanes) {
  using Acc = accumulate_t<Stored>;
  constexpr int values = kShare<Acc>, pieces = values / Width;
  __shared__ Rooms<Acc> rooms;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const Share<Stored, Width> share = {static_cast<int>(pool.classes) / Width, lane, lanes, pool.class_stride};
  const Sharers<Block> sharers = {lanes, lane};
  const Acc scale = exponent_scale(inverse_temperature);
  const int64_t groups = kBlockThreads / lanes, step = gridDim.x * groups;
  for (int64_t first = blockIdx.x * groups; first < pool.rows; first += step) {
    const int64_t row = first + threadIdx.x / lanes, source = row < pool.rows ? row : pool.rows - 1;
    Piece<Stored, Width> pass[pieces];
    share.load(pass, static_cast<const Stored*>(pool.data) + source * pool.row_stride);
    Acc* const sums = state.sums + source * pool.classes;
    Acc e[values], factor;
    const Totals<Acc> mine = take_pass(pass, share, sharers, rooms, pool.probabilities, scale, e, factor);
    const Totals<Acc> totals = sharers.all(mine, rooms.totals);
    factor *= reciprocal_of(totals.ties + totals.tail);
    if (row >= pool.rows) continue;
#pragma unroll
    for (int l = 0; l < pieces; ++l) {
      if (!share.has(l)) continue;
      // Loads of all its sums before their first use.
      Acc* const of_piece = sums + share.column(l);
      Acc sum[Width];
#pragma unroll
      for (int i = 0; i < Width; ++i) sum[i] = of_piece[i];
#pragma unroll
      for (int i = 0; i < Width; ++i) of_piece[i] = sum[i] + e[l * Width + i] * factor;
    }
    const bool valid = totals.tail == totals.tail;
    if (valid && mine.first == totals.first && mine.first != kNoColumn) {
      state.votes[source * pool.classes + mine.first] += 1;
    }
    if (lane == 0) state.entropies[row] += totals.entropy();
  }
}

template <class Stored>
__global__ void __launch_bounds__(kBlockThreads)
    add_long_rows(const __grid_constant__ Pool pool, const EnsembleState<accumulate_t<Stored>> state,
                  accumulate_t<Stored> inverse_temperature) {
  using Acc = accumulate_t<Stored>;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for_rows(pool, kWarp, [&](int64_t row, int64_t source, int64_t) {
    const Stored* const data = static_cast<const Stored*>(pool.data) + source * pool.row_stride;
    const RowOfPass<Stored> of = {data, pool, lane, kWarp, inverse_temperature};
    Acc entropy;
    const PassOfRow<Acc> pass = of.walk(entropy);
    for (int64_t column = lane; row < pool.rows && column < pool.classes; column += kWarp) {
      state.sums[row * pool.classes + column] += of.probability(column, pass.max, pass.p1);
      if (column == pass.vote) state.votes[row * pool.classes + column] += 1;
    }
    if (lane == 0 && row < pool.rows) state.entropies[row] += entropy;
  });
}

// How rows are shared out: a power of two of lanes with at most kShare values each, or a block, or (0) a walk of a
// warp.
int lanes_for(int64_t pieces, int64_t pieces_of_lane) {
  int lanes = 1;
  while (lanes < kWarp && lanes * pieces_of_lane < pieces) lanes *= 2;
  if (lanes * pieces_of_lane >= pieces) return lanes;
  return kBlockThreads * pieces_of_lane >= pieces ? kBlockThreads : 0;
}

// Calls launch(width, block) with how many values a piece has, and whether a block has a row, as types.
template <class Stored, class Launch>
void choose(int bytes, bool block, const Launch& launch) {
  const auto with = [&](auto width) {
    if (block) return launch(width, std::true_type{});
    launch(width, std::false_type{});
  };
  if (bytes == 16) return with(std::integral_constant<int, 16 / sizeof(Stored)>{});
  if constexpr (sizeof(Stored) == 2) {
    if (bytes == 8) return with(std::integral_constant<int, 4>{});
  }
  with(std::integral_constant<int, 1>{});
}

Tensor score_ensemble(const Tensor& logits, std::vector<int64_t> strategies, bool probabilities, double temperature) {
  const int32_t device = logits.get_device_index();
  const auto run = [&](const Passes& passes, const auto& out, auto inverse_temperature, auto stored) {
    using Stored = decltype(stored);
    using Acc = accumulate_t<Stored>;
    const torch::stable::accelerator::DeviceGuard guard(device);
    const Pool& pool = passes.pool;
    const cudaStream_t stream = current_stream(device);
    const int bytes =
        piece_bytes(pool.data, pool.classes, pool.class_stride,
                    {pool.rows > 1 ? pool.row_stride : 0, passes.count > 1 ? passes.stride : 0}, sizeof(Stored));
    bool done = false;
    choose<Stored>(bytes, pool.classes > kWarp * kShare<Acc>, [&](auto width, auto block) {
      const int lanes = lanes_for(pool.classes / width, kShare<Acc> / width);
      if (lanes == 0) return;
      done = true;
      // As many blocks as are resident: each asks for its next row before it has ended one.
      const int64_t blocks = std::min(divide_up(pool.rows, kBlockThreads / lanes), multiprocessors_of(device) * 2);
      launch_kernel(score_rows<Stored, width, block>, {grid_for(blocks), kBlockThreads}, stream, passes, out,
                    inverse_temperature, lanes);
    });
    if (done) return;
    // 8 blocks of 256 threads fill a multiprocessor.
    const int64_t block_bytes = kWarpsPerBlock * passes.count * static_cast<int64_t>(sizeof(PassOfRow<Acc>));
    const int64_t most = std::max<int64_t>(1, std::min(multiprocessors_of(device) * 8, kRoomBytes / block_bytes));
    const int64_t blocks = std::min(divide_up(pool.rows, kWarpsPerBlock), most);
    const Tensor room = new_rows(logits, {blocks * block_bytes}, torch::headeronly::ScalarType::Byte);
    launch_kernel(score_long_rows<Stored>, {grid_for(blocks), kBlockThreads}, stream, passes, out, inverse_temperature,
                  static_cast<PassOfRow<Acc>*>(room.data_ptr()));
  };
  return prunefuse::score_ensemble(logits, strategies, probabilities, temperature, run);
}

void ensemble_add(const Tensor& sums, const Tensor& votes, const Tensor& entropies, const Tensor& logits,
                  bool probabilities, double temperature) {
  const int32_t device = logits.get_device_index();
  const auto run = [&](const Pool& pool, const auto& state, auto inverse_temperature, auto stored) {
    using Stored = decltype(stored);
    using Acc = accumulate_t<Stored>;
    const torch::stable::accelerator::DeviceGuard guard(device);
    const cudaStream_t stream = current_stream(device);
    const int bytes =
        piece_bytes(pool.data, pool.classes, pool.class_stride, {pool.rows > 1 ? pool.row_stride : 0}, sizeof(Stored));
    bool done = false;
    choose<Stored>(bytes, pool.classes > kWarp * kShare<Acc>, [&](auto width, auto block) {
      const int lanes = lanes_for(pool.classes / width, kShare<Acc> / width);
      if (lanes == 0) return;
      done = true;
      const int64_t blocks = divide_up(pool.rows, kBlockThreads / lanes);
      launch_kernel(add_rows<Stored, width, block>, {grid_for(blocks), kBlockThreads}, stream, pool, state,
                    inverse_temperature, lanes);
    });
    if (done) return;
    launch_kernel(add_long_rows<Stored>, {grid_for(divide_up(pool.rows, kWarpsPerBlock)), kBlockThreads}, stream, pool,
                  state, inverse_temperature);
  };
  prunefuse::ensemble_add(sums, votes, entropies, logits, probabilities, temperature, run);
}

}  // namespace
}  // namespace prunefuse::cuda

STABLE_TORCH_LIBRARY_IMPL(prunefuse, CUDA, m) {
  m.impl("score_ensemble", TORCH_BOX(&prunefuse::cuda::score_ensemble));
  m.impl("ensemble_add_", TORCH_BOX(&prunefuse::cuda::ensemble_add));
}
