// Scatter on the CPU: all tensors' elements are numbered through and shared out among the threads, so that many small
// tensors cost no more than one large one. Along the last axis a whole, dense run is one memcpy.
#include "../scatter.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>

namespace prunefuse::cpu {
namespace {

using torch::stable::Tensor;

constexpr int64_t kGrainElements = 32768;

// Copies elements begin..end of one tensor, a run along the last axis at a time; an odometer over the other axes finds
// where each run goes without dividing.
template <class Word>
void copy_run(const ScatterTarget& target, int64_t begin, int64_t end) {
  auto* dense = static_cast<Word*>(target.dense);
  const auto* small = static_cast<const Word*>(target.small);
  if (target.rank == 0) {
    *dense = *small;
    return;
  }
  const int64_t last = target.rank - 1;
  const int64_t width = target.sizes[last];
  const int64_t* kept = target.kept[last];
  const bool contiguous = kept == nullptr && target.strides[last] == 1;
  int64_t digits[kMaxRank] = {};
  int64_t row = begin / width;
  int64_t offset = 0;
  for (int64_t axis = last - 1; axis >= 0; --axis) {
    digits[axis] = row % target.sizes[axis];
    row /= target.sizes[axis];
    offset += dense_coordinate(target, axis, digits[axis]);
  }
  for (int64_t position = begin; position < end;) {
    const int64_t column = position % width;
    const int64_t count = std::min(width - column, end - position);
    Word* to = dense + offset;
    const Word* from = small + position;
    if (contiguous && count >= 16) {
      std::memcpy(to + column, from, static_cast<size_t>(count) * sizeof(Word));
    } else if (contiguous) {
      for (int64_t j = 0; j < count; ++j) to[column + j] = from[j];  // a call to memcpy would cost more
    } else if (kept != nullptr && target.strides[last] == 1) {
      for (int64_t j = 0; j < count; ++j) to[kept[column + j]] = from[j];
    } else {
      for (int64_t j = 0; j < count; ++j) to[dense_coordinate(target, last, column + j)] = from[j];
    }
    position += count;
    for (int64_t axis = last - 1; axis >= 0; --axis) {
      offset -= dense_coordinate(target, axis, digits[axis]);
      if (++digits[axis] < target.sizes[axis]) {
        offset += dense_coordinate(target, axis, digits[axis]);
        break;
      }
      digits[axis] = 0;
      offset += dense_coordinate(target, axis, 0);
    }
  }
}

struct Word16 {
  uint64_t halves[2];
};

void copy_elements(const ScatterTarget& target, int64_t begin, int64_t end) {
  switch (target.element_size) {
    case 1:
      return copy_run<uint8_t>(target, begin, end);
    case 2:
      return copy_run<uint16_t>(target, begin, end);
    case 4:
      return copy_run<uint32_t>(target, begin, end);
    case 8:
      return copy_run<uint64_t>(target, begin, end);
    case 16:
      return copy_run<Word16>(target, begin, end);
    default:
      return;  // torch has no other element size; plan_scatter's dtypes are torch's
  }
}

void scatter_(std::vector<Tensor> dense, std::vector<Tensor> small, std::vector<Tensor> kept,
              std::vector<int64_t> kept_of_axis) {
  const ScatterWork work = plan_scatter(dense, small, kept, kept_of_axis, /*check_values=*/true);
  const auto& targets = work.targets;
  torch::stable::parallel_for(0, work.elements, kGrainElements, [&](int64_t begin, int64_t end) {
    auto target = std::upper_bound(targets.begin(), targets.end(), begin,
                                   [](int64_t element, const ScatterTarget& t) { return element < t.first; });
    for (--target; target != targets.end() && target->first < end; ++target) {
      const auto after = target + 1;
      const int64_t next = after == targets.end() ? work.elements : after->first;
      copy_elements(*target, std::max(begin, target->first) - target->first, std::min(end, next) - target->first);
    }
  });
}

}  // namespace
}  // namespace prunefuse::cpu

STABLE_TORCH_LIBRARY_IMPL(prunefuse, CPU, m) { m.impl("scatter_", TORCH_BOX(&prunefuse::cpu::scatter_)); }
