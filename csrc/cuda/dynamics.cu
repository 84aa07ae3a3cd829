// Training dynamics on CUDA. Nothing waits for the device: rows that the CPU would refuse are left out and counted.
//
// dynamics: bound by reading the logits once, N * C * size bytes. Where rows have pieces of 16 bytes (16-bit types: 8),
// a row of up to 1,024 classes belongs to 1 to 32 lanes of a warp, one of up to 8,192 to a block (float64: 256 and
// 2,048). A lane holds its share, at most 32 values, in registers: the largest first, then one exponential a value, one
// meeting for the sums. All of its loads of the next row are under way while it ends one, with that row's label and its
// value, so no load waits for another. Other rows are read by lanes in 16-byte loads or one by one, merged by a
// butterfly.
//
// divergence_: bound by the logits once and the kept logarithms in and out, B * C * (size + 2 * size kept). Rows of up
// to 1,024 classes in pieces of 16 bytes are held in registers, logits and logarithms, all loads at once; others are
// walked twice, one value at a time.
//
// Counted (benchmarks/results/sass.txt), with row ends: dynamics at C = 1,000 takes 19 instructions a float32 value and
// 16 a bfloat16 one, 3 or 4 blocks are resident, and 37 KB or more under way on a multiprocessor; divergence_ takes 38
// and 39, with 2 blocks. claim_, push_: a thread per row; a sample's ring is one line or two. At a batch's few hundred
// rows, a launch is all. Not run on a GPU yet.
#include "../dynamics.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <type_traits>

#include "shares.h"

namespace prunefuse::cuda {
namespace {

constexpr int kBlockThreads = 256;
constexpr int kWarpsPerBlock = kBlockThreads / kWarp;

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

// Sums over the classes other than the label's, relative to the largest of them.
template <class Acc>
struct Others {
  Acc sum, squares;

  __device__ Others exchanged(int mask) const { return {from_lane(sum, mask), from_lane(squares, mask)}; }
};

template <class Acc>
__device__ Others<Acc> meet(const Others<Acc>& a, const Others<Acc>& b) {
  return {a.sum + b.sum, a.squares + b.squares};
}

struct Any {
  int32_t any;

  __device__ Any exchanged(int mask) const { return {from_lane(any, mask)}; }
};

__device__ inline Any meet(Any a, Any b) { return {a.any | b.any}; }

// Puts a masked class in place of value `i`.
template <class Stored, int Width>
__device__ void mask_value(Piece<Stored, Width>& piece, int i) {
  if constexpr (sizeof(Stored) == 2) {
    const uint32_t low = std::is_same_v<Stored, half_bits> ? 0xfc00u : 0xff80u;
    const uint32_t mask = i % 2 == 0 ? 0x0000ffffu : 0xffff0000u, put = i % 2 == 0 ? low : low << 16;
#pragma unroll
    for (int w = 0; w < Width / 2; ++w) piece.words[w] = w == i / 2 ? (piece.words[w] & ~mask) | put : piece.words[w];
  } else if constexpr (sizeof(Stored) == 4) {
#pragma unroll
    for (int w = 0; w < Width; ++w) piece.words[w] = w == i ? 0xff800000u : piece.words[w];
  } else {
#pragma unroll
    for (int w = 0; w < Width; ++w) {
      piece.words[2 * w] = w == i ? 0u : piece.words[2 * w];
      piece.words[2 * w + 1] = w == i ? 0xfff00000u : piece.words[2 * w + 1];
    }
  }
}

// The lane's sums of a row; `careful` where the largest value may be infinite.
template <bool Careful, class Stored, int Width, int Pieces, class Acc>
__device__ Others<Acc> sum_others(const Piece<Stored, Width> (&values)[Pieces], const Share<Stored, Width>& share,
                                  const Exponents<Acc>& exponents) {
  Others<Acc> others = {0, 0};
#pragma unroll
  for (int l = 0; l < Pieces; ++l) {
    if (!share.any_has(l)) continue;
    Others<Acc> of_piece = {0, 0};
#pragma unroll
    for (int i = 0; i < Width; ++i) {
      const Acc x = value_at(values[l], i);
      Acc e = exponential(Careful ? exponents.careful(x) : exponents.quick(x));
      if (Careful && x == exponents.top) e = 1;
      of_piece.sum += e;
      of_piece.squares += e * e;
    }
    others.sum += share.has(l) ? of_piece.sum : Acc(0);
    others.squares += share.has(l) ? of_piece.squares : Acc(0);
  }
  if constexpr (!Careful) {
    const Acc factor = exponential(-exponents.error);
    others.sum *= factor;
    others.squares *= factor * factor;
  }
  return others;
}

// A row in registers, while the next one is on its way, and the label of the one after that.
template <class Stored, int Width, bool Block>
__global__ void __launch_bounds__(kBlockThreads, 2)
    dynamics_of_shares(const __grid_constant__ Pool pool, const int64_t* labels, accumulate_t<Stored>* out, int lanes) {
  using Acc = accumulate_t<Stored>;
  constexpr int pieces = kShare<Acc> / Width;
  __shared__ Largest<Acc> room_of_largest[kWarpsPerBlock];
  __shared__ Others<Acc> room_of_others[kWarpsPerBlock];
  __shared__ Any room_of_any[kWarpsPerBlock];
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const int lanes_log2 = __popc(static_cast<unsigned>(lanes - 1));
  const Share<Stored, Width> share = {static_cast<int>(pool.classes) / Width, lane, lanes, pool.class_stride};
  const Sharers<Block> sharers = {lanes, lane};
  const Acc scale = exponent_scale(Acc(1));
  const int64_t groups = kBlockThreads / lanes, step = gridDim.x * groups;
  // Every lane of a warp takes part in every shuffle; rows past the end are read as the last one and not written.
  const auto read_as = [&](int64_t row) { return row < pool.rows ? row : pool.rows - 1; };
  const auto begin_of = [&](int64_t row) {
    return static_cast<const Stored*>(pool.data) + read_as(row) * pool.row_stride;
  };
  const auto own_of = [&](int64_t row, int64_t label) {
    return label >= 0 && label < pool.classes ? static_cast<Acc>(widen(begin_of(row)[label]))
                                              : std::numeric_limits<Acc>::quiet_NaN();
  };
  int64_t row = blockIdx.x * groups + threadIdx.x / lanes;
  int64_t label = labels[read_as(row)], next_label = labels[read_as(row + step)];
  Acc own = own_of(row, label);
  Piece<Stored, Width> values[pieces];
  share.load(values, begin_of(row));
  for (int64_t first = blockIdx.x * groups; first < pool.rows; first += step, row += step) {
    const int column = label >= 0 && label < pool.classes ? static_cast<int>(label) : 0;
    const int piece = column / Width, own_piece = (piece & (lanes - 1)) == lane ? piece >> lanes_log2 : -1;
#pragma unroll
    for (int l = 0; l < pieces; ++l) {
      if (l == own_piece) mask_value(values[l], column % Width);
    }
    PieceTop<Stored, Width> tops[pieces];
    find_tops(values, tops);
    // Of the lane's own pieces: what stands for missing ones may hold the label's value.
    Acc top = -std::numeric_limits<Acc>::infinity();
#pragma unroll
    for (int l = 0; l < pieces; ++l) top = larger(top, share.has(l) ? tops[l].largest() : top);
    top = sharers.all(Largest<Acc>{top}, room_of_largest).value;
    const Exponents<Acc> exponents(top, scale);
    Others<Acc> others = __any_sync(kAllLanes, !exponents.usable) ? sum_others<true>(values, share, exponents)
                                                                  : sum_others<false>(values, share, exponents);
    Any before = {0};  // the label's value, ahead of the label
    if (__any_sync(kAllLanes, own == top)) {
#pragma unroll
      for (int l = 0; l < pieces; ++l) {
#pragma unroll
        for (int i = 0; i < Width; ++i) {
          const int at = static_cast<int>(share.column(l)) + i;
          before.any |= share.has(l) && at < column && value_at(values[l], i) == own;
        }
      }
      before = sharers.all(before, room_of_any);  // a block has one row, so all of it comes here or none
    }
    share.load(values, begin_of(row + step));
    const Acc next_own = own_of(row + step, next_label);
    const int64_t label_after = labels[read_as(row + 2 * step)];
    others = sharers.all(others, room_of_others);
    if (lane == 0 && row < pool.rows) {
      write_dynamics(
          out, pool.rows, row,
          dynamics_of_sums(top, others.sum - 1, others.squares, others.sum != others.sum, own, before.any == 0));
    }
    label = next_label;
    next_label = label_after;
    own = next_own;
  }
}

// Puts a logarithm in place of value `i`, which must hold zeros in 16-bit pieces.
template <class Kept, int Width>
__device__ void put_value(Piece<Kept, Width>& piece, int i, float value) {
  Kept narrow;
  narrow_to(value, narrow);
  if constexpr (sizeof(Kept) == 2) {
    piece.words[i / 2] |= static_cast<uint32_t>(bits_as<uint16_t>(narrow)) << (i % 2 * 16);
  } else {
    piece.words[i] = bits_as<uint32_t>(narrow);
  }
}

// Aligned to its size, up to 16 bytes.
template <class Kept, int Width>
__device__ void store_piece(Kept* to, const Piece<Kept, Width>& piece) {
  constexpr int bytes = Piece<Kept, Width>::kBytes;
  if constexpr (bytes % 16 == 0) {
#pragma unroll
    for (int i = 0; i < bytes / 16; ++i) {
      const uint32_t* const w = piece.words + 4 * i;
      reinterpret_cast<uint4*>(to)[i] = {w[0], w[1], w[2], w[3]};
    }
  } else {
    static_assert(bytes == 8);
    unsigned long long raw;
    memcpy(&raw, piece.words, sizeof(raw));
    *reinterpret_cast<unsigned long long*>(to) = raw;
  }
}

template <class Acc>
struct Mass {
  Acc ties, tail;

  __device__ Mass exchanged(int mask) const { return {from_lane(ties, mask), from_lane(tail, mask)}; }
};

template <class Acc>
__device__ Mass<Acc> meet(const Mass<Acc>& a, const Mass<Acc>& b) {
  return {a.ties + b.ties, a.tail + b.tail};
}

// divergence_ of rows whose logits and kept logarithms lanes hold in registers, in float32.
template <class Stored, class Kept, int Width>
__global__ void __launch_bounds__(kBlockThreads, 2)
    divergence_of_shares(const __grid_constant__ Pool pool, const int64_t* samples, Kept* kept, int64_t count,
                         float epsilon, double* divergences, int lanes) {
  constexpr int pieces = kShare<float> / Width;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const Share<Stored, Width> share = {static_cast<int>(pool.classes) / Width, lane, lanes, 1};
  const Share<Kept, Width> share_of_kept = {share.pieces, lane, lanes, 1};
  const Sharers<false> sharers = {lanes, lane};
  const float scale = exponent_scale(1.0f);
  const int64_t groups = kBlockThreads / lanes, step = gridDim.x * groups;
  for (int64_t first = blockIdx.x * groups; first < pool.rows; first += step) {
    const int64_t row = first + threadIdx.x / lanes;
    const int64_t source = row < pool.rows ? row : pool.rows - 1;
    Piece<Stored, Width> values[pieces];
    share.load(values, static_cast<const Stored*>(pool.data) + source * pool.row_stride);
    const int64_t sample = samples[source];
    const bool write = row < pool.rows && sample >= 0 && sample < count;
    Kept* const logs = kept + (write ? sample : 0) * pool.classes;
    Piece<Kept, Width> before[pieces];
    share_of_kept.load(before, logs);
    PieceTop<Stored, Width> tops[pieces];
    const float top = sharers.all(Largest<float>{find_tops(values, tops)}, static_cast<Largest<float>*>(nullptr)).value;
    const Exponents<float> exponents(top, scale);
    const bool quick = !__any_sync(kAllLanes, !exponents.usable);
    float e[pieces * Width];
    Mass<float> mass = {0, 0};
#pragma unroll
    for (int l = 0; l < pieces; ++l) {
      if (!share.any_has(l)) continue;
      float tail = 0, ties = 0;
#pragma unroll
      for (int i = 0; i < Width; ++i) {
        const float x = value_at(values[l], i);
        const bool largest = x == top;
        // Of those that equal the largest, what is told of it; no share is negative.
        e[l * Width + i] = largest ? -1.0f : exponential(quick ? exponents.quick(x) : exponents.careful(x));
        ties += largest ? 1.0f : 0.0f;
        tail += largest ? 0.0f : e[l * Width + i];
      }
      mass.ties += share.has(l) ? ties : 0.0f;
      mass.tail += share.has(l) ? tail : 0.0f;
    }
    const float factor = quick ? exponential(-exponents.error) : 1.0f;
    mass.tail *= factor;
    mass = sharers.all(mass, static_cast<Mass<float>*>(nullptr));
    const bool valid = mass.tail == mass.tail && top > -std::numeric_limits<float>::infinity();
    const float rest = (mass.ties - 1) + mass.tail, inverse = 1 / (rest + 1);
    const float log_largest = valid ? log_of_largest(rest, epsilon) : std::numeric_limits<float>::quiet_NaN();
    // The first logarithm says whether the row was seen.
    const bool unseen = lane == 0 && value_at(before[0], 0) == kNeverSeen;
    const float of_exponential = factor * inverse;
    CompensatedSum<float> sum;
#pragma unroll
    for (int l = 0; l < pieces; ++l) {
      if (!write || !share.has(l)) continue;
      Piece<Kept, Width> after = {};
#pragma unroll
      for (int i = 0; i < Width; ++i) {
        const bool largest = !valid || e[l * Width + i] < 0;
        const float q = largest ? inverse : e[l * Width + i] * of_exponential;
        const float log = largest ? log_largest : log_of_shifted(q, epsilon);
        sum.add(::fabs(q * (log - value_at(before[l], i))));
        put_value(after, i, log);
      }
      store_piece(logs + share.column(l), after);
    }
    double total = sum.value();
    for (int mask = lanes / 2; mask > 0; mask /= 2) total += __shfl_xor_sync(kAllLanes, total, mask);
    if (lane == 0 && row < pool.rows) divergences[row] = write && !unseen ? total : -1.0;
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
int lanes_for_loads(int64_t loads) {
  int lanes = 1;
  while (lanes < kWarp && lanes * 4 <= loads) lanes *= 2;
  return lanes;
}

// As many lanes as hold a row in registers, a power of two or a block; 0: none do.
int sharing_lanes(int64_t pieces, int64_t pieces_of_lane) {
  int lanes = 1;
  while (lanes < kWarp && lanes * pieces_of_lane < pieces) lanes *= 2;
  if (lanes * pieces_of_lane >= pieces) return lanes;
  return kBlockThreads * pieces_of_lane >= pieces ? kBlockThreads : 0;
}

Tensor dynamics(const Tensor& logits, const Tensor& labels) {
  const int32_t device = logits.get_device_index();
  const auto run = [&](const Pool& pool, const int64_t* of_row, auto* out, auto stored) {
    using Stored = decltype(stored);
    using Acc = accumulate_t<Stored>;
    const torch::stable::accelerator::DeviceGuard guard(device);
    const cudaStream_t stream = current_stream(device);
    const int bytes =
        piece_bytes(pool.data, pool.classes, pool.class_stride, {pool.rows > 1 ? pool.row_stride : 0}, sizeof(Stored));
    const auto by_shares = [&](auto width) {
      const int lanes = sharing_lanes(pool.classes / width, kShare<Acc> / width);
      if (lanes == 0) return false;
      // No more blocks than are resident at most: each asks for its next row before it has ended one.
      const int64_t blocks = std::min(divide_up(pool.rows, kBlockThreads / lanes), multiprocessors_of(device) * 4);
      const Shape shape = {grid_for(blocks), kBlockThreads};
      if (lanes > kWarp) {
        launch_kernel(dynamics_of_shares<Stored, width, true>, shape, stream, pool, of_row, out, lanes);
      } else {
        launch_kernel(dynamics_of_shares<Stored, width, false>, shape, stream, pool, of_row, out, lanes);
      }
      return true;
    };
    if (bytes == 16 && by_shares(std::integral_constant<int, 16 / sizeof(Stored)>{})) return;
    if constexpr (sizeof(Stored) == 2) {
      if (bytes == 8 && by_shares(std::integral_constant<int, 4>{})) return;
    }
    const bool aligned = reinterpret_cast<uintptr_t>(pool.data) % 16 == 0 && pool.class_stride == 1 &&
                         (pool.rows == 1 || pool.row_stride * static_cast<int64_t>(sizeof(Stored)) % 16 == 0);
    const int lanes = lanes_for_loads(aligned ? divide_up(pool.classes, 16 / sizeof(Stored)) : pool.classes);
    const unsigned blocks = grid_for(divide_up(pool.rows, kBlockThreads / lanes));
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
    const cudaStream_t stream = current_stream(device);
    if constexpr (std::is_same_v<Acc, float>) {
      constexpr int width = 16 / sizeof(Stored);
      const int64_t aligned = std::min<int64_t>(16, width * sizeof(Kept));
      const int sharing = sharing_lanes(pool.classes / width, kShare<float> / width);
      if (sharing > 0 && sharing <= kWarp && reinterpret_cast<uintptr_t>(logs) % static_cast<uintptr_t>(aligned) == 0 &&
          piece_bytes(pool.data, pool.classes, pool.class_stride, {pool.rows > 1 ? pool.row_stride : 0},
                      sizeof(Stored)) == 16) {
        const unsigned grid = grid_for(divide_up(pool.rows, kBlockThreads / sharing));
        launch_kernel(divergence_of_shares<Stored, Kept, width>, {grid, kBlockThreads}, stream, pool, of_row, logs,
                      kept.size(0), static_cast<float>(epsilon), divergences, sharing);
        return;
      }
    }
    const int lanes = lanes_for_loads(pool.classes);
    const unsigned blocks = grid_for(divide_up(pool.rows, kBlockThreads / lanes));
    launch_kernel(divergence_rows<Stored, Kept, Acc>, {blocks, kBlockThreads}, stream, pool, of_row, logs, kept.size(0),
                  static_cast<Acc>(epsilon), divergences, lanes);
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
