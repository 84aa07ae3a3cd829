// What CPU and CUDA share of scores reduced over groups of rows: checking the arguments, laying out the results.
#pragma once

#include <optional>

#include "math/groups.h"
#include "scores.h"

namespace prunefuse {

// `run(groups, out, inverse_temperature, stored)` is called once, if there are groups.
template <class Run>
Tensor score_groups(const Tensor& logits, const std::optional<Tensor>& offsets, const std::optional<Tensor>& mask,
                    const std::vector<int64_t>& strategies, int64_t reduction, double threshold, double empty,
                    bool labels, bool probabilities, double temperature, const Run& run) {
  const char* const op = "score_groups";
  check_rank(op, "logits", logits, offsets ? 2 : 3);
  const int64_t last = logits.dim() - 1;
  check(logits.size(last) > 0, op, "logits must have at least one class");
  check(!labels || logits.size(last) == 1, op, "logits must have one class where rows are labels, got ",
        logits.size(last));
  check(temperature > 0 && temperature <= std::numeric_limits<double>::max(), op,
        "temperature must be positive and finite, got ", temperature);
  const int64_t count = static_cast<int64_t>(strategies.size());
  check(count >= 1 && count <= kUtilityCount, op, "strategies must name 1 to ", kUtilityCount, " strategies, got ",
        count);
  for (const int64_t strategy : strategies) {
    check(strategy >= 0 && strategy < kUtilityCount, op, "strategies: no strategy has the number ", strategy);
  }
  check(reduction >= 0 && reduction < kReductionCount, op, "reduction: none has the number ", reduction);
  check(threshold == threshold, op, "threshold must be a number, got NaN");
  Groups groups = {};
  groups.pool = {logits.data_ptr(),       logits.size(last - 1), logits.size(last),
                 logits.stride(last - 1), logits.stride(last),   probabilities};
  groups.reduction = static_cast<Reduction>(reduction);
  groups.threshold = threshold;
  groups.empty = empty;
  groups.labels = labels;
  groups.shared = 1;
  if (offsets) {
    check_rank(op, "offsets", *offsets, 1);
    check_dtype(op, "offsets", *offsets, torch::headeronly::ScalarType::Long);
    check(offsets->size(0) >= 1 && offsets->is_contiguous(), op, "offsets must be contiguous and have an entry");
    check_same_device(op, "offsets", *offsets, "logits", logits);
    check(!mask, op, "mask must be none where there are offsets");
    groups.offsets = static_cast<const int64_t*>(offsets->data_ptr());
    groups.count = offsets->size(0) - 1;
  } else {
    groups.count = logits.size(0);
    groups.group_stride = logits.stride(0);
  }
  if (mask) {
    check_rank(op, "mask", *mask, 2);
    check_dtype(op, "mask", *mask, torch::headeronly::ScalarType::Bool);
    check_same_device(op, "mask", *mask, "logits", logits);
    const bool fits = mask->size(1) == groups.pool.rows &&
                      (groups.count == 0 || (mask->size(0) > 0 && groups.count % mask->size(0) == 0));
    check(fits, op, "mask must have the rows of logits, ", groups.pool.rows, ", for ", groups.count,
          " groups or a divisor of that, got ", mask->size(1), " for ", mask->size(0));
    groups.mask = static_cast<const uint8_t*>(mask->data_ptr());
    groups.mask_group_stride = mask->stride(0);
    groups.mask_row_stride = mask->stride(1);
    if (groups.count > 0) groups.shared = groups.count / mask->size(0);
  }
  Tensor utilities = new_rows(logits, {count, groups.count}, result_dtype(logits));
  dispatch_floating(op, "logits", logits.scalar_type(), [&](auto stored) {
    using Acc = accumulate_t<decltype(stored)>;
    GroupOutputs<Acc> out = {};
    out.utilities = static_cast<Acc*>(utilities.data_ptr());
    out.count = static_cast<int>(count);
    const auto inverse_temperature = static_cast<Acc>(1 / temperature);
    const bool limited = labels && (groups.reduction == Reduction::kShare || groups.reduction == Reduction::kCount);
    for (int k = 0; k < out.count; ++k) {
      out.which[k] = static_cast<Utility>(strategies[static_cast<size_t>(k)]);
      if (limited) out.limits[k] = label_limit(out.which[k], static_cast<Acc>(threshold), inverse_temperature);
    }
    if (groups.count > 0) run(groups, out, inverse_temperature, stored);
  });
  return utilities;
}

}  // namespace prunefuse
