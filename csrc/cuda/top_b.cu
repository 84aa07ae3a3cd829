// The b best utilities on CUDA: of many rows, those that a sample says about twice b reach are set aside in one read of
// all (N * size bytes, and a few for each that is set aside). Among these the b-th largest key is found, 11 bits at a
// time, and the b best are brought together in the order of their rows: all above that key, and of those equal to it
// the first. A stable radix sort of these b puts them in order, so that ties keep the lower row first. Where the sample
// has misled, fewer than b were set aside, the same is done with all rows: a read for every 11 bits of a key, and two.
// Where b is no small part of the rows, or there are few, all are sorted.
//
// Nothing is read back, so the stream never waits, and no result depends on which block comes first: every warp has
// rows of its own, and a place of its own for what it sets aside. While setting aside, a value takes about 13
// instructions of sm_90, and 27 more in a warp of which one is set aside. A thread has 8 loads under way, 32 KB to a
// multiprocessor (float32) at 4 blocks of 256 threads. Rows are 32-bit numbers in the sort, which is tuned by CUB.
// Not run on a GPU yet.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cub/device/device_radix_sort.cuh>
#include <tuple>
#include <vector>

#include "../dispatch.h"
#include "../math/order.h"
#include "lanes.h"

namespace prunefuse::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kBlockThreads = 256;
constexpr int kBlockWarps = kBlockThreads / kWarp;
constexpr int kBlocksPerMultiprocessor = 4;
constexpr int kSampleThreads = 1024;
constexpr int kRowsAtOnce = 8;       // that a thread has under way while they are set aside
constexpr int64_t kFewRows = 16384;  // are sorted whole

// Keys, digit by digit from the highest; the last digit of all may have fewer bits.
constexpr int kDigitBits = 11, kDigits = 1 << kDigitBits;
template <class Key>
constexpr int kKeyBits = 8 * sizeof(Key);
template <class Key>
constexpr int kPasses = (kKeyBits<Key> + kDigitBits - 1) / kDigitBits;

// Bits below a digit.
template <class Key>
__host__ __device__ constexpr int below(int pass) {
  const int bits = kKeyBits<Key> - (pass + 1) * kDigitBits;
  return bits > 0 ? bits : 0;
}

// Of the keys whose first digits are `prefix`, so many are among the b best.
template <class Key>
struct Level {
  Key prefix;
  unsigned long long wanted;
};

// What the launches leave each other. All 0 at first.
template <class T>
struct State {
  using Key = order_key_t<T>;

  Key threshold;             // keys from here on are set aside
  unsigned long long aside;  // how many are
  Level<Key> levels[kPasses<Key> + 1];
  unsigned long long digits[kPasses<Key>][kDigits];
};

template <class T>
struct Search {
  using Key = order_key_t<T>;

  const T* utilities;
  int64_t rows, b;
  int64_t span;  // neighboring rows, and places below, of each warp
  State<T>* state;
  Key* keys;         // those that are set aside, in the order of their rows
  uint32_t* places;  // their rows, counted from the warp's first
  uint32_t* aside;   // of each warp
  uint32_t* above;   // of each warp: keys above the b-th largest
  uint32_t* equal;   // and equal to it
  uint64_t* above_of_block;
  uint64_t* equal_of_block;
};

__device__ inline unsigned lanes_below() { return (1u << (threadIdx.x % kWarp)) - 1; }

// The sum of what the block's threads before this one have, in the order of their numbers, and of all.
template <int Threads>
__device__ unsigned long long sum_before(unsigned long long mine, unsigned long long* all) {
  __shared__ unsigned long long of_warp[Threads / kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  unsigned long long sum = mine;
  for (int step = 1; step < kWarp; step *= 2) {
    const unsigned long long other = __shfl_sync(kAllLanes, sum, lane >= step ? lane - step : lane);
    if (lane >= step) sum += other;
  }
  __syncthreads();  // all have read what an earlier call left
  if (lane == kWarp - 1) of_warp[warp] = sum;
  __syncthreads();
  unsigned long long before = 0;
  *all = 0;
  for (int i = 0; i < Threads / kWarp; ++i) {
    before += i < warp ? of_warp[i] : 0;
    *all += of_warp[i];
  }
  return before + sum - mine;
}

// The level below: the digit at which keys, counted from the largest, come to the last that is wanted.
template <int Threads, class Key, class Count>
__device__ Level<Key> descend(Level<Key> level, int pass, const Count* digits) {
  constexpr int kEach = kDigits / Threads;
  __shared__ Level<Key> found;
  const int highest = kDigits - 1 - static_cast<int>(threadIdx.x) * kEach;
  unsigned long long mine = 0, all;
  for (int i = 0; i < kEach; ++i) mine += digits[highest - i];
  unsigned long long before = sum_before<Threads>(mine, &all);
  if (before < level.wanted && level.wanted <= before + mine) {
    int digit = highest;
    for (; before + digits[digit] < level.wanted; --digit) before += digits[digit];
    const int bits = pass > 0 ? below<Key>(pass - 1) - below<Key>(pass) : kDigitBits;
    found = {static_cast<Key>((pass > 0 ? level.prefix << bits : 0) | static_cast<Key>(digit)), level.wanted - before};
  }
  __syncthreads();
  const Level<Key> result = found;
  __syncthreads();  // all have read it before another call
  return result;
}

// Adds a key to the counts of its digit, if it begins with the level's prefix.
template <class Key>
__device__ void count_digit(Key key, Level<Key> level, int pass, unsigned* digits) {
  if (pass > 0 && key >> below<Key>(pass - 1) != level.prefix) return;
  const int bits = pass > 0 ? below<Key>(pass - 1) - below<Key>(pass) : kDigitBits;
  atomicAdd(digits + ((key >> below<Key>(pass)) & ((Key(1) << bits) - 1)), 1u);
}

// The threshold: the value in a sample of the rows that more than b of them reach, very likely.
template <class T>
__global__ void __launch_bounds__(kSampleThreads) choose_threshold(const __grid_constant__ Search<T> search) {
  using Key = order_key_t<T>;
  __shared__ unsigned digits[kDigits];
  Key keys[kSample / kSampleThreads];
#pragma unroll
  for (int i = 0; i < kSample / kSampleThreads; ++i) {
    keys[i] = order_key(search.utilities[sample_place(threadIdx.x + i * kSampleThreads, search.rows)]);
  }
  Level<Key> level = {0, static_cast<unsigned long long>(sample_rank(search.b, search.rows)) + 1};
  for (int pass = 0; pass < kPasses<Key>; ++pass) {
    for (int i = threadIdx.x; i < kDigits; i += kSampleThreads) digits[i] = 0;
    __syncthreads();
    for (const Key key : keys) count_digit(key, level, pass, digits);
    __syncthreads();
    level = descend<kSampleThreads>(level, pass, digits);
  }
  if (threadIdx.x == 0) search.state->threshold = level.prefix;
}

template <class T>
__global__ void __launch_bounds__(kBlockThreads, kBlocksPerMultiprocessor)
    set_aside(const __grid_constant__ Search<T> search) {
  using Key = order_key_t<T>;
  __shared__ unsigned of_block;
  if (threadIdx.x == 0) of_block = 0;
  __syncthreads();
  // In the order of numbers: NaN, of which a sample may be full, reaches nothing.
  const Key key = search.state->threshold;
  const T threshold = key != kNeverSelected<Key> ? utility_of<T>(key) : -std::numeric_limits<T>::infinity();
  const int64_t warp = int64_t{blockIdx.x} * kBlockWarps + threadIdx.x / kWarp, begin = warp * search.span;
  const unsigned lane = threadIdx.x % kWarp;
  const int64_t left = search.rows - begin;
  const auto rows = static_cast<uint32_t>(left < search.span ? (left > 0 ? left : 0) : search.span);
  const T* const from = search.utilities + begin;
  Key* const keys = search.keys + begin;
  uint32_t* const places = search.places + begin;
  constexpr uint32_t step = kRowsAtOnce * kWarp;
  uint32_t count = 0;
  for (uint32_t base = 0; base < rows; base += step) {
    T utilities[kRowsAtOnce];
    if (base + step <= rows) {
#pragma unroll
      for (int i = 0; i < kRowsAtOnce; ++i) utilities[i] = __ldg(from + base + lane + i * kWarp);
    } else {
#pragma unroll
      for (int i = 0; i < kRowsAtOnce; ++i) {
        const uint32_t place = base + lane + i * kWarp;
        utilities[i] = place < rows ? __ldg(from + place) : std::numeric_limits<T>::quiet_NaN();
      }
    }
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) {
      const bool reaches = utilities[i] >= threshold;
      const unsigned found = __ballot_sync(kAllLanes, reaches);
      if (reaches) {
        const uint32_t at = count + __popc(found & lanes_below());
        keys[at] = order_key(utilities[i]);
        places[at] = base + lane + i * kWarp;
      }
      count += __popc(found);
    }
  }
  if (lane == 0) {
    search.aside[warp] = count;
    atomicAdd(&of_block, count);
  }
  __syncthreads();
  if (threadIdx.x == 0) atomicAdd(&search.state->aside, static_cast<unsigned long long>(of_block));
}

// Calls body(there, key, row) with what the warp has set aside, or, where that is too little in all, with its rows, in
// order. All lanes come to each call.
template <class T, class Body>
__device__ void for_warp(const Search<T>& search, const Body& body) {
  const int64_t warp = int64_t{blockIdx.x} * kBlockWarps + threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t begin = warp * search.span;
  if (search.state->aside >= static_cast<unsigned long long>(search.b)) {
    const int64_t count = search.aside[warp];
    for (int64_t base = 0; base < count; base += kWarp) {
      const int64_t at = begin + (base + lane < count ? base + lane : 0);
      body(base + lane < count, search.keys[at], begin + search.places[at]);
    }
    return;
  }
  const int64_t end = begin + search.span < search.rows ? begin + search.span : search.rows;
#pragma unroll 4
  for (int64_t base = begin; base < end; base += kWarp) {
    const int64_t row = base + lane < end ? base + lane : begin;
    body(base + lane < end, order_key(__ldg(search.utilities + row)), row);
  }
}

// The level that `pass` begins with, which the first block leaves for later launches.
template <class T>
__device__ Level<order_key_t<T>> level_of(const Search<T>& search, int pass) {
  Level<order_key_t<T>> level = {0, static_cast<unsigned long long>(search.b)};
  if (pass > 0) {
    if (pass > 1) level = search.state->levels[pass - 1];
    level = descend<kBlockThreads>(level, pass - 1, search.state->digits[pass - 1]);
    if (blockIdx.x == 0 && threadIdx.x == 0) search.state->levels[pass] = level;
  }
  return level;
}

template <class T>
__global__ void __launch_bounds__(kBlockThreads, kBlocksPerMultiprocessor)
    count_digits(const __grid_constant__ Search<T> search, int pass) {
  __shared__ unsigned digits[kDigits];
  for (int i = threadIdx.x; i < kDigits; i += kBlockThreads) digits[i] = 0;
  const auto level = level_of(search, pass);
  __syncthreads();
  for_warp(search, [&](bool there, order_key_t<T> key, int64_t) {
    if (there) count_digit(key, level, pass, digits);
  });
  __syncthreads();
  for (int i = threadIdx.x; i < kDigits; i += kBlockThreads) {
    if (digits[i] > 0) atomicAdd(search.state->digits[pass] + i, static_cast<unsigned long long>(digits[i]));
  }
}

template <class T>
__global__ void __launch_bounds__(kBlockThreads, kBlocksPerMultiprocessor)
    count_best(const __grid_constant__ Search<T> search) {
  const auto least = level_of(search, kPasses<order_key_t<T>>).prefix;
  int above = 0, equal = 0;
  for_warp(search, [&](bool there, order_key_t<T> key, int64_t) {
    above += there && key > least;
    equal += there && key == least;
  });
  above = warp_sum(above);
  equal = warp_sum(equal);
  const bool first = threadIdx.x % kWarp == 0;
  if (first) {
    const int64_t warp = int64_t{blockIdx.x} * kBlockWarps + threadIdx.x / kWarp;
    search.above[warp] = static_cast<uint32_t>(above);
    search.equal[warp] = static_cast<uint32_t>(equal);
  }
  unsigned long long of_block;
  sum_before<kBlockThreads>(first ? above : 0, &of_block);
  if (threadIdx.x == 0) search.above_of_block[blockIdx.x] = of_block;
  sum_before<kBlockThreads>(first ? equal : 0, &of_block);
  if (threadIdx.x == 0) search.equal_of_block[blockIdx.x] = of_block;
}

// Brings the b best together, in the order of their rows. `order`: the rows, where they are 32-bit numbers; elsewhere
// these are in `wide`, and `order` has places there.
template <class T>
__global__ void __launch_bounds__(kBlockThreads, kBlocksPerMultiprocessor)
    take_best(const __grid_constant__ Search<T> search, order_key_t<T>* keys, uint32_t* order, int64_t* wide) {
  using Key = order_key_t<T>;
  const Level<Key> level = search.state->levels[kPasses<Key>];
  unsigned long long above = 0, equal = 0;
  for (unsigned i = threadIdx.x; i < blockIdx.x; i += kBlockThreads) {
    above += search.above_of_block[i];
    equal += search.equal_of_block[i];
  }
  sum_before<kBlockThreads>(above, &above);
  sum_before<kBlockThreads>(equal, &equal);
  const int64_t first = int64_t{blockIdx.x} * kBlockWarps;
  for (int i = 0; i < static_cast<int>(threadIdx.x) / kWarp; ++i) {
    above += search.above[first + i];
    equal += search.equal[first + i];
  }
  for_warp(search, [&](bool there, Key key, int64_t row) {
    const unsigned larger = __ballot_sync(kAllLanes, there && key > level.prefix);
    const unsigned same = __ballot_sync(kAllLanes, there && key == level.prefix);
    const unsigned long long before = equal + __popc(same & lanes_below());
    if (there && (key > level.prefix || (key == level.prefix && before < level.wanted))) {
      const auto at = above + __popc(larger & lanes_below()) + (before < level.wanted ? before : level.wanted);
      keys[at] = key;
      order[at] = static_cast<uint32_t>(wide == nullptr ? row : static_cast<int64_t>(at));
      if (wide != nullptr) wide[at] = row;
    }
    above += __popc(larger);
    equal += __popc(same);
  });
}

template <class T>
__global__ void make_keys(const T* utilities, int64_t rows, order_key_t<T>* keys, uint32_t* order) {
  for (int64_t i = blockIdx.x * int64_t{kBlockThreads} + threadIdx.x; i < rows;
       i += int64_t{gridDim.x} * kBlockThreads) {
    keys[i] = order_key(utilities[i]);
    order[i] = static_cast<uint32_t>(i);
  }
}

template <class T>
__global__ void write_best(const T* utilities, const order_key_t<T>* keys, const uint32_t* order, const int64_t* wide,
                           int64_t b, int64_t* indices, T* values) {
  for (int64_t i = blockIdx.x * int64_t{kBlockThreads} + threadIdx.x; i < b; i += int64_t{gridDim.x} * kBlockThreads) {
    const bool selectable = keys[i] != kNeverSelected<order_key_t<T>>;
    const int64_t row = wide != nullptr ? wide[order[i]] : int64_t{order[i]};
    indices[i] = selectable ? row : -1;
    values[i] = selectable ? utilities[row] : std::numeric_limits<T>::quiet_NaN();
  }
}

// Room on the device, in parts of any type.
class Room {
 public:
  explicit Room(const Tensor& like) : like_(like) {}

  template <class Item>
  Item* operator()(int64_t count) {
    parts_.push_back(
        torch::stable::new_empty(like_, {count * static_cast<int64_t>(sizeof(Item)) + 1}, ScalarType::Byte));
    return static_cast<Item*>(parts_.back().data_ptr());
  }

 private:
  const Tensor& like_;
  std::vector<Tensor> parts_;
};

// The b best of many, in the order of their rows.
template <class T>
void select(const T* utilities, int64_t rows, int64_t b, Room& room, int32_t device, order_key_t<T>* keys,
            uint32_t* order, int64_t* wide) {
  using Key = order_key_t<T>;
  const cudaStream_t stream = current_stream(device);
  constexpr int64_t step = kRowsAtOnce * kWarp;
  const int64_t resident = multiprocessors_of(device) * kBlocksPerMultiprocessor * kBlockWarps;
  const int64_t span = divide_up(divide_up(rows, resident), step) * step;
  const int64_t blocks = divide_up(divide_up(rows, span), kBlockWarps), warps = blocks * kBlockWarps;
  const Search<T> search = {utilities,
                            rows,
                            b,
                            span,
                            room.operator()<State<T>>(1),
                            room.operator()<Key>(warps * span),
                            room.operator()<uint32_t>(warps * span),
                            room.operator()<uint32_t>(warps),
                            room.operator()<uint32_t>(warps),
                            room.operator()<uint32_t>(warps),
                            room.operator()<uint64_t>(blocks),
                            room.operator()<uint64_t>(blocks)};
  const Shape shape = {static_cast<unsigned>(blocks), kBlockThreads};
  check_cuda(cudaMemsetAsync(search.state, 0, sizeof(State<T>), stream));
  launch_kernel(choose_threshold<T>, {1, kSampleThreads}, stream, search);
  launch_kernel(set_aside<T>, shape, stream, search);
  for (int pass = 0; pass < kPasses<Key>; ++pass) launch_kernel(count_digits<T>, shape, stream, search, pass);
  launch_kernel(count_best<T>, shape, stream, search);
  launch_kernel(take_best<T>, shape, stream, search, keys, order, wide);
}

template <class T>
void launch(const Tensor& given, int64_t b, Tensor& indices, Tensor& values) {
  using Key = order_key_t<T>;
  const Tensor utilities = torch::stable::contiguous(given);
  const int64_t rows = utilities.size(0);
  const auto* data = static_cast<const T*>(utilities.data_ptr());
  const int32_t device = utilities.get_device_index();
  const cudaStream_t stream = current_stream(device);
  Room room(utilities);
  const bool is_wide = rows >= int64_t{1} << 32;
  const bool whole = !is_wide && (rows <= kFewRows || b > rows / 2);
  const int64_t count = whole ? rows : b;
  // Keys and rows, each twice: what a radix sort ping-pongs between.
  auto* const keys = room.operator()<Key>(2 * count);
  auto* const order = room.operator()<uint32_t>(2 * count);
  auto* const wide = is_wide ? room.operator()<int64_t>(count) : nullptr;
  if (whole) {
    launch_kernel(make_keys<T>, {grid_for(divide_up(rows, kBlockThreads)), kBlockThreads}, stream, data, rows, keys,
                  order);
  } else {
    select(data, rows, b, room, device, keys, order, wide);
  }

  cub::DoubleBuffer<Key> key_buffer(keys, keys + count);
  cub::DoubleBuffer<uint32_t> row_buffer(order, order + count);
  size_t bytes = 0;
  const auto sort = [&](void* temporary) {
    check_cuda(cub::DeviceRadixSort::SortPairsDescending(temporary, bytes, key_buffer, row_buffer,
                                                         static_cast<uint32_t>(count), 0, kKeyBits<Key>, stream));
  };
  sort(nullptr);
  sort(room.operator()<char>(static_cast<int64_t>(bytes)));

  launch_kernel(write_best<T>, {grid_for(divide_up(b, kBlockThreads)), kBlockThreads}, stream, data,
                key_buffer.Current(), row_buffer.Current(), wide, b, static_cast<int64_t*>(indices.data_ptr()),
                static_cast<T*>(values.data_ptr()));
}

std::tuple<Tensor, Tensor> top_b(const Tensor& utilities, int64_t b) {
  constexpr const char* op = "top_b";
  check_rank(op, "utilities", utilities, 1);
  const int64_t rows = utilities.size(0);
  check(b >= 0 && b <= rows, op, "b must lie in [0, ", rows, "], got ", b);
  check(b < int64_t{1} << 32, op, "b must be below 2^32 on CUDA, got ", b);
  const torch::stable::accelerator::DeviceGuard guard(utilities.get_device_index());
  Tensor indices = torch::stable::new_empty(utilities, {b}, ScalarType::Long);
  Tensor values = torch::stable::new_empty(utilities, {b});
  dispatch_float_double(op, "utilities", utilities.scalar_type(), [&](auto stored) {
    if (b > 0) launch<decltype(stored)>(utilities, b, indices, values);
  });
  return {indices, values};
}

}  // namespace
}  // namespace prunefuse::cuda

STABLE_TORCH_LIBRARY_IMPL(prunefuse, CUDA, m) { m.impl("top_b", TORCH_BOX(&prunefuse::cuda::top_b)); }
