// Greedy k-center on CUDA: one launch per pick, no host synchronization, so that a call can be captured in a graph.
//
// A launch begins by reducing what every block of the launch before found (its farthest row): that is the pick. It then
// reads all features once, shortens each row's distance to its nearest center by the pick, and leaves each block's
// farthest row for the next launch. Labeled rows come first, kTile of them per read of the features.
//
// Bytes per pick: N * d * size of the features and N * size of the distances read, and the distances that fell written.
// The reduction adds 16 bytes per block, read by every block: at 528 blocks (an H100) 4 MB from L2, against 13 MB for
// N = 50,000, d = 64, and nothing beside larger pools. 3 operations per 4 bytes keep a pick bound by memory.
//
// Occupancy: 256 threads and at most 64 registers make 4 blocks, 1,024 threads, resident on a multiprocessor. A thread
// has 4 loads of 16 bytes under way (2 rows, unrolled twice), 64 KB per multiprocessor, where the latency of an H200's
// memory takes about 25. A row belongs to 4 lanes, which read it in pieces of 64 bytes, so every sector is used whole;
// the center comes from L1. Labeled rows are bound by arithmetic: 16 sums per 3 loads. Where rows do not start at
// 16-byte boundaries (d not a multiple of 4, for float32), 16 lanes read 4 bytes each, 8 times 2 under way.
// Below about 20 MB of features the launches themselves, 2 to 3 microseconds each, are what remains.
//
// Distances are sums of squared differences in 16 partial sums (float64: 4), element j in sum j mod 16, folded by
// halves: bit for bit those of the CPU at its AVX-512 level (float64: also AVX2), whatever the layout. Other levels add
// up in another order: where two rows are equally far but for rounding, their picks may differ from these.
//
// Compiled for sm_80 and sm_90 (registers in benchmarks/results/ptxas.txt); not run on a GPU yet.
#include "../k_center.h"

#include <torch/csrc/stable/library.h>

#include "lanes.h"

namespace prunefuse::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kBlockThreads = 256;
constexpr int kBlocksPerMultiprocessor = 4;
constexpr int kRowsAtOnce = 2;  // rows that a thread has under way
// Labeled rows per read of the features: what registers hold the sums of.
template <class T>
constexpr int kTile = sizeof(T) == sizeof(float) ? 8 : 4;

// A row and its squared distance to the nearest center; {-1, -1} is no row.
template <class T>
struct alignas(16) Farthest {
  T distance;
  int64_t row;
};

template <class T>
struct Pool {
  const T* features;  // rows x width, contiguous
  int64_t rows;
  int64_t width;
  T* nearest;        // -1: not to be picked
  const T* weights;  // what a row's squared distances are multiplied by; null: 1
  T least;           // a row at a smaller squared distance, without its weight, is not to be picked
};

// What a row's distance to its nearest center becomes by one more center.
template <class T>
__device__ T shortened(const Pool<T>& pool, T nearest, T distance, T weight) {
  if (distance < pool.least) return -1;
  const T weighted = distance * weight;
  return weighted < nearest ? weighted : nearest;
}

template <class T>
__device__ T weight_of(const Pool<T>& pool, int64_t row) {
  return pool.weights ? pool.weights[row] : T(1);
}

// One 16-byte load, so that distance and row arrive together.
template <class T>
__device__ Farthest<T> load_farthest(const Farthest<T>* from) {
  const uint4 raw = *reinterpret_cast<const uint4*>(from);
  Farthest<T> loaded;
  memcpy(&loaded, &raw, sizeof(raw));
  return loaded;
}

// All 16 bytes: what lies between a float and the row is read with them.
template <class T>
__device__ void store_farthest(Farthest<T>* to, Farthest<T> farthest) {
  uint4 raw = {};
  memcpy(&raw, &farthest.distance, sizeof(T));
  memcpy(reinterpret_cast<char*>(&raw) + offsetof(Farthest<T>, row), &farthest.row, sizeof(farthest.row));
  *reinterpret_cast<uint4*>(to) = raw;
}

template <class T>
__device__ Farthest<T> farther(Farthest<T> a, Farthest<T> b) {
  const bool second = b.distance > a.distance || (b.distance == a.distance && b.row < a.row);
  return {second ? b.distance : a.distance, second ? b.row : a.row};
}

// The farthest of all threads', in every thread of the block.
template <class T>
__device__ Farthest<T> block_farthest(Farthest<T> mine) {
  __shared__ Farthest<T> warps[kBlockThreads / kWarp];
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    Farthest<T> other;
    other.distance = __shfl_xor_sync(0xffffffffu, mine.distance, mask);
    other.row = __shfl_xor_sync(0xffffffffu, static_cast<long long>(mine.row), mask);
    mine = farther(mine, other);
  }
  __syncthreads();  // all have read what an earlier call left
  if (threadIdx.x % kWarp == 0) store_farthest(warps + threadIdx.x / kWarp, mine);
  __syncthreads();
  for (int warp = 0; warp < kBlockThreads / kWarp; ++warp) mine = farther(mine, load_farthest(warps + warp));
  return mine;
}

// Partial sums of a distance. `Width` of them lie in each of the lanes that share a row, so that lane l of them takes
// elements Width * l, ..., Width * l + Width - 1 of every kSums.
template <class T>
constexpr int kSums = sizeof(T) == sizeof(float) ? 16 : 4;

template <class T, int Width>
struct alignas(sizeof(T) * Width) Piece {
  T values[Width];
};

template <class T, int Width>
__device__ Piece<T, Width> load_piece(const T* from) {
  Piece<T, Width> piece;
  if constexpr (Width * sizeof(T) == 16) {
    const uint4 raw = __ldg(reinterpret_cast<const uint4*>(from));
    memcpy(&piece, &raw, sizeof(raw));
  } else {
    piece.values[0] = __ldg(from);
  }
  return piece;
}

// out[c][r] = |centers[c] - rows[r]|^2, in every lane; `centers` and `rows` count from the lane's first element.
template <int Width, int Centers, int Rows, class T>
__device__ void squared_distances(const T* const (&centers)[Centers], const T* const (&rows)[Rows], int64_t width,
                                  int lane, T (&out)[Centers][Rows]) {
  constexpr int lanes = kSums<T> / Width;
  [[maybe_unused]] constexpr int unroll = Width == 1 ? 8 : Centers == 1 ? 2 : 1;
  T sums[Centers][Rows][Width] = {};
#pragma unroll unroll
  for (int64_t j = lane * Width; j < width; j += kSums<T>) {
    Piece<T, Width> x[Rows];
#pragma unroll
    for (int r = 0; r < Rows; ++r) x[r] = load_piece<T, Width>(rows[r] + j);
#pragma unroll
    for (int c = 0; c < Centers; ++c) {
      const auto center = load_piece<T, Width>(centers[c] + j);
#pragma unroll
      for (int r = 0; r < Rows; ++r) {
#pragma unroll
        for (int i = 0; i < Width; ++i) {
          const T difference = x[r].values[i] - center.values[i];
          sums[c][r][i] = fma(difference, difference, sums[c][r][i]);
        }
      }
    }
  }
#pragma unroll
  for (int c = 0; c < Centers; ++c) {
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
#pragma unroll
      for (int mask = lanes / 2; mask > 0; mask /= 2) {
#pragma unroll
        for (int i = 0; i < Width; ++i) {
          sums[c][r][i] += __shfl_xor_sync(0xffffffffu, sums[c][r][i], mask);
        }
      }
#pragma unroll
      for (int half = Width / 2; half > 0; half /= 2) {
#pragma unroll
        for (int i = 0; i < half; ++i) sums[c][r][i] += sums[c][r][i + half];
      }
      out[c][r] = sums[c][r][0];
    }
  }
}

// Calls body(row, its distance so far, distances to all centers) for every row, in one lane of those that share it and
// in rising order there. Every lane of a warp takes part in every round's shuffles; rows past the end are read as the
// last one.
template <int Width, int Centers, class T, class Body>
__device__ void for_rows(const Pool<T>& pool, const T* const (&centers)[Centers], const Body& body) {
  constexpr int lanes = kSums<T> / Width;
  constexpr int groups = kBlockThreads / lanes;
  constexpr int64_t step = groups * kRowsAtOnce;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const int64_t group = threadIdx.x / lanes;
  for (int64_t first = blockIdx.x * step; first < pool.rows; first += gridDim.x * step) {
    const T* rows[kRowsAtOnce];
    T before[kRowsAtOnce];
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
      const int64_t row = first + r * groups + group;
      rows[r] = pool.features + (row < pool.rows ? row : pool.rows - 1) * pool.width;
      before[r] = lane == 0 && row < pool.rows ? pool.nearest[row] : T(-1);
    }
    T distances[Centers][kRowsAtOnce];
    squared_distances<Width>(centers, rows, pool.width, lane, distances);
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
      const int64_t row = first + r * groups + group;
      if (lane != 0 || row >= pool.rows) continue;
      T of_row[Centers];
#pragma unroll
      for (int c = 0; c < Centers; ++c) of_row[c] = distances[c][r];
      body(row, before[r], of_row);
    }
  }
}

// Which rows may be picked: those at a finite distance from the origin (`width` zeros).
template <class T, int Width>
__global__ void __launch_bounds__(kBlockThreads, kBlocksPerMultiprocessor)
    find_finite(const __grid_constant__ Pool<T> pool, const T* origin) {
  const T* const centers[1] = {origin};
  for_rows<Width>(pool, centers, [&](int64_t row, T, const T(&distances)[1]) {
    constexpr T largest = std::numeric_limits<T>::max();
    const T weight = weight_of(pool, row);
    const bool finite = distances[0] <= largest && weight >= 0 && weight <= largest;
    pool.nearest[row] = finite ? std::numeric_limits<T>::infinity() : T(-1);
  });
}

// Takes the labeled rows and `start` (unless -1) out of the pool. centers[i] is the row, or -1 where it is no center:
// not finite, out of range, or a repetition (of which one is kept at least).
template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    take_known(const __grid_constant__ Pool<T> pool, const int64_t* labeled, int64_t labeled_count, int64_t start,
               int64_t* centers, int64_t* first_pick) {
  const int64_t count = labeled_count + (start >= 0);
  for (int64_t i = blockIdx.x * int64_t{kBlockThreads} + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * kBlockThreads) {
    const int64_t row = i < labeled_count ? labeled[i] : start;
    const bool usable = row >= 0 && row < pool.rows && pool.nearest[row] >= 0;
    if (usable) pool.nearest[row] = -1;
    centers[i] = usable ? row : -1;
    if (i == labeled_count) *first_pick = start;
  }
}

// Applies up to kTile centers from a list; `best` gets each block's farthest row.
template <class T, int Width>
__global__ void __launch_bounds__(kBlockThreads, 2)
    apply_known(const __grid_constant__ Pool<T> pool, const int64_t* known, int64_t count, Farthest<T>* best) {
  // What is missing is read as row 0 and not used.
  const T* centers[kTile<T>];
  bool used[kTile<T>];
#pragma unroll
  for (int c = 0; c < kTile<T>; ++c) {
    const int64_t row = c < count ? known[c] : -1;
    used[c] = row >= 0;
    centers[c] = pool.features + (used[c] ? row : 0) * pool.width;
  }
  Farthest<T> mine = {-1, -1};
  for_rows<Width>(pool, centers, [&](int64_t row, T before, const T(&distances)[kTile<T>]) {
    T least = std::numeric_limits<T>::infinity();
#pragma unroll
    for (int c = 0; c < kTile<T>; ++c) least = used[c] && distances[c] < least ? distances[c] : least;
    const T nearest = shortened(pool, before, least, weight_of(pool, row));
    if (nearest != before) pool.nearest[row] = nearest;
    if (nearest > mine.distance) mine = {nearest, row};
  });
  mine = block_farthest(mine);
  if (threadIdx.x == 0) store_farthest(best + blockIdx.x, mine);
}

// Makes the farthest row of what `count` blocks left in `previous` the pick, and applies it.
template <class T, int Width>
__global__ void __launch_bounds__(kBlockThreads, kBlocksPerMultiprocessor)
    pick_farthest(const __grid_constant__ Pool<T> pool, const Farthest<T>* previous, int64_t count, int64_t* pick,
                  Farthest<T>* best) {
  Farthest<T> mine = {-1, -1};
  for (int64_t i = threadIdx.x; i < count; i += kBlockThreads) mine = farther(mine, load_farthest(previous + i));
  const int64_t picked = block_farthest(mine).row;
  if (blockIdx.x == 0 && threadIdx.x == 0) *pick = picked;
  // Where no row is left, none has a distance that could fall.
  const T* const centers[1] = {pool.features + (picked >= 0 ? picked : 0) * pool.width};
  mine = {-1, -1};
  for_rows<Width>(pool, centers, [&](int64_t row, T before, const T(&distances)[1]) {
    const T nearest = row == picked ? T(-1) : shortened(pool, before, distances[0], weight_of(pool, row));
    if (nearest != before) pool.nearest[row] = nearest;
    if (nearest > mine.distance) mine = {nearest, row};
  });
  mine = block_farthest(mine);
  if (threadIdx.x == 0) store_farthest(best + blockIdx.x, mine);
}

template <class T, int Width>
void launch(const Tensor& features, const Tensor& labeled, int64_t start, const T* weights, T least,
            const Tensor& picks) {
  const int32_t device = features.get_device_index();
  const cudaStream_t stream = current_stream(device);
  const int64_t rows = features.size(0), width = features.size(1);
  const int64_t known = labeled.numel() + (start >= 0);
  constexpr int64_t rows_per_block = kBlockThreads / (kSums<T> / Width) * kRowsAtOnce;
  const int64_t resident = multiprocessors_of(device) * kBlocksPerMultiprocessor;
  const int64_t wanted = divide_up(rows, rows_per_block);
  const int64_t blocks = wanted < resident ? wanted : resident;
  const unsigned grid = static_cast<unsigned>(blocks);
  const Tensor nearest = torch::stable::new_empty(features, {rows});
  const Tensor origin = torch::stable::new_zeros(features, {width});
  const Tensor centers = torch::stable::new_empty(features, {known}, ScalarType::Long);
  const Tensor room =
      torch::stable::new_empty(features, {2 * blocks * static_cast<int64_t>(sizeof(Farthest<T>))}, ScalarType::Byte);
  const Pool<T> pool = {static_cast<const T*>(features.data_ptr()), rows,    width,
                        static_cast<T*>(nearest.data_ptr()),        weights, least};
  auto* const list = static_cast<int64_t*>(centers.data_ptr());
  auto* const pick = static_cast<int64_t*>(picks.data_ptr());
  auto* best = static_cast<Farthest<T>*>(room.data_ptr());
  auto* previous = best + blocks;

  launch_kernel(find_finite<T, Width>, {grid, kBlockThreads}, stream, pool, static_cast<const T*>(origin.data_ptr()));
  launch_kernel(take_known<T>, {grid_for(divide_up(known, kBlockThreads)), kBlockThreads}, stream, pool,
                static_cast<const int64_t*>(labeled.data_ptr()), labeled.numel(), start, list, pick);
  for (int64_t i = 0; i < known; i += kTile<T>) {
    launch_kernel(apply_known<T, Width>, {grid, kBlockThreads}, stream, pool, list + i,
                  known - i < kTile<T> ? known - i : kTile<T>, best);
  }
  for (int64_t i = start >= 0 ? 1 : 0; i < picks.numel(); ++i) {
    std::swap(best, previous);
    launch_kernel(pick_farthest<T, Width>, {grid, kBlockThreads}, stream, pool, previous, blocks, pick + i, best);
  }
}

Tensor k_center_greedy(const Tensor& features, const Tensor& labeled, int64_t b, int64_t start,
                       std::optional<Tensor> weights, double least) {
  const torch::stable::accelerator::DeviceGuard guard(features.get_device_index());
  const auto run = [&](const Tensor& x, const Tensor& known, const auto* factors, auto limit, const Tensor& picks,
                       auto stored) {
    using T = decltype(stored);
    constexpr int width = 16 / sizeof(T);
    if (b == 0) return;
    const bool aligned = reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0 && x.size(1) % width == 0;
    if (aligned) {
      launch<T, width>(x, known, start, factors, limit, picks);
    } else {
      launch<T, 1>(x, known, start, factors, limit, picks);
    }
  };
  return prunefuse::k_center_greedy(features, labeled, b, start, weights, least, run);
}

}  // namespace
}  // namespace prunefuse::cuda

STABLE_TORCH_LIBRARY_IMPL(prunefuse, CUDA, m) {
  m.impl("k_center_greedy", TORCH_BOX(&prunefuse::cuda::k_center_greedy));
}
