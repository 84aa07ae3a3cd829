// Scatter on the CPU: all tensors' elements are numbered through and shared out among the threads, so that many small
// tensors cost no more than one large one. The innermost axes are loops of their own: whole kernels of a convolution,
// or single elements, to kept places of a row. What is prepared once, for tensors that stay where they are, runs by the
// same code.
#include "../scatter.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>

#include "scatter.h"

namespace prunefuse::cpu {
namespace {

using torch::stable::Tensor;

constexpr int64_t kGrainElements = 32768;
constexpr int64_t kStep = 8;  // elements of a row that share about a cache line

// A few words. Above 16 bytes as whole vectors, the last of which may overlap the one before: a call of memcpy, or a
// loop over the words, costs more.
template <class Word>
void copy_block(Word* to, const Word* from, int64_t words) {
  const int64_t bytes = words * int64_t(sizeof(Word));
  if (bytes < 16 || bytes > 256) {
    if (bytes > 256) {
      std::memcpy(to, from, static_cast<size_t>(bytes));
    } else {
      for (int64_t j = 0; j < words; ++j) to[j] = from[j];
    }
    return;
  }
  auto* target = reinterpret_cast<char*>(to);
  const auto* source = reinterpret_cast<const char*>(from);
  for (int64_t at = 0; at + 16 < bytes; at += 16) std::memcpy(target + at, source + at, 16);
  std::memcpy(target + bytes - 16, source + bytes - 16, 16);
}

// Where the elements of one tensor go: rows of runs of words that lie side by side in the small and in the dense
// tensor. An odometer over the axes outside the rows finds where each goes without dividing.
template <class Word>
void copy_rows(const ScatterTarget& target, int64_t begin, int64_t end) {
  auto* dense = static_cast<Word*>(target.dense);
  const auto* small = static_cast<const Word*>(target.small);
  int64_t outer = target.rank;  // axes outside a row
  const bool dense_last = outer > 0 && target.kept[outer - 1] == nullptr && target.strides[outer - 1] == 1;
  const int64_t run = dense_last ? target.sizes[--outer] : 1;
  const int64_t columns = outer > 0 ? target.sizes[--outer] : 1;
  const int64_t width = run * columns;
  const int64_t* kept = target.kept[outer];
  const int64_t stride = target.strides[outer];
  const auto place = [&](int64_t column) { return (kept != nullptr ? kept[column] : column) * stride; };
  const int64_t reach = place(columns - 1) + run;  // of a row in the dense tensor
  int64_t digits[kMaxRank] = {};
  int64_t row = begin / width, offset = 0;
  for (int64_t axis = outer - 1; axis >= 0; --axis) {
    digits[axis] = row % target.sizes[axis];
    row /= target.sizes[axis];
    offset += dense_coordinate(target, axis, digits[axis]);
  }
  for (int64_t position = begin; position < end;) {
    Word* const to = dense + offset;
    for (int64_t axis = outer - 1; axis >= 0; --axis) {
      offset -= dense_coordinate(target, axis, digits[axis]);
      if (++digits[axis] < target.sizes[axis]) {
        offset += dense_coordinate(target, axis, digits[axis]);
        break;
      }
      digits[axis] = 0;
      offset += dense_coordinate(target, axis, 0);
    }
    // A row that does not follow this one in memory is fetched on the way: the processor would not see it coming.
    const Word* const next = dense + offset;
    const bool far = next - to > reach || next < to;
    int64_t at = position % width;
    const int64_t stop = std::min(width, at + end - position);
    const Word* const from = small + (position - at);
    position += stop - at;
    if (run == 1 && kept != nullptr && stride == 1) {
      for (; far && at + kStep <= stop; at += kStep) {
        __builtin_prefetch(next + kept[at], 1);
        for (int64_t j = at; j < at + kStep; ++j) to[kept[j]] = from[j];
      }
      for (; at < stop; ++at) to[kept[at]] = from[at];
    } else if (run == 1) {
      for (; at < stop; ++at) to[place(at)] = from[at];
    } else {
      // The first and the last run may belong in part to another thread.
      for (int64_t column = at / run; at < stop; ++column) {
        const int64_t skip = at - column * run, words = std::min(run - skip, stop - at);
        if (far) __builtin_prefetch(next + place(column), 1);
        copy_block(to + place(column) + skip, from + at, words);
        at += words;
      }
    }
  }
}

struct Word16 {
  uint64_t halves[2];
};

void copy_elements(const ScatterTarget& target, int64_t begin, int64_t end) {
  switch (target.element_size) {
    case 1:
      return copy_rows<uint8_t>(target, begin, end);
    case 2:
      return copy_rows<uint16_t>(target, begin, end);
    case 4:
      return copy_rows<uint32_t>(target, begin, end);
    case 8:
      return copy_rows<uint64_t>(target, begin, end);
    case 16:
      return copy_rows<Word16>(target, begin, end);
    default:
      return;  // torch has no other element size; plan_scatter's dtypes are torch's
  }
}

void run(const std::vector<ScatterTarget>& targets, int64_t elements) {
  torch::stable::parallel_for(0, elements, kGrainElements, [&](int64_t begin, int64_t end) {
    auto target = std::upper_bound(targets.begin(), targets.end(), begin,
                                   [](int64_t element, const ScatterTarget& t) { return element < t.first; });
    for (--target; target != targets.end() && target->first < end; ++target) {
      const auto after = target + 1;
      const int64_t next = after == targets.end() ? elements : after->first;
      copy_elements(*target, std::max(begin, target->first) - target->first, std::min(end, next) - target->first);
    }
  });
}

// By reference: a copy of a list would count a reference to every tensor.
void scatter_(const std::vector<Tensor>& dense, const std::vector<Tensor>& small, const std::vector<Tensor>& kept,
              const std::vector<int64_t>& kept_of_axis) {
  const ScatterWork work = plan_scatter(dense, small, kept, kept_of_axis, /*check_values=*/true);
  run(work.targets, work.elements);
}

}  // namespace
}  // namespace prunefuse::cpu

STABLE_TORCH_LIBRARY_IMPL(prunefuse, CPU, m) { m.impl("scatter_", TORCH_BOX(&prunefuse::cpu::scatter_)); }

struct prunefuse_scatter {
  std::vector<prunefuse::ScatterTarget> targets;
  int64_t elements = 0;
};

prunefuse_scatter* prunefuse_scatter_new() { return new prunefuse_scatter; }

void prunefuse_scatter_delete(prunefuse_scatter* scatter) { delete scatter; }

bool prunefuse_scatter_add(prunefuse_scatter* scatter, int64_t dense, int64_t small, int64_t element_size, int64_t rank,
                           const int64_t* sizes, const int64_t* strides, const int64_t* kept) {
  if (rank > prunefuse::kMaxRank) return false;
  prunefuse::ScatterTarget target{};
  int64_t elements = 1;
  for (int64_t axis = 0; axis < rank; ++axis) {
    prunefuse::add_axis(target, sizes[axis], strides[axis], reinterpret_cast<const int64_t*>(kept[axis]));
    elements *= sizes[axis];
  }
  if (elements == 0) return true;
  target.dense = reinterpret_cast<void*>(dense);
  target.small = reinterpret_cast<const void*>(small);
  target.element_size = element_size;
  target.first = scatter->elements;
  scatter->targets.push_back(target);
  scatter->elements += elements;
  return true;
}

void prunefuse_scatter_run(const prunefuse_scatter* scatter) {
  prunefuse::cpu::run(scatter->targets, scatter->elements);
}
