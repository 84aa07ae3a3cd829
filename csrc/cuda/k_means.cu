// k-means++ over outer products on CUDA: one launch per pick, no host synchronization, so that a call can be captured
// in a graph.
//
// Every block owns a span of neighboring rows and leaves the sum of their distances to the nearest pick. A launch
// begins by adding up what the blocks of the launch before left: that says in which block's span the draw falls, and
// one look at the distances of that span, in which row. All blocks do this alike. They then read all rows once, shorten
// the distances by the pick, and leave the sums for the next launch. Distances are kept twice, read from one place and
// written to the other, since other blocks may still look at the span that the draw fell into.
//
// Bytes per pick: N * (C + d) * size of the factors, 16 N of the distances. To find the draw every block reads 16 bytes
// per block and 8 per row of a span, from L2: at 528 blocks (an H100) and N = 50,000, 4 MB, against 15 MB of factors
// for C = 10, d = 64.
//
// Occupancy: 256 threads and at most 64 registers make 4 blocks resident on a multiprocessor. A row belongs to 8 lanes,
// which read it in pieces of 32 bytes (float64: 64), so every sector is used whole; the pick comes from L1. 6
// operations per 4 bytes keep a pick bound by memory.
//
// Sums are in an order that depends on the device (how many blocks it holds), so a draw that falls between two rows but
// for rounding may fall on the other elsewhere. On one device results are the same in every run.
//
// Not run on a GPU yet.
#include "../k_means.h"

#include <torch/csrc/stable/library.h>

#include "../math/k_means.h"
#include "lanes.h"

namespace prunefuse::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kBlockThreads = 256;
constexpr int kBlocksPerMultiprocessor = 4;
constexpr int kLanes = 8;  // that share a row
constexpr int kGroups = kBlockThreads / kLanes;
constexpr int kWarps = kBlockThreads / kWarp;

template <class T>
struct OuterRows {
  const T* residuals;  // rows x classes, contiguous
  int64_t classes;
  const T* features;  // rows x width, contiguous
  int64_t width;
  int64_t rows;
  const double* weights;  // null: 1 each
};

// By which a row is drawn, by its distance to the nearest pick: before there is one, by its own weight alone.
__device__ inline double weight_of(double nearest, const double* weights, int64_t row) {
  if (!(nearest > 0)) return 0;
  if (!weights) return nearest;
  return nearest == std::numeric_limits<double>::infinity() ? weights[row] : nearest * weights[row];
}

// Of the rows of a block: at first the largest norm and its row, then the sum of distances and how many can be picked.
struct alignas(16) Share {
  double weight;
  int64_t rows;
};

template <class T>
__device__ T group_sum(T value) {
#pragma unroll
  for (int mask = kLanes / 2; mask > 0; mask /= 2) value += __shfl_xor_sync(0xffffffffu, value, mask);
  return value;
}

// All threads' merged, in every thread of the block; in an order that is fixed.
template <class Merge>
__device__ Share block_merge(Share mine, const Merge& merge) {
  __shared__ Share warps[kWarps];
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    Share other;
    other.weight = __shfl_xor_sync(0xffffffffu, mine.weight, mask);
    other.rows = __shfl_xor_sync(0xffffffffu, static_cast<long long>(mine.rows), mask);
    mine = merge(mine, other);
  }
  __syncthreads();  // all have read what an earlier call left
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = mine;
  __syncthreads();
  mine = warps[0];
  for (int warp = 1; warp < kWarps; ++warp) mine = merge(mine, warps[warp]);
  return mine;
}

__device__ inline Share larger(Share a, Share b) {
  const bool second = b.weight > a.weight || (b.weight == a.weight && b.rows < a.rows);
  return second ? b : a;
}

__device__ inline Share added(Share a, Share b) { return {a.weight + b.weight, a.rows + b.rows}; }

// Calls body(row, valid) for the block's span, in all lanes of those that share a row. All lanes of a warp take part in
// every round; rows past the end are read as the last one and not valid.
template <class Body>
__device__ void for_span(int64_t rows, const Body& body) {
  const int64_t span = divide_up(rows, gridDim.x);
  const int64_t begin = blockIdx.x * span;
  const int64_t end = begin + span < rows ? begin + span : rows;
  for (int64_t first = begin; first < end; first += kGroups) {
    const int64_t row = first + threadIdx.x / kLanes;
    body(row < end ? row : end - 1, row < end);
  }
}

// Of x - c: its square, and its product with c or with x; in every lane. Also |x|^2 and |c|^2.
template <bool WithCenter, class T>
__device__ void differences(const T* x, const T* center, int64_t width, T& squares, T& products, T& of_x,
                            T& of_center) {
  T sums[4] = {};
#pragma unroll 4
  for (int64_t j = threadIdx.x % kLanes; j < width; j += kLanes) {
    const T value = __ldg(x + j), from = __ldg(center + j);
    const T difference = value - from;
    sums[0] = fma(difference, difference, sums[0]);
    sums[1] = fma(difference, WithCenter ? from : value, sums[1]);
    sums[2] = fma(value, value, sums[2]);
    sums[3] = fma(from, from, sums[3]);
  }
  squares = group_sum(sums[0]);
  products = group_sum(sums[1]);
  of_x = group_sum(sums[2]);
  of_center = group_sum(sums[3]);
}

// Leaves out rows without a usable norm or weight (nearest is -1; else infinite), and finds each block's largest
// embedding; where rows have weights, their sum.
template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    outer_norms(const __grid_constant__ OuterRows<T> pool, double* nearest, Share* found) {
  const bool weighted = pool.weights != nullptr;
  Share mine = weighted ? Share{0, 0} : Share{-1, -1};
  for_span(pool.rows, [&](int64_t row, bool valid) {
    const T* const r = pool.residuals + row * pool.classes;
    const T* const h = pool.features + row * pool.width;
    T unused[2], rr, hh;
    differences<true>(r, r, pool.classes, unused[0], unused[1], rr, unused[1]);
    differences<true>(h, h, pool.width, unused[0], unused[1], hh, unused[1]);
    if (!valid || threadIdx.x % kLanes > 0) return;
    const double weight = weighted ? pool.weights[row] : 1;
    const bool usable =
        rr < kLargestSquare<T> && hh < kLargestSquare<T> && weight >= 0 && weight <= std::numeric_limits<double>::max();
    nearest[row] = usable ? std::numeric_limits<double>::infinity() : -1;
    if (!usable) return;
    mine = weighted ? added(mine, {weight, 1}) : larger(mine, {static_cast<double>(rr) * static_cast<double>(hh), row});
  });
  mine = weighted ? block_merge(mine, added) : block_merge(mine, larger);
  if (threadIdx.x == 0) found[blockIdx.x] = mine;
}

struct Found {
  int64_t index;  // -1: all weights are 0
  double rest;    // of the target, behind what lies before
};

// The first of `count` weights at which their sum, in order, exceeds target_of(total); where rounding has brought one
// to the other, the last that is not 0. In every thread of the block.
template <class Weight, class Target>
__device__ Found find_draw(int64_t count, const Weight& weight, const Target& target_of) {
  __shared__ double sums[kBlockThreads];
  __shared__ int chosen;
  __shared__ Found found;
  const int thread = static_cast<int>(threadIdx.x);
  // A thread has a piece of neighboring weights.
  const int64_t piece = divide_up(count, kBlockThreads);
  const int64_t begin = thread * piece < count ? thread * piece : count;
  const int64_t end = begin + piece < count ? begin + piece : count;
  double mine = 0;
  for (int64_t i = begin; i < end; ++i) mine += weight(i);
  __syncthreads();  // all have read what an earlier call left
  sums[thread] = mine;
  if (thread == 0) {
    chosen = 0;
    found = {-1, 0};
  }
  for (int step = 1; step < kBlockThreads; step *= 2) {
    __syncthreads();
    const double before = thread >= step ? sums[thread - step] : 0;
    __syncthreads();
    sums[thread] += before;
  }
  __syncthreads();
  // Sums of differing orders need not rise where a weight is small: the first piece with a sum beyond the target is it.
  // As a number that is larger for earlier ones; below those the numbers of the pieces, larger for later ones.
  const double target = target_of(sums[kBlockThreads - 1]);
  if (mine > 0) atomicMax(&chosen, sums[thread] > target ? 2 * kBlockThreads - thread : 1 + thread);
  __syncthreads();
  if (thread == (chosen > kBlockThreads ? 2 * kBlockThreads - chosen : chosen - 1)) {
    double sum = thread > 0 ? sums[thread - 1] : 0;
    for (int64_t i = begin; i < end; ++i) {
      const double own = weight(i);
      if (!(own > 0)) continue;
      found = {i, target - sum};
      sum += own;
      if (sum > target) break;
    }
  }
  __syncthreads();
  return found;
}

// The row that a number in [0, 1) falls on; -1 where none is left.
__device__ inline int64_t draw_row(const double* nearest, const double* weights, int64_t rows, const Share* shares,
                                   double number) {
  const int64_t blocks = gridDim.x;  // as in the launch before
  const auto part_of = [&](double total) { return number * total; };
  Found found = find_draw(blocks, [&](int64_t i) { return shares[i].weight; }, part_of);
  const bool alike = found.index < 0;  // all that are left coincide with picks
  if (alike) found = find_draw(blocks, [&](int64_t i) { return static_cast<double>(shares[i].rows); }, part_of);
  if (found.index < 0) return -1;
  const int64_t span = divide_up(rows, blocks);
  const int64_t begin = found.index * span;
  const auto weight = [&](int64_t i) {
    const double distance = nearest[begin + i];
    return alike ? (distance >= 0 ? 1.0 : 0.0) : weight_of(distance, weights, begin + i);
  };
  const double rest = found.rest;
  const int64_t count = begin + span < rows ? span : rows - begin;
  found = find_draw(count, weight, [&](double) { return rest; });
  return begin + found.index;
}

// Makes a row the pick: the First without weights is the one with the largest embedding of what the blocks of the
// launch before left, others are those that *draw falls on. Applies it to the distances `before`, giving `after`.
template <class T, bool First>
__global__ void __launch_bounds__(kBlockThreads, kBlocksPerMultiprocessor)
    pick_row(const __grid_constant__ OuterRows<T> pool, const double* before, double* after, const Share* previous,
             const double* draw, int64_t* pick, Share* left) {
  int64_t picked;
  if constexpr (First) {
    Share mine = {-1, -1};
    for (int64_t i = threadIdx.x; i < gridDim.x; i += kBlockThreads) mine = larger(mine, previous[i]);
    picked = block_merge(mine, larger).rows;
  } else {
    picked = draw_row(before, pool.weights, pool.rows, previous, *draw);
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) *pick = picked;
  // Where no row is left, none has a distance that could fall.
  const int64_t center = picked >= 0 ? picked : 0;
  const T* const s = pool.residuals + center * pool.classes;
  const T* const g = pool.features + center * pool.width;
  Share mine = {0, 0};
  for_span(pool.rows, [&](int64_t row, bool valid) {
    OuterSums<T> sums;
    T ss, hh, unused;
    differences<true>(pool.residuals + row * pool.classes, s, pool.classes, sums.ee, sums.es, unused, ss);
    differences<false>(pool.features + row * pool.width, g, pool.width, sums.ff, sums.fh, hh, unused);
    if (!valid || threadIdx.x % kLanes > 0) return;
    const double known = before[row];
    double nearest = known;
    if (row == picked) {
      nearest = -1;
    } else if (known > 0) {
      const double distance = outer_distance(sums, static_cast<double>(hh), static_cast<double>(ss));
      nearest = distance < known ? distance : known;
    }
    after[row] = nearest;
    if (nearest >= 0) mine = added(mine, {weight_of(nearest, pool.weights, row), 1});
  });
  mine = block_merge(mine, added);
  if (threadIdx.x == 0) left[blockIdx.x] = mine;
}

template <class T>
void launch(const Tensor& residuals, const Tensor& features, const Tensor& draws, const double* weights,
            const Tensor& picks) {
  const int32_t device = features.get_device_index();
  const cudaStream_t stream = current_stream(device);
  const int64_t rows = features.size(0);
  const int64_t resident = multiprocessors_of(device) * kBlocksPerMultiprocessor;
  const int64_t wanted = divide_up(rows, kGroups);
  const int64_t blocks = wanted < resident ? wanted : resident;
  const Shape grid = {static_cast<unsigned>(blocks), kBlockThreads};
  const Tensor distances = torch::stable::new_empty(features, {2 * rows}, ScalarType::Double);
  const Tensor room =
      torch::stable::new_empty(features, {2 * blocks * static_cast<int64_t>(sizeof(Share))}, ScalarType::Byte);
  const OuterRows<T> pool = {static_cast<const T*>(residuals.data_ptr()),
                             residuals.size(1),
                             static_cast<const T*>(features.data_ptr()),
                             features.size(1),
                             rows,
                             weights};
  const auto* const numbers = static_cast<const double*>(draws.data_ptr());
  auto* const pick = static_cast<int64_t*>(picks.data_ptr());
  auto* after = static_cast<double*>(distances.data_ptr());
  auto* before = after + rows;
  auto* left = static_cast<Share*>(room.data_ptr());
  auto* previous = left + blocks;

  launch_kernel(outer_norms<T>, grid, stream, pool, after, left);
  for (int64_t i = 0; i < picks.numel(); ++i) {
    std::swap(after, before);
    std::swap(left, previous);
    const auto kernel = i == 0 && !weights ? pick_row<T, true> : pick_row<T, false>;
    launch_kernel(kernel, grid, stream, pool, before, after, previous, numbers + i, pick + i, left);
  }
}

Tensor k_means_plus_plus(const Tensor& residuals, const Tensor& features, const Tensor& draws,
                         std::optional<Tensor> weights) {
  const torch::stable::accelerator::DeviceGuard guard(features.get_device_index());
  const auto run = [](const Tensor& r, const Tensor& h, const Tensor& u, const double* factors, const Tensor& picks,
                      auto stored) { launch<decltype(stored)>(r, h, u, factors, picks); };
  return prunefuse::k_means_plus_plus(residuals, features, draws, weights, run);
}

}  // namespace
}  // namespace prunefuse::cuda

STABLE_TORCH_LIBRARY_IMPL(prunefuse, CUDA, m) {
  m.impl("k_means_plus_plus", TORCH_BOX(&prunefuse::cuda::k_means_plus_plus));
}
