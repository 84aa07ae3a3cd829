// The b best of a stream on CUDA, without waiting for the device: how many candidates there are is known there alone.
//
// The first launch reads the batch once, 4 bytes a row, and what reaches the threshold joins the candidates; of a
// warp's rows at one atomic's cost. The second, of one block, ends at once as long as the candidates have room. Where
// they have not, it raises the threshold: to the value that a sample says a few more than b reach, of candidates and
// batch together, or, where that is wrong, to the b-th largest, found four bits at a time; equals of that stay by lower
// index. A cut reads candidates and batch twice where the sample is right, which one multiprocessor does at some 60
// GB/s, and about once per 4 bits of a key more where it is not. Threads of 1,024 leave 64 registers each. Not run on a
// GPU yet.
#include "../keep_best.h"

#include <torch/csrc/stable/library.h>

#include "../math/order.h"
#include "lanes.h"

namespace prunefuse::cuda {
namespace {

constexpr int kBlockThreads = 256;
constexpr int kCutThreads = 1024;
constexpr int kDigitBits = 4, kDigits = 1 << kDigitBits;

__device__ inline unsigned lanes_below() { return (1u << (threadIdx.x % kWarp)) - 1; }

__device__ inline int64_t add(int64_t* to, int64_t value) {
  return static_cast<int64_t>(
      atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value)));
}

// Numbers what the lanes of a warp append to what `count` counts. Every lane must come here.
__device__ inline int64_t place_of(bool appends, int64_t* count) {
  const unsigned found = __ballot_sync(kAllLanes, appends);
  long long first = 0;
  if (threadIdx.x % kWarp == 0 && found != 0) first = add(count, __popc(found));
  return __shfl_sync(kAllLanes, first, 0) + __popc(found & lanes_below());
}

// `appended`: how many rows of the batch reach the threshold, 0 at first.
template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    filter_batch(const __grid_constant__ Stream<T> stream, int64_t* appended) {
  const T threshold = *stream.threshold;
  const int64_t before = stream.counts[0], next = stream.counts[2] + 1;
  int nan = 0;
  long long highest = std::numeric_limits<long long>::lowest();
  for (int64_t base = blockIdx.x * int64_t{kBlockThreads}; base < stream.rows;
       base += int64_t{gridDim.x} * kBlockThreads) {
    const int64_t row = base + threadIdx.x;
    const bool there = row < stream.rows;
    const T utility = there ? stream.batch[row] : -std::numeric_limits<T>::infinity();
    int64_t index = next + row;
    if (there && stream.batch_indices != nullptr) {
      index = stream.batch_indices[row];
      highest = index > highest ? index : highest;
    }
    nan += utility != utility;
    const bool passes = there && utility >= threshold;
    const int64_t at = before + place_of(passes, appended);
    if (passes && at < stream.room) {
      stream.utilities[at] = utility;
      stream.indices[at] = index;
    }
  }
  nan = warp_sum(nan);
  if (threadIdx.x % kWarp == 0 && nan > 0) add(stream.counts + 1, nan);
  if (stream.batch_indices == nullptr) return;
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const long long other = __shfl_xor_sync(kAllLanes, highest, mask);
    highest = other > highest ? other : highest;
  }
  if (threadIdx.x % kWarp == 0) atomicMax(reinterpret_cast<long long*>(stream.counts + 2), highest);
}

// The block's sums, in every thread.
template <int Count>
__device__ void block_sums(const int (&mine)[Count], int64_t (&sums)[Count]) {
  __shared__ int64_t of_block[Count];
  __syncthreads();  // all have read what an earlier call left
  if (threadIdx.x < Count) of_block[threadIdx.x] = 0;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    const int of_warp = warp_sum(mine[i]);
    if (threadIdx.x % kWarp == 0) add(of_block + i, of_warp);
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < Count; ++i) sums[i] = of_block[i];
}

// How many of 0 to count - 1 are as `is` says.
template <class Is>
__device__ int64_t block_count(int64_t count, const Is& is) {
  int mine[1] = {};
  for (int64_t i = threadIdx.x; i < count; i += kCutThreads) mine[0] += is(i);
  int64_t sums[1];
  block_sums(mine, sums);
  return sums[0];
}

// The largest number that at least k of value(0) to value(count - 1) reach, digit by digit.
template <class Number, class Value>
__device__ Number kth_largest(int64_t count, int64_t k, const Value& value) {
  Number found = 0;
  for (int shift = 8 * sizeof(Number) - kDigitBits; shift >= 0; shift -= kDigitBits) {
    int mine[kDigits - 1] = {};  // by digit, from 1
    for (int64_t i = threadIdx.x; i < count; i += kCutThreads) {
      const Number number = value(i);
#pragma unroll
      for (int d = 0; d < kDigits - 1; ++d) mine[d] += number >= found + (Number(d + 1) << shift);
    }
    int64_t reach[kDigits - 1];
    block_sums(mine, reach);
    Number digit = 0;
#pragma unroll
    for (int d = 0; d < kDigits - 1; ++d) digit += reach[d] >= k;
    found += digit << shift;
  }
  return found;
}

// Candidates and batch together.
template <class T>
struct Joined {
  using Key = order_key_t<T>;

  const Stream<T>& stream;
  int64_t before, next;  // candidates; the index of the batch's first row
  int64_t count;

  __device__ T utility(int64_t i) const { return i < before ? stream.utilities[i] : stream.batch[i - before]; }
  __device__ Key key(int64_t i) const { return order_key(utility(i)); }
  __device__ int64_t index(int64_t i) const {
    if (i < before) return stream.indices[i];
    return stream.batch_indices != nullptr ? stream.batch_indices[i - before] : next + (i - before);
  }
  // Of equals the largest is kept first: lower indices, which may be negative.
  __device__ uint64_t rank(int64_t i) const { return ~(static_cast<uint64_t>(index(i)) ^ (uint64_t(1) << 63)); }
};

// What stays: keys above `least`; equal to it, ranks above `least_rank`, and of that rank as many as `last`.
template <class Key>
struct Rule {
  Key least = 0;
  uint64_t least_rank = 0;
  int64_t last = std::numeric_limits<int64_t>::max();
};

template <class T>
__device__ Rule<order_key_t<T>> rule_for(const Joined<T>& all) {
  using Key = order_key_t<T>;
  const int64_t b = all.stream.b;
  Rule<Key> rule;
  rule.least = kth_largest<Key>(kSample, sample_rank(b, all.count) + 1,
                                [&](int64_t i) { return all.key(sample_place(i, all.count)); });
  // b candidates reach the threshold so far, if it was ever raised.
  const Key before = order_key(*all.stream.threshold);
  rule.least = before > rule.least ? before : rule.least;
  const int64_t reach = block_count(all.count, [&](int64_t i) { return all.key(i) >= rule.least; });
  // Well below the room, so that it takes many rows until the next cut.
  if (rule.least != kNeverSelected<Key> && reach >= b && 2 * reach <= all.stream.room + b) return rule;
  rule.least = kth_largest<Key>(all.count, b, [&](int64_t i) { return all.key(i); });
  const int64_t left = b - block_count(all.count, [&](int64_t i) { return all.key(i) > rule.least; });
  const auto rank = [&](int64_t i) { return all.key(i) == rule.least ? all.rank(i) : 0; };
  if (block_count(all.count, [&](int64_t i) { return all.key(i) == rule.least; }) == left) return rule;
  // Where many are equal, only their order says which of them stay.
  rule.least_rank = kth_largest<uint64_t>(all.count, left, rank);
  rule.last = left - block_count(all.count, [&](int64_t i) { return rank(i) > rule.least_rank; });
  return rule;
}

template <class T>
__global__ void __launch_bounds__(kCutThreads)
    make_room(const __grid_constant__ Stream<T> stream, const int64_t* appended) {
  __shared__ int64_t kept, of_last;
  const int64_t before = stream.counts[0], next = stream.counts[2] + 1;
  __syncthreads();  // all have read the counts
  if (threadIdx.x == 0 && stream.batch_indices == nullptr) stream.counts[2] += stream.rows;
  if (before + *appended <= stream.room) {
    if (threadIdx.x == 0) stream.counts[0] = before + *appended;
    return;
  }
  const Joined<T> all = {stream, before, next, before + stream.rows};
  const auto rule = rule_for(all);
  if (threadIdx.x == 0) kept = of_last = 0;
  __syncthreads();
  for (int64_t base = 0; base < all.count; base += kCutThreads) {
    const int64_t i = base + threadIdx.x;
    T utility = 0;
    int64_t index = 0;
    bool stays = false;
    if (i < all.count) {
      utility = all.utility(i);
      index = all.index(i);
      const auto key = order_key(utility);
      stays = key >= rule.least;
      if (key == rule.least) {
        const uint64_t rank = all.rank(i);
        stays = rank > rule.least_rank || (rank == rule.least_rank && add(&of_last, 1) < rule.last);
      }
    }
    __syncthreads();  // all have read before any writes: to places among those read, or before them
    const int64_t at = place_of(stays, &kept);
    if (stays) {
      stream.utilities[at] = utility;
      stream.indices[at] = index;
    }
  }
  __syncthreads();
  if (threadIdx.x > 0) return;
  stream.counts[0] = kept;
  *stream.threshold = utility_of<T>(rule.least);
}

void keep_best_(Tensor best, Tensor indices, Tensor threshold, Tensor counts, int64_t b, const Tensor& batch,
                std::optional<Tensor> batch_indices) {
  const auto run = [&](const auto& stream) {
    using T = std::remove_reference_t<decltype(*stream.threshold)>;
    if (stream.rows == 0) return;
    const torch::stable::accelerator::DeviceGuard guard(best.get_device_index());
    const cudaStream_t queue = current_stream(best.get_device_index());
    const Tensor appended = torch::stable::new_empty(counts, {1});
    auto* const count = static_cast<int64_t*>(appended.data_ptr());
    check_cuda(cudaMemsetAsync(count, 0, sizeof(int64_t), queue));
    launch_kernel(filter_batch<T>, {grid_for(divide_up(stream.rows, kBlockThreads)), kBlockThreads}, queue, stream,
                  count);
    launch_kernel(make_room<T>, {1, kCutThreads}, queue, stream, count);
  };
  prunefuse::keep_best_(best, indices, threshold, counts, b, batch, batch_indices, run);
}

}  // namespace
}  // namespace prunefuse::cuda

STABLE_TORCH_LIBRARY_IMPL(prunefuse, CUDA, m) { m.impl("keep_best_", TORCH_BOX(&prunefuse::cuda::keep_best_)); }
