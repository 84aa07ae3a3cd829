// What the CPU and the CUDA scatter share: checking the arguments and describing the work.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "check.h"
#include "math/scatter.h"

namespace prunefuse {

struct ScatterWork {
  std::vector<ScatterTarget> targets;
  int64_t elements = 0;
  // Keeps the contiguous copies that `targets` points into alive.
  std::vector<torch::stable::Tensor> owned;
};

inline int64_t element_size(const torch::stable::Tensor& tensor) {
  int32_t dtype = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  return static_cast<int64_t>(aoti_torch_dtype_element_size(dtype));
}

// Adds the next axis of a small tensor to its target: none if it has one element, and one with the axis before it where
// both are whole and lie in memory like one: a 3 x 3 kernel is a run of 9, a 1 x 1 kernel none.
inline void add_axis(ScatterTarget& target, int64_t size, int64_t stride, const int64_t* kept) {
  if (size == 1 && kept == nullptr) return;
  const int64_t before = target.rank - 1;
  if (before >= 0 && target.kept[before] == nullptr && kept == nullptr && target.strides[before] == size * stride) {
    target.sizes[before] *= size;
    target.strides[before] = stride;
    return;
  }
  target.sizes[target.rank] = size;
  target.strides[target.rank] = stride;
  target.kept[target.rank] = kept;
  ++target.rank;
}

// An index tensor and, where its values can be read, the smallest and the largest of them.
struct KeptIndices {
  const int64_t* data;
  int64_t count, lowest, highest;
};

// `check_values`: whether the kept indices can be read here (CPU) to check that they lie inside the axis.
inline ScatterWork plan_scatter(const std::vector<torch::stable::Tensor>& dense,
                                const std::vector<torch::stable::Tensor>& small,
                                const std::vector<torch::stable::Tensor>& kept,
                                const std::vector<int64_t>& kept_of_axis, bool check_values) {
  using torch::headeronly::ScalarType;
  constexpr const char* op = "scatter_";
  check(dense.size() == small.size(), op, "dense and small must hold as many tensors, got ", dense.size(), " and ",
        small.size());
  std::vector<KeptIndices> sets;
  for (const auto& indices : kept) {
    check_rank(op, "kept", indices, 1);
    check_dtype(op, "kept", indices, ScalarType::Long);
    check(indices.is_contiguous(), op, "kept must be contiguous");
    check_same_device(op, "kept", indices, "dense", dense.at(0));
    KeptIndices set{static_cast<const int64_t*>(indices.data_ptr()), indices.numel(), 0, 0};
    for (int64_t i = 0; check_values && i < set.count; ++i) {
      set.lowest = i == 0 || set.data[i] < set.lowest ? set.data[i] : set.lowest;
      set.highest = i == 0 || set.data[i] > set.highest ? set.data[i] : set.highest;
    }
    sets.push_back(set);
  }
  ScatterWork work;
  work.targets.reserve(dense.size());
  size_t next_axis = 0;
  for (size_t t = 0; t < dense.size(); ++t) {
    const auto& to = dense[t];
    check(to.scalar_type() == small[t].scalar_type(), op, "dense[", t, "] and small[", t, "] must have one dtype, got ",
          torch::headeronly::toString(to.scalar_type()), " and ", torch::headeronly::toString(small[t].scalar_type()));
    check_same_device(op, "small", small[t], "dense", to);
    if (t > 0) check_same_device(op, "dense", to, "dense[0]", dense[0]);
    const auto to_sizes = to.sizes(), to_strides = to.strides(), from_sizes = small[t].sizes();
    const int64_t rank = static_cast<int64_t>(to_sizes.size());
    check(to_sizes.size() == from_sizes.size() && rank <= kMaxRank, op, "dense[", t, "] and small[", t,
          "] must have the same rank, at most ", kMaxRank, ", got ", rank, " and ", from_sizes.size());
    check(next_axis + to_sizes.size() <= kept_of_axis.size(), op,
          "kept_of_axis must have an entry for every axis of every tensor, got ", kept_of_axis.size());
    ScatterTarget target{};
    target.reach = 1;
    int64_t elements = 1;
    for (int64_t axis = 0; axis < rank; ++axis) {
      const int64_t which = kept_of_axis[next_axis++];
      check(which >= -1 && which < static_cast<int64_t>(sets.size()), op, "kept_of_axis names index tensor ", which,
            " of ", sets.size());
      const int64_t size = from_sizes[size_t(axis)], room = to_sizes[size_t(axis)];
      int64_t expected = room;
      const int64_t* indices = nullptr;
      if (which >= 0) {
        const KeptIndices& set = sets[static_cast<size_t>(which)];
        indices = set.data;
        expected = set.count;
        check(expected == 0 || !check_values || (set.lowest >= 0 && set.highest < room), op, "an index kept of axis ",
              axis, " of dense[", t, "] must lie in [0, ", room, "), got ", set.lowest < 0 ? set.lowest : set.highest);
      }
      check(size == expected, op, "axis ", axis, " of small[", t, "] must have size ", expected, ", got ", size);
      add_axis(target, size, to_strides[size_t(axis)], indices);
      target.reach += (room - 1) * to_strides[size_t(axis)];
      elements *= size;
    }
    if (elements == 0) continue;
    target.dense = to.data_ptr();
    if (small[t].is_contiguous()) {
      target.small = small[t].data_ptr();
    } else {
      work.owned.push_back(torch::stable::contiguous(small[t]));
      target.small = work.owned.back().data_ptr();
    }
    target.first = work.elements;
    target.element_size = element_size(to);
    work.targets.push_back(target);
    work.elements += elements;
  }
  check(next_axis == kept_of_axis.size(), op, "kept_of_axis must have ", next_axis, " entries, got ",
        kept_of_axis.size());
  return work;
}

}  // namespace prunefuse
