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

// The same target without axes of one element, and with neighboring axes made one where both are whole and lie in
// memory like one: a 3 x 3 kernel is a run of 9, a 1 x 1 kernel none.
inline ScatterTarget merged(const ScatterTarget& target) {
  ScatterTarget result = target;
  result.rank = 0;
  for (int64_t axis = 0; axis < target.rank; ++axis) {
    if (target.sizes[axis] == 1 && target.kept[axis] == nullptr) continue;
    const int64_t before = result.rank - 1;
    if (before >= 0 && result.kept[before] == nullptr && target.kept[axis] == nullptr &&
        result.strides[before] == target.sizes[axis] * target.strides[axis]) {
      result.sizes[before] *= target.sizes[axis];
      result.strides[before] = target.strides[axis];
      continue;
    }
    result.sizes[result.rank] = target.sizes[axis];
    result.strides[result.rank] = target.strides[axis];
    result.kept[result.rank] = target.kept[axis];
    ++result.rank;
  }
  return result;
}

// `check_values`: whether the kept indices can be read here (CPU) to check that they lie inside the axis.
inline ScatterWork plan_scatter(const std::vector<torch::stable::Tensor>& dense,
                                const std::vector<torch::stable::Tensor>& small,
                                const std::vector<torch::stable::Tensor>& kept,
                                const std::vector<int64_t>& kept_of_axis, bool check_values) {
  using torch::headeronly::ScalarType;
  constexpr const char* op = "scatter_";
  check(dense.size() == small.size(), op, "dense and small must hold as many tensors, got ", dense.size(), " and ",
        small.size());
  for (const auto& indices : kept) {
    check_rank(op, "kept", indices, 1);
    check_dtype(op, "kept", indices, ScalarType::Long);
    check(indices.is_contiguous(), op, "kept must be contiguous");
    check_same_device(op, "kept", indices, "dense", dense.at(0));
  }
  ScatterWork work;
  size_t next_axis = 0;
  for (size_t t = 0; t < dense.size(); ++t) {
    const auto& to = dense[t];
    check(to.scalar_type() == small[t].scalar_type(), op, "dense[", t, "] and small[", t, "] must have one dtype, got ",
          torch::headeronly::toString(to.scalar_type()), " and ", torch::headeronly::toString(small[t].scalar_type()));
    check_same_device(op, "small", small[t], "dense", to);
    if (t > 0) check_same_device(op, "dense", to, "dense[0]", dense[0]);
    check(to.dim() == small[t].dim() && to.dim() <= kMaxRank, op, "dense[", t, "] and small[", t,
          "] must have the same rank, at most ", kMaxRank, ", got ", to.dim(), " and ", small[t].dim());
    const auto from = small[t].is_contiguous() ? small[t] : torch::stable::contiguous(small[t]);
    const auto from_sizes = from.sizes(), to_sizes = to.sizes(), to_strides = to.strides();
    ScatterTarget target{};
    target.dense = to.data_ptr();
    target.small = from.data_ptr();
    target.first = work.elements;
    target.rank = to.dim();
    target.element_size = element_size(from);
    check(next_axis + static_cast<size_t>(to.dim()) <= kept_of_axis.size(), op,
          "kept_of_axis must have an entry for every axis of every tensor, got ", kept_of_axis.size());
    for (int64_t axis = 0; axis < to.dim(); ++axis) {
      const int64_t which = kept_of_axis[next_axis++];
      check(which >= -1 && which < static_cast<int64_t>(kept.size()), op, "kept_of_axis names index tensor ", which,
            " of ", kept.size());
      target.sizes[axis] = from_sizes[size_t(axis)];
      target.strides[axis] = to_strides[size_t(axis)];
      int64_t expected = to_sizes[size_t(axis)];
      if (which >= 0) {
        const auto& indices = kept[static_cast<size_t>(which)];
        target.kept[axis] = static_cast<const int64_t*>(indices.data_ptr());
        expected = indices.numel();
        for (int64_t i = 0; check_values && i < expected; ++i) {
          check(target.kept[axis][i] >= 0 && target.kept[axis][i] < to_sizes[size_t(axis)], op,
                "an index kept of axis ", axis, " of dense[", t, "] must lie in [0, ", to_sizes[size_t(axis)],
                "), got ", target.kept[axis][i]);
        }
      }
      check(target.sizes[axis] == expected, op, "axis ", axis, " of small[", t, "] must have size ", expected, ", got ",
            target.sizes[axis]);
    }
    work.elements += from.numel();
    if (from.numel() > 0) work.targets.push_back(merged(target));
    work.owned.push_back(from);
  }
  check(next_axis == kept_of_axis.size(), op, "kept_of_axis must have ", next_axis, " entries, got ",
        kept_of_axis.size());
  return work;
}

}  // namespace prunefuse
