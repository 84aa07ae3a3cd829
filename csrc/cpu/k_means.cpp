// k-means++ on the CPU: for every pick one pass over all rows, which shortens their distances to the nearest pick and
// adds them up.
//
// Sums are kept for blocks of rows of a fixed size, each added up in the order of its rows, and the blocks' sums in
// theirs: so a draw falls on the same row whatever the number of threads, and is found by one look at the blocks and at
// one block's rows. Extra memory is three numbers a row.
#include "../k_means.h"

#include <torch/csrc/stable/library.h>

#include <memory>
#include <vector>

#include "isa.h"
#include "kernels/k_means.h"

namespace prunefuse::cpu {
namespace {

using torch::stable::Tensor;

constexpr int64_t kBlock = 256;
constexpr int64_t kGrainValues = 65536;

template <class T>
class Seeding {
 public:
  Seeding(const T* residuals, int64_t classes, const T* features, int64_t rows, int64_t width, const double* weights)
      : rows_(rows),
        weights_(weights),
        squares_(new double[static_cast<size_t>(3 * rows)]),
        nearest_(squares_.get() + 2 * rows) {
    double* const of_residuals = squares_.get();
    double* const of_features = of_residuals + rows;
    outer_ = {residuals, classes, features, width, of_residuals, of_features};
    blocks_.resize(static_cast<size_t>((rows + kBlock - 1) / kBlock));
    for_blocks([&](Block& block, int64_t begin, int64_t end) {
      find_squares_(residuals, classes, of_residuals, begin, end);
      find_squares_(features, width, of_features, begin, end);
      for (int64_t i = begin; i < end; ++i) {
        constexpr double largest = kLargestSquare<T>;
        bool usable = of_residuals[i] < largest && of_features[i] < largest;
        if (weights) usable &= weights[i] >= 0 && weights[i] <= std::numeric_limits<double>::max();
        nearest_[i] = usable ? kNoPick : -1;
        if (weights) block.weight += weight_of(i);
        block.left += usable;
      }
    });
  }

  // The row with the largest embedding, the lower of equals; -1 if there is none.
  int64_t largest() const {
    int64_t best = -1;
    double norm = -1;
    for (int64_t i = 0; i < rows_; ++i) {
      const double own = outer_.residual_squares[i] * outer_.feature_squares[i];
      if (nearest_[i] >= 0 && own > norm) {
        norm = own;
        best = i;
      }
    }
    return best;
  }

  // The row that a number in [0, 1) falls on; -1 if none is left.
  int64_t draw(double number) const {
    const auto of_row = [&](int64_t row) { return weight_of(row); };
    const auto one_each = [&](int64_t row) { return nearest_[row] >= 0 ? 1.0 : 0.0; };
    const int64_t row = draw(number, [](const Block& block) { return block.weight; }, of_row);
    if (row >= 0) return row;
    return draw(number, [](const Block& block) { return static_cast<double>(block.left); }, one_each);
  }

  // Takes a row out of the pool, as a pick.
  void add(int64_t pick) {
    nearest_[pick] = -1;
    for_blocks([&](Block& block, int64_t begin, int64_t end) {
      apply_(outer_, pick, nearest_, begin, end);
      block = {};
      for (int64_t i = begin; i < end; ++i) {
        if (nearest_[i] < 0) continue;
        block.weight += weight_of(i);
        ++block.left;
      }
    });
  }

 private:
  static constexpr double kNoPick = std::numeric_limits<double>::infinity();

  // By which a row is drawn: before the first pick its own weight alone.
  double weight_of(int64_t row) const {
    if (!(nearest_[row] > 0)) return 0;
    if (!weights_) return nearest_[row];
    return nearest_[row] == kNoPick ? weights_[row] : nearest_[row] * weights_[row];
  }

  struct Block {
    double weight = 0;  // the sum of its rows' distances
    int64_t left = 0;   // rows that can be picked
  };

  template <class Body>
  void for_blocks(const Body& body) {
    const int64_t grain = kGrainValues / (kBlock * (outer_.classes + outer_.width + 1)) + 1;
    torch::stable::parallel_for(0, static_cast<int64_t>(blocks_.size()), grain, [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        const int64_t end = (block + 1) * kBlock;
        body(blocks_[static_cast<size_t>(block)], block * kBlock, end < rows_ ? end : rows_);
      }
    });
  }

  // The first row at which the weights' sum exceeds so much of the total: the last with a weight, where rounding has
  // brought one to the other; -1 if there is none.
  template <class OfBlock, class OfRow>
  int64_t draw(double number, const OfBlock& of_block, const OfRow& of_row) const {
    double total = 0;
    for (const Block& block : blocks_) total += of_block(block);
    const double target = number * total;
    double sum = 0, before = 0;
    int64_t chosen = -1;
    for (size_t block = 0; block < blocks_.size() && sum <= target; ++block) {
      if (!(of_block(blocks_[block]) > 0)) continue;
      chosen = static_cast<int64_t>(block);
      before = sum;
      sum += of_block(blocks_[block]);
    }
    if (chosen < 0) return -1;
    int64_t row = -1;
    sum = 0;
    const int64_t end = (chosen + 1) * kBlock < rows_ ? (chosen + 1) * kBlock : rows_;
    for (int64_t i = chosen * kBlock; i < end && sum <= target - before; ++i) {
      if (!(of_row(i) > 0)) continue;
      row = i;
      sum += of_row(i);
    }
    return row;
  }

  int64_t rows_;
  const double* weights_;  // null: 1 each
  std::unique_ptr<double[]> squares_;
  double* nearest_;  // squared distance to the nearest pick; -1: not to be picked
  OuterRows<T> outer_;
  std::vector<Block> blocks_;
  decltype(PRUNEFUSE_CHOOSE(find_squares<T>)) find_squares_ = PRUNEFUSE_CHOOSE(find_squares<T>);
  decltype(PRUNEFUSE_CHOOSE(apply_seed<T>)) apply_ = PRUNEFUSE_CHOOSE(apply_seed<T>);
};

Tensor k_means_plus_plus(const Tensor& residuals, const Tensor& features, const Tensor& draws,
                         std::optional<Tensor> weights) {
  const auto run = [](const Tensor& r, const Tensor& h, const Tensor& u, const double* factors, const Tensor& picks,
                      auto stored) {
    using T = decltype(stored);
    const auto* const numbers = static_cast<const double*>(u.data_ptr());
    for (int64_t i = 0; i < u.numel(); ++i) {
      check(numbers[i] >= 0 && numbers[i] < 1, "k_means_plus_plus", "draws must lie in [0, 1), got ", numbers[i]);
    }
    Seeding<T> seeding(static_cast<const T*>(r.data_ptr()), r.size(1), static_cast<const T*>(h.data_ptr()), h.size(0),
                       h.size(1), factors);
    auto* const to = static_cast<int64_t*>(picks.data_ptr());
    for (int64_t i = 0; i < picks.numel(); ++i) {
      to[i] = i == 0 && !factors ? seeding.largest() : seeding.draw(numbers[i]);
      if (to[i] >= 0) seeding.add(to[i]);
    }
  };
  return prunefuse::k_means_plus_plus(residuals, features, draws, weights, run);
}

}  // namespace
}  // namespace prunefuse::cpu

STABLE_TORCH_LIBRARY_IMPL(prunefuse, CPU, m) {
  m.impl("k_means_plus_plus", TORCH_BOX(&prunefuse::cpu::k_means_plus_plus));
}
