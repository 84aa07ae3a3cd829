// The b best of a stream on the CPU: what reaches a threshold joins the candidates; where these are too many, a higher
// threshold, estimated from a sample of them, cuts them down.
#include "../keep_best.h"

#include <torch/csrc/stable/library.h>

#include "candidates.h"
#include "isa.h"
#include "kernels/filter.h"

namespace prunefuse::cpu {
namespace {

static_assert(kFilterRun == kBesideBest);

// The candidates of a stream.
template <class T>
struct Kept {
  T* utilities;
  int64_t* indices;
  int64_t room, count, b;  // room: how many there may be between two runs of a filter
  T threshold;

  // Well below the room, so that it takes many rows until the next cut.
  void cut() {
    const T estimate = estimate_threshold(utilities, count, b);
    const auto reach = std::count_if(utilities, utilities + count, [&](T utility) { return utility >= estimate; });
    if (reach < b || 2 * reach > room + b) return cut_exactly();
    int64_t left = 0;
    for (int64_t i = 0; i < count; ++i) {
      utilities[left] = utilities[i];
      indices[left] = indices[i];
      left += utilities[i] >= estimate;
    }
    count = left;
    threshold = estimate;
  }

  // Where many are equal, only their order says which of them stay.
  void cut_exactly() {
    std::vector<Candidate<T, int64_t>> candidates;
    for (int64_t i = 0; i < count; ++i) candidates.push_back({utilities[i], indices[i]});
    sort_by_index(candidates);
    sort_candidates(candidates, b);
    count = b;
    for (int64_t i = 0; i < count; ++i) {
      utilities[i] = candidates[size_t(i)].utility;
      indices[i] = candidates[size_t(i)].index;
    }
    threshold = utilities[b - 1];
  }
};

// `own`: the indices of the batch's rows, or null.
template <class T>
void keep(Kept<T>& kept, const T* batch, const int64_t* own, int64_t rows, int64_t* nan, int64_t* highest) {
  const auto filter_run = PRUNEFUSE_CHOOSE(filter<T>);
  int32_t positions[kFilterRoom];
  for (int64_t begin = 0; begin < rows; begin += kFilterRun) {
    const int64_t run = std::min(rows - begin, kFilterRun);
    int64_t first = *highest + 1, last = *highest + run;
    if (own != nullptr) {
      first = *std::min_element(own + begin, own + begin + run);
      last = *std::max_element(own + begin, own + begin + run);
    }
    // Rows after all candidates lose to b of them where they are but equal to the threshold.
    const bool equals = first <= *highest || kept.threshold == -std::numeric_limits<T>::infinity();
    const int64_t count = filter_run(batch + begin, run, kept.threshold, equals, positions, nan);
    for (int64_t i = 0; i < count; ++i) {
      kept.utilities[kept.count] = batch[begin + positions[i]];
      kept.indices[kept.count++] = own != nullptr ? own[begin + positions[i]] : first + positions[i];
    }
    *highest = std::max(*highest, last);
    if (kept.count > kept.room) kept.cut();
  }
}

void keep_best_(Tensor best, Tensor indices, Tensor threshold, Tensor counts, int64_t b, const Tensor& batch,
                std::optional<Tensor> batch_indices) {
  const auto run = [](const auto& stream) {
    using T = std::remove_reference_t<decltype(*stream.threshold)>;
    const int64_t count = stream.counts[0];
    check(count >= 0 && count <= stream.room, "keep_best_", "counts[0] must lie in [0, ", stream.room, "], got ",
          count);
    Kept<T> kept{stream.utilities, stream.indices, stream.room, count, stream.b, *stream.threshold};
    keep(kept, stream.batch, stream.batch_indices, stream.rows, stream.counts + 1, stream.counts + 2);
    stream.counts[0] = kept.count;
    *stream.threshold = kept.threshold;
  };
  prunefuse::keep_best_(best, indices, threshold, counts, b, batch, batch_indices, run);
}

}  // namespace
}  // namespace prunefuse::cpu

STABLE_TORCH_LIBRARY_IMPL(prunefuse, CPU, m) { m.impl("keep_best_", TORCH_BOX(&prunefuse::cpu::keep_best_)); }
