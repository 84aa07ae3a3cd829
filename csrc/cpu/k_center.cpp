// Greedy k-center on the CPU, lazily: a row's distance to its nearest center only ever falls, so the distance known
// from the centers applied so far is an upper bound. The row with the largest bound is brought up to date; if it still
// leads, it is the pick. Most rows soon lie below the radius for good and are never read again, yet the picks are those
// of the full computation, bit for bit: every distance is computed the same way whenever it is computed.
//
// Where many rows must be brought up to date at once (the first picks, many labeled rows, data on which the bounds are
// loose), that is one parallel pass over the rows above the best up-to-date one, as the full computation would do for
// every pick. Extra memory is O(N): a norm, a bound and a count per row.
#include "../k_center.h"

#include <torch/csrc/stable/library.h>

#include <memory>
#include <vector>

#include "isa.h"
#include "kernels/k_center.h"

namespace prunefuse::cpu {
namespace {

using torch::stable::Tensor;

constexpr int64_t kGrainValues = 65536;

// Rows in blocks that each know their largest bound: finding the leader takes one look at every block and at one
// block's rows.
template <class T>
class LazyPool {
 public:
  LazyPool(const T* features, int64_t rows, int64_t width, const T* weights, T least)
      : rows_(rows), finite_(new bool[size_t(rows)]), nearest_(size_t(rows)), applied_(size_t(rows), 0) {
    all_ = {features, width, nullptr, 0, weights, least};
    while (block_ * block_ < rows) block_ *= 2;
    const int64_t blocks = (rows + block_ - 1) / block_;
    leader_.resize(size_t(blocks));
    bound_.resize(size_t(blocks));
    for_blocks(width, [&](int64_t block, int64_t begin, int64_t end) {
      find_finite_(features, width, finite_.get(), begin, end);
      for (int64_t i = begin; i < end; ++i) {
        if (weights) finite_[size_t(i)] &= weights[i] >= 0 && weights[i] <= std::numeric_limits<T>::max();
        nearest_[size_t(i)] = finite_[size_t(i)] ? std::numeric_limits<T>::infinity() : T(-1);
      }
      refresh(block);
    });
  }

  // Takes a row out of the pool and makes it a center, unless it is not finite and so has no distances. Nothing is
  // computed yet.
  void add_center(int64_t row) {
    nearest_[size_t(row)] = -1;
    refresh(row / block_);
    if (!finite_[size_t(row)]) return;
    centers_.push_back(row);
    all_.centers = centers_.data();
    all_.count = static_cast<int64_t>(centers_.size());
  }

  // The row farthest from all centers, the lower one on ties; -1 if no row is left.
  int64_t farthest() {
    T best = -1;  // the largest distance that is up to date
    for (int64_t updates = 0;; ++updates) {
      const int64_t block = largest_(bound_.data(), static_cast<int64_t>(bound_.size()));
      const int64_t row = leader_[size_t(block)];
      if (bound_[size_t(block)] < 0) return -1;
      if (applied_[size_t(row)] == all_.count) return row;
      if (updates < block_) {
        apply_(all_, &row, 1, nearest_.data(), applied_.data());
        best = nearest_[size_t(row)] > best ? nearest_[size_t(row)] : best;
        refresh(block);
      } else {
        update_from(best);
      }
    }
  }

 private:
  template <class Body>
  void for_blocks(int64_t work_per_row, const Body& body) {
    const int64_t grain = kGrainValues / (work_per_row * block_ + 1) + 1;
    torch::stable::parallel_for(0, static_cast<int64_t>(bound_.size()), grain, [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        const int64_t end = (block + 1) * block_;
        body(block, block * block_, end < rows_ ? end : rows_);
      }
    });
  }

  // Brings every row up to date whose bound is not below `lowest`.
  void update_from(T lowest) {
    for_blocks(all_.width, [&](int64_t block, int64_t begin, int64_t end) {
      if (bound_[size_t(block)] < lowest) return;
      int64_t stale[kRun];
      int64_t count = 0;
      const auto flush = [&] {
        if (count > 0) apply_(all_, stale, count, nearest_.data(), applied_.data());
        count = 0;
      };
      for (int64_t i = begin; i < end; ++i) {
        if (nearest_[size_t(i)] < 0 || nearest_[size_t(i)] < lowest || applied_[size_t(i)] == all_.count) continue;
        stale[count++] = i;
        if (count == kRun) flush();
      }
      flush();
      refresh(block);
    });
  }

  void refresh(int64_t block) {
    const int64_t begin = block * block_;
    const int64_t end = begin + block_ < rows_ ? begin + block_ : rows_;
    const int64_t row = begin + largest_(nearest_.data() + begin, end - begin);
    leader_[size_t(block)] = row;
    bound_[size_t(block)] = nearest_[size_t(row)];
  }

  static constexpr int64_t kRun = 64;

  int64_t rows_;
  int64_t block_ = 64;
  Centers<T> all_;
  std::unique_ptr<bool[]> finite_;  // not vector<bool>: threads write neighboring elements
  std::vector<T> nearest_;          // the bound; -1: not to be picked
  std::vector<int32_t> applied_;
  std::vector<int64_t> centers_;
  std::vector<int64_t> leader_;
  std::vector<T> bound_;
  decltype(PRUNEFUSE_CHOOSE(find_finite<T>)) find_finite_ = PRUNEFUSE_CHOOSE(find_finite<T>);
  decltype(PRUNEFUSE_CHOOSE(apply_centers<T>)) apply_ = PRUNEFUSE_CHOOSE(apply_centers<T>);
  decltype(PRUNEFUSE_CHOOSE(largest<T>)) largest_ = PRUNEFUSE_CHOOSE(largest<T>);
};

template <class T>
void pick(LazyPool<T> pool, const int64_t* labeled, int64_t labeled_count, int64_t start, int64_t* picks, int64_t b) {
  for (int64_t i = 0; i < labeled_count; ++i) pool.add_center(labeled[i]);
  for (int64_t i = 0; i < b; ++i) {
    picks[i] = i == 0 && start >= 0 ? start : pool.farthest();
    if (picks[i] >= 0) pool.add_center(picks[i]);
  }
}

Tensor k_center_greedy(const Tensor& features, const Tensor& labeled, int64_t b, int64_t start,
                       std::optional<Tensor> weights, double least) {
  const auto run = [&](const Tensor& x, const Tensor& known, const auto* factors, auto limit, const Tensor& picks,
                       auto stored) {
    using T = decltype(stored);
    constexpr const char* op = "k_center_greedy";
    const int64_t rows = x.size(0);
    const int64_t* indices = static_cast<const int64_t*>(known.data_ptr());
    for (int64_t i = 0; i < known.numel(); ++i) {
      check(indices[i] >= 0 && indices[i] < rows, op, "labeled must hold rows of features (0..", rows - 1, "), got ",
            indices[i]);
      check(indices[i] != start, op, "start is already labeled: ", start);
    }
    if (b == 0) return;
    pick(LazyPool<T>(static_cast<const T*>(x.data_ptr()), rows, x.size(1), factors, limit), indices, known.numel(),
         start, static_cast<int64_t*>(picks.data_ptr()), b);
  };
  return prunefuse::k_center_greedy(features, labeled, b, start, weights, least, run);
}

}  // namespace
}  // namespace prunefuse::cpu

STABLE_TORCH_LIBRARY_IMPL(prunefuse, CPU, m) { m.impl("k_center_greedy", TORCH_BOX(&prunefuse::cpu::k_center_greedy)); }
