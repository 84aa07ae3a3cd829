// Stands in for CUB's header of this name: a stable sort by key, so that what is around the sort can run.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <numeric>
#include <vector>

namespace cub {

template <class T>
struct DoubleBuffer {
  T* buffers[2];
  int selector = 0;

  DoubleBuffer(T* current, T* alternate) : buffers{current, alternate} {}
  T* Current() const { return buffers[selector]; }
  T* Alternate() const { return buffers[1 - selector]; }
};

struct DeviceRadixSort {
  // Without room to work in, says how much it takes. Leaves the result in the other buffer.
  template <class Key, class Value>
  static cudaError_t SortPairsDescending(void* room, size_t& bytes, DoubleBuffer<Key>& keys,
                                         DoubleBuffer<Value>& values, int64_t count, int, int, cudaStream_t) {
    if (room == nullptr) {
      bytes = 1;
      return cudaSuccess;
    }
    std::vector<int64_t> order(static_cast<size_t>(count));
    std::iota(order.begin(), order.end(), 0);
    const Key* const by = keys.Current();
    std::stable_sort(order.begin(), order.end(), [by](int64_t a, int64_t b) { return by[a] > by[b]; });
    for (int64_t i = 0; i < count; ++i) {
      keys.Alternate()[i] = by[order[static_cast<size_t>(i)]];
      values.Alternate()[i] = values.Current()[order[static_cast<size_t>(i)]];
    }
    keys.selector = values.selector = 1 - keys.selector;
    return cudaPeekAtLastError();  // as CUB asks after its launches, which tells errors of earlier calls too
  }
};

}  // namespace cub
