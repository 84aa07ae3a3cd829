// Scatter on CUDA. Moves each small element once (read size + write size bytes). What describes the tensors travels in
// the parameters of the launch, 511 tensors with 680 axes in each: nothing is copied from the host's memory, nothing
// waits for the device, and a captured graph holds all that a replay needs.
//
// A block takes tiles of 2,048 words of one tensor, which it looks up once. A word is what 1 to 16 bytes lie side by
// side in small and dense alike, so that whole rows move 16 bytes at a time. Where a word goes takes no division:
// quotients by an axis' size are products by its reciprocal, and all is in 32 bits where a tensor is small enough for
// that.
//
// In machine code for sm_90 a word takes 16, 31 or 41 instructions with one, two or three axes, and 6 to 8 more are a
// word's share of what a tile takes: 6 a byte moved at most, for words of 4 bytes. At 48 registers 5 blocks, 1,280
// threads, are resident on a multiprocessor. A thread has 4 words and up to 4 kept indices of each axis under way: 20
// KB of words of 4 bytes to a multiprocessor. Not run on a GPU yet.
#include "../scatter.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <bit>

#include "common.h"

namespace prunefuse::cuda {
namespace {

using torch::stable::Tensor;

constexpr int kBlockThreads = 256;
template <bool Wide>
constexpr int kBlocksPerMultiprocessor = Wide ? 4 : 5;
constexpr int kWordsAtOnce = 4;  // that a thread has under way
constexpr int64_t kTile = 2 * kWordsAtOnce * kBlockThreads;

// How a tensor's words are numbered and placed: in 32 bits, where there are fewer than 2^31 of them and they lie within
// 2^32 words of each other, or in 64.
template <bool Wide>
struct Numbers;

template <>
struct Numbers<false> {
  using Number = uint32_t;

  // With 2^k the least power of two from `size` on and m = ceil(2^(31 + k) / size), n / size is n * m >> (31 + k) for
  // every n below 2^31: what m is too large by, less than 1, adds n / 2^(31 + k) < 1 / size to the quotient.
  struct Axis {
    const int64_t* kept;
    uint32_t stride, size, reciprocal, shift;
  };

  static Axis axis(int64_t size, int64_t stride, const int64_t* kept) {
    const auto of = static_cast<uint64_t>(size);
    const int shift = 31 + std::bit_width(of - 1);
    return {kept, static_cast<uint32_t>(stride), static_cast<uint32_t>(size),
            static_cast<uint32_t>(((uint64_t{1} << shift) + of - 1) / of), static_cast<uint32_t>(shift)};
  }

  static __device__ uint32_t divide(uint32_t n, const Axis& axis) {
    return static_cast<uint32_t>(uint64_t{n} * axis.reciprocal >> axis.shift);
  }

  // Sums of products with it are right modulo 2^32, and so right.
  static __device__ uint32_t index(const int64_t* kept) { return __ldg(reinterpret_cast<const uint32_t*>(kept)); }
};

template <>
struct Numbers<true> {
  using Number = int64_t;

  struct Axis {
    const int64_t* kept;
    int64_t stride, size;
  };

  static Axis axis(int64_t size, int64_t stride, const int64_t* kept) { return {kept, stride, size}; }
  static __device__ int64_t divide(int64_t n, const Axis& axis) { return n / axis.size; }
  static __device__ int64_t index(const int64_t* kept) { return __ldg(kept); }
};

// Bytes that the parameters of a kernel may take: more since CUDA 12.1.
constexpr size_t kFewBytes = 4096;
constexpr size_t kManyBytes = CUDART_VERSION >= 12010 ? 32764 : kFewBytes;

// Some of a call's tensors, as parameters of a launch, which passes all of it, used or not.
template <bool Wide, size_t Bytes>
struct Targets {
  using Number = typename Numbers<Wide>::Number;
  using Axis = typename Numbers<Wide>::Axis;
  struct Tensors {
    void* dense;
    const void* small;
  };
  struct Form {
    uint16_t axes;       // where its own begin
    uint8_t rank, word;  // words have 2^word bytes
  };

  // A tensor takes up to 32 bytes and an axis 24; 4 axes to 3 tensors, and some bytes for alignment.
  static constexpr int kTensors = static_cast<int>((Bytes - 48) / 64);
  static constexpr int kAxes = kTensors / 3 * 4;
  static_assert(Bytes <= kFewBytes || kTensors >= 500);

  int32_t count, axes;
  uint32_t share, rest;          // tiles of each block, and how many blocks have one more
  uint32_t first[kTensors + 1];  // tiles before those of each tensor, and of all
  Form form[kTensors];
  Number words[kTensors];
  Tensors tensors[kTensors];
  Axis axis[kAxes];
};

// Words `begin` to `end` - 1 of the small tensor to their places. With the number of axes known, all of a thread's
// loads are issued before it waits for the first.
template <bool Wide, class Word, int Rank>
__device__ void copy_words(Word* dense, const Word* small, const typename Numbers<Wide>::Axis* axes,
                           [[maybe_unused]] int rank, typename Numbers<Wide>::Number begin,
                           typename Numbers<Wide>::Number end) {
  using Number = typename Numbers<Wide>::Number;
  for (Number base = begin + threadIdx.x; base < end; base += kWordsAtOnce * kBlockThreads) {
    Word words[kWordsAtOnce];
    Number places[kWordsAtOnce];
#pragma unroll
    for (int i = 0; i < kWordsAtOnce; ++i) {
      const Number word = base + Number(i * kBlockThreads);
      words[i] = __ldg(small + (word < end ? word : end - 1));
    }
#pragma unroll
    for (int i = 0; i < kWordsAtOnce; ++i) {
      const Number word = base + Number(i * kBlockThreads);
      Number rest = word < end ? word : end - 1;
      places[i] = 0;
      const auto step = [&](int axis) {
        const auto& along = axes[axis];
        const Number quotient = axis > 0 ? Numbers<Wide>::divide(rest, along) : 0;
        Number index = rest - quotient * along.size;
        if (along.kept != nullptr) index = Numbers<Wide>::index(along.kept + index);
        places[i] += index * along.stride;
        rest = quotient;
      };
      if constexpr (Rank > 0) {
#pragma unroll
        for (int axis = Rank - 1; axis >= 0; --axis) step(axis);
      } else {
#pragma unroll 1
        for (int axis = rank - 1; axis >= 0; --axis) step(axis);
      }
    }
#pragma unroll
    for (int i = 0; i < kWordsAtOnce; ++i) {
      if (base + Number(i * kBlockThreads) < end) dense[places[i]] = words[i];
    }
  }
}

template <bool Wide, class Word, class Table>
__device__ void copy_tiles(const Table& targets, int tensor, int64_t tile, int64_t end_tile) {
  using Number = typename Table::Number;
  const auto form = targets.form[tensor];
  const Number words = targets.words[tensor];
  const Number begin = static_cast<Number>(tile * kTile);
  const Number end = end_tile * kTile < int64_t(words) ? static_cast<Number>(end_tile * kTile) : words;
  auto* const dense = static_cast<Word*>(targets.tensors[tensor].dense);
  const auto* const small = static_cast<const Word*>(targets.tensors[tensor].small);
  const auto* const axes = targets.axis + form.axes;
  if (!Wide && form.rank == 1) return copy_words<Wide, Word, 1>(dense, small, axes, 1, begin, end);
  if (!Wide && form.rank == 2) return copy_words<Wide, Word, 2>(dense, small, axes, 2, begin, end);
  if (!Wide && form.rank == 3) return copy_words<Wide, Word, 3>(dense, small, axes, 3, begin, end);
  copy_words<Wide, Word, 0>(dense, small, axes, form.rank, begin, end);
}

// A block has as many tiles as the others, one after another.
template <bool Wide, size_t Bytes>
__global__ void __launch_bounds__(kBlockThreads, kBlocksPerMultiprocessor<Wide>)
    scatter_tiles(const __grid_constant__ Targets<Wide, Bytes> targets) {
  const uint32_t block = blockIdx.x;
  uint32_t tile = block * targets.share + (block < targets.rest ? block : targets.rest);
  const uint32_t end = tile + targets.share + (block < targets.rest ? 1 : 0);
  // The last tensor that begins at or before this tile.
  int tensor = 0;
  for (int high = targets.count; high - tensor > 1;) {
    const int middle = (tensor + high) / 2;
    (targets.first[middle] <= tile ? tensor : high) = middle;
  }
  for (; tile < end; ++tensor) {
    const uint32_t first = targets.first[tensor], next = targets.first[tensor + 1];
    const uint32_t stop = next < end ? next : end;
    switch (targets.form[tensor].word) {
      case 0:
        copy_tiles<Wide, uint8_t>(targets, tensor, tile - first, stop - first);
        break;
      case 1:
        copy_tiles<Wide, uint16_t>(targets, tensor, tile - first, stop - first);
        break;
      case 2:
        copy_tiles<Wide, uint32_t>(targets, tensor, tile - first, stop - first);
        break;
      case 3:
        copy_tiles<Wide, unsigned long long>(targets, tensor, tile - first, stop - first);
        break;
      default:
        copy_tiles<Wide, uint4>(targets, tensor, tile - first, stop - first);
    }
    tile = stop;
  }
}

// The same tensor in the widest words that its last axis, where that is a run in both tensors, its strides and its
// addresses are made of. Gives the logarithm of their bytes.
int widen(ScatterTarget& target) {
  const int64_t last = target.rank - 1, size = target.element_size;
  int64_t word = size;
  if (last >= 0 && target.kept[last] == nullptr && target.strides[last] == 1) {
    uint64_t parts = 16 | reinterpret_cast<uintptr_t>(target.dense) | reinterpret_cast<uintptr_t>(target.small) |
                     static_cast<uint64_t>(target.sizes[last] * size);
    for (int64_t axis = 0; axis < last; ++axis) parts |= static_cast<uint64_t>(target.strides[axis] * size);
    const auto common = int64_t{1} << std::countr_zero(parts);
    word = std::max(word, common);
    for (int64_t axis = 0; axis < last; ++axis) target.strides[axis] /= word / size;
    target.sizes[last] /= word / size;
    if (target.sizes[last] == 1) --target.rank;
  }
  target.reach = divide_up(target.reach * size, word);
  if (target.rank == 0) {
    target.sizes[0] = target.strides[0] = target.rank = 1;
    target.kept[0] = nullptr;
  }
  return std::countr_zero(static_cast<uint64_t>(word));
}

int64_t words_of(const ScatterTarget& target) {
  int64_t words = 1;
  for (int64_t axis = 0; axis < target.rank; ++axis) words *= target.sizes[axis];
  return words;
}

bool is_wide(const ScatterTarget& target) {
  return words_of(target) > std::numeric_limits<int32_t>::max() || target.reach > std::numeric_limits<uint32_t>::max();
}

// Queues launches for those of the tensors that are wide, or for the others.
template <bool Wide, size_t Bytes>
void launch(const std::vector<ScatterTarget>& all, const std::vector<int>& words, int32_t device) {
  using Table = Targets<Wide, Bytes>;
  static_assert(sizeof(Table) <= Bytes);
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  Table table = {};
  const auto flush = [&] {
    const int64_t tiles = table.first[table.count];
    const int64_t grid = std::min(tiles, multiprocessors_of(device) * kBlocksPerMultiprocessor<Wide>);
    table.share = static_cast<uint32_t>(tiles / grid);
    table.rest = static_cast<uint32_t>(tiles % grid);
    launch_kernel(scatter_tiles<Wide, Bytes>, {static_cast<unsigned>(grid), kBlockThreads}, current_stream(device),
                  table);
  };
  for (size_t t = 0; t < all.size(); ++t) {
    const ScatterTarget& target = all[t];
    if (is_wide(target) != Wide) continue;
    const int64_t count = words_of(target), tiles = divide_up(count, kTile);
    if (table.count == Table::kTensors || table.axes + target.rank > Table::kAxes ||
        table.first[table.count] + tiles > most) {
      flush();
      table.count = table.axes = 0;
    }
    table.form[table.count] = {static_cast<uint16_t>(table.axes), static_cast<uint8_t>(target.rank),
                               static_cast<uint8_t>(words[t])};
    table.words[table.count] = static_cast<typename Table::Number>(count);
    table.tensors[table.count] = {target.dense, target.small};
    for (int64_t axis = 0; axis < target.rank; ++axis) {
      table.axis[table.axes++] = Numbers<Wide>::axis(target.sizes[axis], target.strides[axis], target.kept[axis]);
    }
    table.first[table.count + 1] = table.first[table.count] + static_cast<uint32_t>(tiles);
    ++table.count;
  }
  if (table.count > 0) flush();
}

// By reference: a copy of a list would count a reference to every tensor.
void scatter_(const std::vector<Tensor>& dense, const std::vector<Tensor>& small, const std::vector<Tensor>& kept,
              const std::vector<int64_t>& kept_of_axis) {
  ScatterWork work = plan_scatter(dense, small, kept, kept_of_axis, /*check_values=*/false);
  if (work.elements == 0) return;
  const int32_t device = dense[0].get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  std::vector<int> words;
  for (ScatterTarget& target : work.targets) words.push_back(widen(target));
  if (std::any_of(work.targets.begin(), work.targets.end(), is_wide)) {
    launch<true, kManyBytes>(work.targets, words, device);
  }
  if (work.targets.size() <= Targets<false, kFewBytes>::kTensors) {
    launch<false, kFewBytes>(work.targets, words, device);
  } else {
    launch<false, kManyBytes>(work.targets, words, device);
  }
}

}  // namespace
}  // namespace prunefuse::cuda

STABLE_TORCH_LIBRARY_IMPL(prunefuse, CUDA, m) { m.impl("scatter_", TORCH_BOX(&prunefuse::cuda::scatter_)); }
