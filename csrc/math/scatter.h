// Where an element of a small tensor goes in its dense one: the index arithmetic, shared by CPU and CUDA.
#pragma once

#include "portable.h"

namespace prunefuse {

constexpr int kMaxRank = 8;

// One tensor pair. `kept[a]` is null where axis a is whole.
struct ScatterTarget {
  void* dense;
  const void* small;
  int64_t first;  // position of this tensor's first element in the numbering of all elements of the call
  int64_t rank;
  int64_t sizes[kMaxRank];    // of the small tensor, which is contiguous
  int64_t strides[kMaxRank];  // of the dense tensor, in elements
  const int64_t* kept[kMaxRank];
  int64_t element_size;
  int64_t reach;  // of the dense tensor: how many elements lie from its first to its last
};

PRUNEFUSE_HD int64_t dense_coordinate(const ScatterTarget& target, int64_t axis, int64_t i) {
  return (target.kept[axis] != nullptr ? target.kept[axis][i] : i) * target.strides[axis];
}

// Offset in the dense tensor, in elements, of the small tensor's element number `position` (row-major) over axes
// 0..axes-1.
PRUNEFUSE_HD int64_t dense_offset(const ScatterTarget& target, int64_t axes, int64_t position) {
  int64_t offset = 0;
  for (int64_t axis = axes - 1; axis >= 0; --axis) {
    const int64_t size = target.sizes[axis];
    offset += dense_coordinate(target, axis, position % size);
    position /= size;
  }
  return offset;
}

}  // namespace prunefuse
