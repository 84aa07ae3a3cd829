// Greedy k-center on CUDA without host synchronization, so that a call can be captured in a graph: labeled rows, kTile
// of them per read of the features, then picks.
//
// Where all features fit in shared memory (some 29 MB on an H200), one cooperative launch makes all picks. Each block
// has an equal share of the rows there, tells the others of its farthest, and hears of theirs, which is the pick: one
// way through L2, and another for the pick's features. With 50,000 x 64 a warp of sm_90 takes about 630 instructions a
// pick, and 8 of them 0.8 microseconds at 80 % of what a multiprocessor issues; an estimated 2 pass on those ways, at
// barriers, and in the first warp, which hears.
//
// Elsewhere every pick is a launch. It begins by reducing what every block of the launch before found (its farthest
// row): that is the pick. It then reads all features once, shortens each row's distance to its nearest center by the
// pick, and leaves each block's farthest row for the next launch. Bytes: N * d * size of the features and N * size of
// the distances read, and the distances that fell written; and 16 bytes per block, read by every block: at 528 blocks
// 4 MB from L2. An instruction to a byte keeps it bound by memory. At most 64 registers make 4 blocks of 256 threads
// resident on a multiprocessor; a thread issues 4 loads of 16 bytes (2 rows, 2 steps) before it waits for the first: 64
// KB per multiprocessor, where the latency of an H200's memory takes about 25. A row belongs to 4 lanes, which read it
// in pieces of 64 bytes, so every sector is used whole; the center comes from L1. Where rows do not start at 16-byte
// boundaries (d not a multiple of 4, for float32), 16 lanes read 4 bytes each, 8 times 2 under way. Labeled rows are
// bound by arithmetic: 16 sums per 3 loads.
//
// Distances are sums of squared differences in 16 partial sums (float64: 4), element j in sum j mod 16, folded by
// halves: bit for bit those of the CPU at its AVX-512 level (float64: also AVX2), whatever the layout. Other levels add
// up in another order: where two rows are equally far but for rounding, their picks may differ from these.
//
// Compiled for sm_80 and sm_90 (counted in benchmarks/results/sass.txt); not run on a GPU yet.
#include "../k_center.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>

#include "lanes.h"

namespace prunefuse::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kBlockThreads = 256;
constexpr int kBlocksPerMultiprocessor = 4;
constexpr int kRowsAtOnce = 2;  // rows that a thread has under way
constexpr int kResidentThreads = 256;
constexpr int kMostResidentBlocks = 256;
constexpr int64_t kStaticBytes = 1024;  // at most, of what a block has beside the rows
constexpr int kResidentRows = 6;        // the same, where rows are in shared memory
// Labeled rows per read of the features: what registers hold the sums of.
template <class T>
constexpr int kTile = sizeof(T) == sizeof(float) ? 8 : 4;

// A row and its squared distance to the nearest center; {-1, -1} is no row.
template <class T>
struct alignas(16) Farthest {
  T distance;
  int64_t row;
};

template <class Stored>
struct Pool {
  using T = accumulate_t<Stored>;

  const Stored* features;  // rows x width, contiguous
  int64_t rows;
  int64_t width;
  T* nearest;        // -1: not to be picked
  const T* weights;  // what a row's squared distances are multiplied by; null: 1
  T least;           // a row at a smaller squared distance, without its weight, is not to be picked
};

// What a row's distance to its nearest center becomes by one more center.
template <class Pool, class T>
__device__ T shortened(const Pool& pool, T nearest, T distance, T weight) {
  if (distance < pool.least) return -1;
  const T weighted = distance * weight;
  return weighted < nearest ? weighted : nearest;
}

template <class Stored>
__device__ accumulate_t<Stored> weight_of(const Pool<Stored>& pool, int64_t row) {
  return pool.weights ? pool.weights[row] : 1;
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

// The farthest of all lanes', in every lane.
template <class T>
__device__ Farthest<T> warp_farthest(Farthest<T> mine) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    Farthest<T> other;
    other.distance = __shfl_xor_sync(0xffffffffu, mine.distance, mask);
    other.row = __shfl_xor_sync(0xffffffffu, static_cast<long long>(mine.row), mask);
    mine = farther(mine, other);
  }
  return mine;
}

// Leaves the farthest of each warp in shared memory, where all threads then find them.
template <int Threads, class T>
__device__ const Farthest<T>* farthest_of_warps(Farthest<T> mine) {
  __shared__ Farthest<T> warps[Threads / kWarp];
  mine = warp_farthest(mine);
  __syncthreads();  // all have read what an earlier call left
  if (threadIdx.x % kWarp == 0) store_farthest(warps + threadIdx.x / kWarp, mine);
  __syncthreads();
  return warps;
}

// The farthest of all threads', in every thread of the block.
template <class T>
__device__ Farthest<T> block_farthest(Farthest<T> mine) {
  const Farthest<T>* const warps = farthest_of_warps<kBlockThreads>(mine);
  for (int warp = 0; warp < kBlockThreads / kWarp; ++warp) mine = farther(mine, load_farthest(warps + warp));
  return mine;
}

// Partial sums of a distance. `Width` of them lie in each of the lanes that share a row, so that lane l of them takes
// elements Width * l, ..., Width * l + Width - 1 of every kSums.
template <class T>
constexpr int kSums = sizeof(T) == sizeof(float) ? 16 : 4;

// Neighboring values of a row, as they are stored, from global or shared memory.
template <class Stored, int Width>
struct alignas(sizeof(Stored) * Width) Piece {
  Stored values[Width];
};

template <int Width, bool Shared, class Stored>
__device__ Piece<Stored, Width> load_piece(const Stored* from) {
  Piece<Stored, Width> piece;
  if constexpr (Shared) {
    piece = *reinterpret_cast<const Piece<Stored, Width>*>(from);
  } else if constexpr (Width * sizeof(Stored) == 16) {
    const uint4 raw = __ldg(reinterpret_cast<const uint4*>(from));
    memcpy(&piece, &raw, sizeof(raw));
  } else if constexpr (Width * sizeof(Stored) == 8) {
    const auto raw = __ldg(reinterpret_cast<const unsigned long long*>(from));
    memcpy(&piece, &raw, sizeof(raw));
  } else if constexpr (sizeof(Stored) == 2) {
    const auto raw = __ldg(reinterpret_cast<const uint16_t*>(from));
    memcpy(&piece, &raw, sizeof(raw));
  } else {
    piece.values[0] = __ldg(from);
  }
  return piece;
}

// out[c][r] = |centers[c] - rows[r]|^2, in every lane of those that share the rows. The
// loads of so many `Steps` are issued before any of them is waited for.
template <int Width, int Steps, bool Shared, int Centers, int Rows, class Stored, class Index, class T>
__device__ void squared_distances(const Stored* const (&centers)[Centers], const Stored* const (&rows)[Rows],
                                  Index width, int lane, T (&out)[Centers][Rows]) {
  constexpr int lanes = kSums<T> / Width;
  T sums[Centers][Rows][Width] = {};
  const auto add = [&](const Piece<Stored, Width>(&x)[Rows], Index j) {
#pragma unroll
    for (int c = 0; c < Centers; ++c) {
      const auto center = load_piece<Width, Shared>(centers[c] + j);
#pragma unroll
      for (int r = 0; r < Rows; ++r) {
#pragma unroll
        for (int i = 0; i < Width; ++i) {
          const T difference = widen(x[r].values[i]) - widen(center.values[i]);
          sums[c][r][i] = fma(difference, difference, sums[c][r][i]);
        }
      }
    }
  };
  Index j = lane * Width;
#pragma unroll 1
  for (; j + (Steps - 1) * kSums<T> < width; j += Steps * kSums<T>) {
    Piece<Stored, Width> x[Steps][Rows];
#pragma unroll
    for (int step = 0; step < Steps; ++step) {
#pragma unroll
      for (int r = 0; r < Rows; ++r) x[step][r] = load_piece<Width, Shared>(rows[r] + j + step * kSums<T>);
    }
#pragma unroll
    for (int step = 0; step < Steps; ++step) add(x[step], j + step * kSums<T>);
  }
#pragma unroll 1
  for (; Steps > 1 && j < width; j += kSums<T>) {
    Piece<Stored, Width> x[Rows];
#pragma unroll
    for (int r = 0; r < Rows; ++r) x[r] = load_piece<Width, Shared>(rows[r] + j);
    add(x, j);
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

// Pieces of a row that a lane has under way: 32 bytes, or 8 single values.
template <class Stored, int Width, int Centers>
constexpr int kSteps = Centers > 1  ? 1
                       : Width == 1 ? 8
                                    : 32 / (Width * static_cast<int>(sizeof(Stored)));

// Calls body(row, its distance so far, distances to all centers) for every row, in one lane of those that share it and
// in rising order there. Every lane of a warp takes part in every round's shuffles; rows past the end are read as the
// last one.
template <int Width, int Centers, class Stored, class Body>
__device__ void for_rows(const Pool<Stored>& pool, const Stored* const (&centers)[Centers], const Body& body) {
  using T = accumulate_t<Stored>;
  constexpr int lanes = kSums<T> / Width;
  constexpr int groups = kBlockThreads / lanes;
  constexpr int64_t step = groups * kRowsAtOnce;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const int64_t group = threadIdx.x / lanes;
  for (int64_t first = blockIdx.x * step; first < pool.rows; first += gridDim.x * step) {
    const Stored* rows[kRowsAtOnce];
    T before[kRowsAtOnce];
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
      const int64_t row = first + r * groups + group;
      rows[r] = pool.features + (row < pool.rows ? row : pool.rows - 1) * pool.width;
      before[r] = lane == 0 && row < pool.rows ? pool.nearest[row] : T(-1);
    }
    T distances[Centers][kRowsAtOnce];
    squared_distances<Width, kSteps<Stored, Width, Centers>, false>(centers, rows, pool.width, lane, distances);
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
template <class Stored, int Width>
__global__ void __launch_bounds__(kBlockThreads, kBlocksPerMultiprocessor)
    find_finite(const __grid_constant__ Pool<Stored> pool, const Stored* origin) {
  using T = accumulate_t<Stored>;
  const Stored* const centers[1] = {origin};
  for_rows<Width>(pool, centers, [&](int64_t row, T, const T(&distances)[1]) {
    constexpr T largest = std::numeric_limits<T>::max();
    const T weight = weight_of(pool, row);
    const bool finite = distances[0] <= largest && weight >= 0 && weight <= largest;
    pool.nearest[row] = finite ? std::numeric_limits<T>::infinity() : T(-1);
  });
}

// Takes the labeled rows and `start` (unless -1) out of the pool. centers[i] is the row, or -1 where it is no center:
// not finite, out of range, or a repetition (of which one is kept at least).
template <class Stored>
__global__ void __launch_bounds__(kBlockThreads)
    take_known(const __grid_constant__ Pool<Stored> pool, const int64_t* labeled, int64_t labeled_count, int64_t start,
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
template <class Stored, int Width>
__global__ void __launch_bounds__(kBlockThreads, 2)
    apply_known(const __grid_constant__ Pool<Stored> pool, const int64_t* known, int64_t count,
                Farthest<accumulate_t<Stored>>* best) {
  using T = accumulate_t<Stored>;
  // What is missing is read as row 0 and not used.
  const Stored* centers[kTile<T>];
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
template <class Stored, int Width>
__global__ void __launch_bounds__(kBlockThreads, kBlocksPerMultiprocessor)
    pick_farthest(const __grid_constant__ Pool<Stored> pool, const Farthest<accumulate_t<Stored>>* previous,
                  int64_t count, int64_t* pick, Farthest<accumulate_t<Stored>>* best) {
  using T = accumulate_t<Stored>;
  Farthest<T> mine = {-1, -1};
  for (int64_t i = threadIdx.x; i < count; i += kBlockThreads) mine = farther(mine, load_farthest(previous + i));
  const int64_t picked = block_farthest(mine).row;
  if (blockIdx.x == 0 && threadIdx.x == 0) *pick = picked;
  // Where no row is left, none has a distance that could fall.
  const Stored* const centers[1] = {pool.features + (picked >= 0 ? picked : 0) * pool.width};
  mine = {-1, -1};
  for_rows<Width>(pool, centers, [&](int64_t row, T before, const T(&distances)[1]) {
    const T nearest = row == picked ? T(-1) : shortened(pool, before, distances[0], weight_of(pool, row));
    if (nearest != before) pool.nearest[row] = nearest;
    if (nearest > mine.distance) mine = {nearest, row};
  });
  mine = block_farthest(mine);
  if (threadIdx.x == 0) store_farthest(best + blockIdx.x, mine);
}

// What a block says of its farthest row, in words that are written and read whole: a half of the distance, and the row
// from 1 on (0: none), each beside the number of the pick, by which others see that it has come. No fence is needed, as
// nothing else that one block writes is read by another; and two of them for each block suffice, as one that says
// something of a pick has read all that was said of the pick before.
template <class T>
struct Said {
  static constexpr int kHalves = sizeof(T) / 4, kRowBits = 40;

  volatile unsigned long long distance[kHalves], row;
  unsigned long long unused[kHalves == 1 ? 2 : 1];
};

template <class T>
__device__ void say(Said<T>* to, Farthest<T> farthest, uint32_t number) {
  uint32_t halves[Said<T>::kHalves];
  memcpy(halves, &farthest.distance, sizeof(T));
#pragma unroll
  for (int i = 0; i < Said<T>::kHalves; ++i)
    to->distance[i] = static_cast<unsigned long long>(number) << 32 | halves[i];
  to->row = static_cast<unsigned long long>(number) << Said<T>::kRowBits | static_cast<uint64_t>(farthest.row + 1);
}

// The farthest of what all blocks say of a pick, in every lane of a warp. A lane asks for all that it has to hear at
// once.
template <class T>
__device__ Farthest<T> hear(const Said<T>* said, int64_t blocks, uint32_t number) {
  constexpr int each = kMostResidentBlocks / kWarp, halves = Said<T>::kHalves, row_bits = Said<T>::kRowBits;
  unsigned long long distances[each][halves], rows[each];
  const int64_t lane = threadIdx.x % kWarp;
  for (bool missing = true; missing;) {
    missing = false;
#pragma unroll
    for (int k = 0; k < each; ++k) {
      const int64_t other = lane + k * kWarp;
      const Said<T>* const from = said + (other < blocks ? other : 0);
#pragma unroll
      for (int i = 0; i < halves; ++i) distances[k][i] = from->distance[i];
      rows[k] = from->row;
    }
#pragma unroll
    for (int k = 0; k < each; ++k) {
#pragma unroll
      for (int i = 0; i < halves; ++i) missing = missing || distances[k][i] >> 32 != number;
      missing = missing || rows[k] >> row_bits != (number & (~0ull >> row_bits));
    }
    if (missing) __nanosleep(0);
  }
  Farthest<T> best = {-1, -1};
#pragma unroll
  for (int k = 0; k < each; ++k) {
    if (k * kWarp >= blocks) break;
    uint32_t parts[halves];
#pragma unroll
    for (int i = 0; i < halves; ++i) parts[i] = static_cast<uint32_t>(distances[k][i]);
    Farthest<T> one;
    memcpy(&one.distance, parts, sizeof(T));
    one.row = static_cast<int64_t>(rows[k] & ((1ull << row_bits) - 1)) - 1;
    best = farther(best, one);
  }
  return warp_farthest(best);
}

// Where the rows of a block lie in shared memory, widened, filled up with zeros to whole turns of the partial sums, an
// odd number of them, so that the rows that a warp reads together are in different banks. Behind them are distances and
// weights, and the center. In front, each block has as many rows as the others, but for one.
struct Residence {
  int64_t share, rest;  // rows of each block, and how many blocks have one more
  int64_t width;        // with the zeros
  int64_t filled;       // without those that only keep rows in different banks
};

// Makes so many picks, all rows being in shared memory: one block on each multiprocessor, which wait for each other.
template <class Stored>
__global__ void __launch_bounds__(kResidentThreads, 1)
    pick_resident(const __grid_constant__ Pool<Stored> pool, const __grid_constant__ Residence residence,
                  int64_t* picks, int64_t count, Said<accumulate_t<Stored>>* said) {
  using T = accumulate_t<Stored>;
  constexpr int width = 16 / sizeof(T), lanes = kSums<T> / width, groups = kResidentThreads / lanes;
  const int64_t block = blockIdx.x, blocks = gridDim.x;
  const int64_t begin = block * residence.share + (block < residence.rest ? block : residence.rest);
  const int here = static_cast<int>(residence.share + (block < residence.rest));
  const int wide = static_cast<int>(residence.width), filled = static_cast<int>(residence.filled);
  const int thread = static_cast<int>(threadIdx.x);
  T* const features = dynamic_shared<T>();
  T* const center = features + int64_t{here} * wide;
  T* const nearest = center + wide;
  T* const weights = nearest + here;
  for (int row = thread / kWarp; row < here; row += kResidentThreads / kWarp) {
    for (int j = thread % kWarp; j < wide; j += kWarp) {
      features[row * wide + j] = j < pool.width ? widen(pool.features[(begin + row) * pool.width + j]) : T(0);
    }
  }
  for (int j = thread; j < wide; j += kResidentThreads) center[j] = 0;
  for (int row = thread; row < here; row += kResidentThreads) {
    nearest[row] = pool.nearest[begin + row];
    if (pool.weights != nullptr) weights[row] = pool.weights[begin + row];
  }
  __syncthreads();

  __shared__ int64_t picked;
  T farthest = -1;  // of this thread's rows, and its place in the block
  int place = -1;
  for (int row = thread; row < here; row += kResidentThreads) {
    if (nearest[row] > farthest) place = row;
    farthest = nearest[row] > farthest ? nearest[row] : farthest;
  }
  const int lane = thread % lanes, group = thread / lanes;
  for (int64_t i = 0; i < count; ++i) {
    const Farthest<T>* const warps =
        farthest_of_warps<kResidentThreads, T>({farthest, place >= 0 ? begin + place : -1});
    if (thread < kWarp) {  // the block's, then all blocks'
      Farthest<T> best = warp_farthest(load_farthest(warps + thread % (kResidentThreads / kWarp)));
      const auto number = static_cast<uint32_t>(i + 1);
      Said<T>* const of_pick = said + (i % 2) * blocks;
      if (thread == 0) say(of_pick + block, best, number);
      best = hear(of_pick, blocks, number);
      if (thread == 0) picked = best.row;
      if (block == 0 && thread == 0) picks[i] = best.row;
    }
    __syncthreads();
    // Where no row is left, none has a distance that could fall.
    const int64_t from = picked >= 0 ? picked : 0, there = picked - begin;
    const int picked_here = there >= 0 && there < here ? static_cast<int>(there) : -1;
    for (int j = thread; j < pool.width; j += kResidentThreads) {
      center[j] = widen(pool.features[from * pool.width + j]);
    }
    __syncthreads();
    farthest = -1;
    place = -1;
    for (int first = group; first - group < here; first += groups * kResidentRows) {
      const T* rows[kResidentRows];
#pragma unroll
      for (int r = 0; r < kResidentRows; ++r) {
        const int row = first + r * groups;
        rows[r] = features + (row < here ? row : here - 1) * wide;
      }
      const T* const centers[1] = {center};
      T distances[1][kResidentRows];
      squared_distances<width, 2, true>(centers, rows, filled, lane, distances);
      // All lanes that share rows know all of their distances: each takes the next of the rows on.
#pragma unroll
      for (int taken = 0; taken < kResidentRows; taken += lanes) {
        T distance = distances[0][taken];
#pragma unroll
        for (int r = 1; r < lanes && taken + r < kResidentRows; ++r) {
          distance = lane == r ? distances[0][taken + r] : distance;
        }
        const int row = first + (taken + lane) * groups;
        if (taken + lane >= kResidentRows || row >= here) continue;
        const T weight = pool.weights != nullptr ? weights[row] : 1;
        const T now = row == picked_here ? T(-1) : shortened(pool, nearest[row], distance, weight);
        nearest[row] = now;
        if (now > farthest) {
          farthest = now;
          place = row;
        }
      }
    }
  }
}

// The pool's features in shared memory, or nothing where they do not fit there. The bytes are of the block with the
// most.
template <class Stored>
std::optional<Residence> residence_of(const Pool<Stored>& pool, int64_t blocks, int64_t room, size_t& bytes) {
  using T = accumulate_t<Stored>;
  constexpr int64_t sums = kSums<T>;
  const int64_t filled = divide_up(pool.width, sums) * sums;
  Residence residence = {pool.rows / blocks, pool.rows % blocks, filled, filled};
  if (residence.width / sums % 2 == 0) residence.width += sums;
  const int64_t most = divide_up(pool.rows, blocks);
  const int64_t numbers = (most + 1) * residence.width + most * (pool.weights != nullptr ? 2 : 1);
  bytes = static_cast<size_t>(numbers) * sizeof(T);
  const bool fits = most <= room && residence.width <= room && numbers * int64_t{sizeof(T)} <= room;
  return fits && blocks <= kMostResidentBlocks ? std::optional(residence) : std::nullopt;
}

template <class Stored, int Width>
void launch(const Tensor& features, const Tensor& labeled, int64_t start, const accumulate_t<Stored>* weights,
            accumulate_t<Stored> least, const Tensor& picks) {
  using T = accumulate_t<Stored>;
  const int32_t device = features.get_device_index();
  const cudaStream_t stream = current_stream(device);
  const int64_t rows = features.size(0), width = features.size(1);
  const int64_t known = labeled.numel() + (start >= 0);
  constexpr int64_t rows_per_block = kBlockThreads / (kSums<T> / Width) * kRowsAtOnce;
  const int64_t multiprocessors = multiprocessors_of(device);
  const int64_t wanted = divide_up(rows, rows_per_block);
  const int64_t blocks = std::min(wanted, multiprocessors * kBlocksPerMultiprocessor);
  const unsigned grid = static_cast<unsigned>(blocks);
  const auto room_for = [&](int64_t count, size_t size) {
    return torch::stable::new_empty(features, {count * static_cast<int64_t>(size)}, ScalarType::Byte);
  };
  const Tensor nearest = room_for(rows, sizeof(T));
  const Tensor origin = torch::stable::new_zeros(features, {width});
  const Tensor centers = torch::stable::new_empty(features, {known}, ScalarType::Long);
  const Tensor room = room_for(2 * blocks, sizeof(Farthest<T>));
  const Tensor said = room_for(2 * multiprocessors, sizeof(Said<T>));
  const Pool<Stored> pool = {static_cast<const Stored*>(features.data_ptr()),
                             rows,
                             width,
                             static_cast<T*>(nearest.data_ptr()),
                             weights,
                             least};
  auto* const list = static_cast<int64_t*>(centers.data_ptr());
  auto* const pick = static_cast<int64_t*>(picks.data_ptr());
  auto* best = static_cast<Farthest<T>*>(room.data_ptr());
  auto* previous = best + blocks;

  launch_kernel(find_finite<Stored, Width>, {grid, kBlockThreads}, stream, pool,
                static_cast<const Stored*>(origin.data_ptr()));
  launch_kernel(take_known<Stored>, {grid_for(divide_up(known, kBlockThreads)), kBlockThreads}, stream, pool,
                static_cast<const int64_t*>(labeled.data_ptr()), labeled.numel(), start, list, pick);
  for (int64_t i = 0; i < known; i += kTile<T>) {
    launch_kernel(apply_known<Stored, Width>, {grid, kBlockThreads}, stream, pool, list + i,
                  known - i < kTile<T> ? known - i : kTile<T>, best);
  }
  const int64_t first = start >= 0 ? 1 : 0;
  size_t bytes = 0;
  const auto residence =
      residence_of(pool, std::min(multiprocessors, rows), shared_bytes_of(device) - kStaticBytes, bytes);
  if (residence && first < picks.numel()) {
    check_cuda(cudaMemsetAsync(said.data_ptr(), 0, static_cast<size_t>(said.numel()), stream));
    const Shape shape = {static_cast<unsigned>(std::min(multiprocessors, rows)), kResidentThreads, bytes, true};
    launch_kernel(pick_resident<Stored>, shape, stream, pool, *residence, pick + first, picks.numel() - first,
                  static_cast<Said<T>*>(said.data_ptr()));
    return;
  }
  for (int64_t i = first; i < picks.numel(); ++i) {
    std::swap(best, previous);
    launch_kernel(pick_farthest<Stored, Width>, {grid, kBlockThreads}, stream, pool, previous, blocks, pick + i, best);
  }
}

Tensor k_center_greedy(const Tensor& features, const Tensor& labeled, int64_t b, int64_t start,
                       std::optional<Tensor> weights, double least) {
  const torch::stable::accelerator::DeviceGuard guard(features.get_device_index());
  const auto run = [&](const Tensor& x, const Tensor& known, const auto* factors, auto limit, const Tensor& picks,
                       auto stored) {
    using Stored = decltype(stored);
    constexpr int width = 16 / sizeof(accumulate_t<Stored>);
    constexpr int piece = width * sizeof(Stored);
    if (b == 0) return;
    const bool aligned = reinterpret_cast<uintptr_t>(x.data_ptr()) % piece == 0 && x.size(1) % width == 0;
    if (aligned) {
      launch<Stored, width>(x, known, start, factors, limit, picks);
    } else {
      launch<Stored, 1>(x, known, start, factors, limit, picks);
    }
  };
  return prunefuse::k_center_greedy(features, labeled, b, start, weights, least, run);
}

}  // namespace
}  // namespace prunefuse::cuda

STABLE_TORCH_LIBRARY_IMPL(prunefuse, CUDA, m) {
  m.impl("k_center_greedy", TORCH_BOX(&prunefuse::cuda::k_center_greedy));
}
