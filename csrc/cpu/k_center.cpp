// Greedy k-center on the CPU: O(N) extra memory (a norm and a distance per row), one parallel pass over the rows per
// pick.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <vector>

#include "../dispatch.h"
#include "isa.h"
#include "kernels/k_center.h"

namespace prunefuse::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrainValues = 65536;

template <class T>
void pick(const T* features, int64_t rows, int64_t width, const int64_t* labeled, int64_t labeled_count, int64_t start,
          int64_t* picks, int64_t b) {
  const auto norms_of = PRUNEFUSE_CHOOSE(squared_norms<T>);
  const auto update = PRUNEFUSE_CHOOSE(update_nearest<T>);
  // One chunk per thread at most, and none below the grain: the chunks fix which task owns which slot of `farthest`.
  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t by_work = rows * width / kGrainValues + 1;
  const int64_t chunks = threads < by_work ? threads : by_work;
  const int64_t chunk = (rows + chunks - 1) / chunks;
  const auto for_chunks = [&](const auto& body) {
    torch::stable::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
      for (int64_t c = first; c < last; ++c) {
        const int64_t end = (c + 1) * chunk < rows ? (c + 1) * chunk : rows;
        if (c * chunk < end) body(c, c * chunk, end);
      }
    });
  };

  std::vector<T> norms(static_cast<size_t>(rows)), nearest(static_cast<size_t>(rows));
  for_chunks([&](int64_t, int64_t begin, int64_t end) {
    norms_of(features, width, norms.data(), begin, end);
    for (int64_t i = begin; i < end; ++i) {
      const bool finite = norms[static_cast<size_t>(i)] <= std::numeric_limits<T>::max();
      nearest[static_cast<size_t>(i)] = finite ? std::numeric_limits<T>::infinity() : T(-1);
    }
  });

  std::vector<Farthest<T>> farthest(static_cast<size_t>(chunks));
  // Takes `center` out of the pool and returns the row farthest from all centers so far.
  const auto add_center = [&](int64_t center) {
    // A row that is not finite has no distances: it changes nothing but its own availability.
    const bool usable = norms[static_cast<size_t>(center)] <= std::numeric_limits<T>::max();
    nearest[static_cast<size_t>(center)] = -1;
    Farthest<T> best;
    if (!usable) return best;
    for_chunks([&](int64_t c, int64_t begin, int64_t end) {
      farthest[static_cast<size_t>(c)] = update(features, width, norms.data(), center, nearest.data(), begin, end);
    });
    for (const Farthest<T>& candidate : farthest) {
      if (candidate.distance > best.distance) best = candidate;
    }
    return best;
  };

  Farthest<T> next;
  for (int64_t i = 0; i < labeled_count; ++i) {
    // Labeled rows leave the pool before the first distance, so that none is ever picked.
    nearest[static_cast<size_t>(labeled[i])] = -1;
  }
  for (int64_t i = 0; i < labeled_count; ++i) {
    const Farthest<T> found = add_center(labeled[i]);
    if (norms[static_cast<size_t>(labeled[i])] <= std::numeric_limits<T>::max()) next = found;
  }
  if (start >= 0) next.index = start;
  for (int64_t i = 0; i < b; ++i) {
    picks[i] = next.index;
    if (next.index >= 0 && i + 1 < b) next = add_center(next.index);
  }
}

Tensor k_center_greedy(const Tensor& features, const Tensor& labeled, int64_t b, int64_t start) {
  constexpr const char* op = "k_center_greedy";
  check_rank(op, "features", features, 2);
  check_rank(op, "labeled", labeled, 1);
  check_dtype(op, "labeled", labeled, ScalarType::Long);
  check_same_device(op, "labeled", labeled, "features", features);
  const int64_t rows = features.size(0);
  check(b >= 0 && b <= rows, op, "b must lie in [0, ", rows, "], got ", b);
  check(start >= -1 && start < rows, op, "start must be a row of features or -1, got ", start);
  check(start >= 0 || labeled.numel() > 0 || b == 0, op, "start must be given where nothing is labeled");
  const Tensor x = torch::stable::contiguous(features);
  const Tensor known = torch::stable::contiguous(labeled);
  const int64_t* indices = static_cast<const int64_t*>(known.data_ptr());
  for (int64_t i = 0; i < known.numel(); ++i) {
    check(indices[i] >= 0 && indices[i] < rows, op, "labeled must hold rows of features (0..", rows - 1, "), got ",
          indices[i]);
    check(indices[i] != start, op, "start is already labeled: ", start);
  }
  Tensor picks = torch::stable::new_empty(features, {b}, ScalarType::Long);
  dispatch_float_double(op, "features", features.scalar_type(), [&](auto stored) {
    using T = decltype(stored);
    if (b > 0) {
      pick(static_cast<const T*>(x.data_ptr()), rows, x.size(1), indices, known.numel(), start,
           static_cast<int64_t*>(picks.data_ptr()), b);
    }
  });
  return picks;
}

}  // namespace
}  // namespace prunefuse::cpu

STABLE_TORCH_LIBRARY_IMPL(prunefuse, CPU, m) { m.impl("k_center_greedy", TORCH_BOX(&prunefuse::cpu::k_center_greedy)); }
