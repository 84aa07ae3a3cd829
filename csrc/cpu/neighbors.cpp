// Exact nearest neighbors on the CPU: csrc/neighbors.h says how.
//
// A tile of queries meets all references, tile by tile. Each of its rows keeps its candidates in a list of bounded
// length, and the k-th smallest distance by the time it was last cut. A list that stays too long (many references
// nearly as far as the k-th) has its distances computed exactly and is cut to k.
#include "../neighbors.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "../math/neighbors.h"
#include "isa.h"
#include "kernels/neighbors.h"

namespace prunefuse::cpu {
namespace {

constexpr int64_t kGrainValues = 32768;

struct Neighbor {
  double squared;
  int64_t row;
};

inline bool nearer(const Neighbor& a, const Neighbor& b) {
  return a.squared < b.squared || (a.squared == b.squared && a.row < b.row);
}

template <class Stored>
class Searcher {
 public:
  using Acc = accumulate_t<Stored>;

  Searcher(const Tensor& queries, const Tensor& references, const Neighbors& search)
      : queries_(static_cast<const Stored*>(queries.data_ptr())),
        references_(static_cast<const Stored*>(references.data_ptr())),
        rows_(queries.size(0)),
        count_(references.size(0)),
        width_(queries.size(1)),
        search_(search),
        room_(2 * search.k + 2 * kNeighborRun),
        tile_(std::min(rows_, std::max<int64_t>(128, std::min<int64_t>(2048, (int64_t{1} << 21) / room_)))),
        factors_(static_cast<size_t>(count_)),
        origin_(static_cast<size_t>(width_), Acc(0)),
        norms_(static_cast<size_t>(count_)),
        query_factors_(static_cast<size_t>(tile_)),
        query_norms_(static_cast<size_t>(tile_)),
        lengths_(static_cast<size_t>(tile_)),
        exact_lengths_(static_cast<size_t>(tile_)),
        farthest_(static_cast<size_t>(tile_)),
        keys_(new Acc[static_cast<size_t>(tile_ * room_)]),
        list_(new int64_t[static_cast<size_t>(tile_ * room_)]),
        exact_(new double[static_cast<size_t>(tile_ * search.k)]) {
    const auto dtype =
        sizeof(Acc) == sizeof(double) ? torch::headeronly::ScalarType::Double : torch::headeronly::ScalarType::Float;
    const int64_t columns = std::min(count_, kReferenceTile);
    query_tile_ = torch::stable::new_empty(queries, {tile_, width_}, dtype);
    reference_tile_ = torch::stable::new_empty(queries, {columns, width_}, dtype);
    products_ = torch::stable::new_empty(queries, {tile_, columns}, dtype);
    find_factors(references_, count_, factors_.data());
    find_origin();
    for (int64_t start = 0; start < count_; start += columns) {
      const int64_t count = std::min(columns, count_ - start);
      prepare(references_ + start * width_, count, factors_.data() + start, reference_tile_);
      find_norms(reference_tile_, count, factors_.data() + start, norms_.data() + start);
    }
    largest_ = *std::max_element(norms_.begin(), norms_.end());
  }

  void run(Acc* distances, int64_t* indices) {
    for (int64_t first = 0; first < rows_; first += tile_) {
      const int64_t rows = std::min(tile_, rows_ - first);
      const Stored* block = queries_ + first * width_;
      find_factors(block, rows, query_factors_.data());
      prepare(block, rows, query_factors_.data(), query_tile_);
      find_norms(query_tile_, rows, query_factors_.data(), query_norms_.data());
      std::fill(lengths_.begin(), lengths_.end(), 0);
      std::fill(exact_lengths_.begin(), exact_lengths_.end(), 0);
      std::fill(farthest_.begin(), farthest_.end(), std::numeric_limits<Acc>::infinity());
      for (int64_t start = 0; start < count_; start += kReferenceTile) {
        take(start, std::min(kReferenceTile, count_ - start), block, rows);
      }
      for_rows(rows, room_, [&](int64_t i) {
        finish(i, block + i * width_, distances + (first + i) * search_.k, indices + (first + i) * search_.k);
      });
    }
  }

 private:
  template <class Body>
  static void for_rows(int64_t rows, int64_t work, const Body& body) {
    torch::stable::parallel_for(0, rows, kGrainValues / work + 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) body(i);
    });
  }

  // What a row is multiplied by: the scale, for cosine also 1 / |row|; 0 for a row of zeros.
  void find_factors(const Stored* rows, int64_t count, double* factors) {
    if (!search_.cosine) return std::fill(factors, factors + count, search_.scale);
    const auto norm = PRUNEFUSE_CHOOSE(squared_norm<Stored>);
    for_rows(count, width_, [&](int64_t i) {
      const double squared = norm(rows + i * width_, search_.scale, width_);
      factors[i] = squared > 0 ? search_.scale / std::sqrt(squared) : 0;
    });
  }

  // About the mean of the references. It changes how many candidates are computed again, never the result.
  void find_origin() {
    constexpr int64_t kSample = 1024;
    const int64_t sample = std::min(count_, kSample);
    std::vector<double> sums(static_cast<size_t>(width_), 0.0);
    for (int64_t i = 0; i < sample; ++i) {
      const int64_t row = i * count_ / sample;
      for (int64_t j = 0; j < width_; ++j) {
        sums[static_cast<size_t>(j)] += widen(references_[row * width_ + j]) * factors_[static_cast<size_t>(row)];
      }
    }
    for (size_t j = 0; j < sums.size(); ++j) origin_[j] = static_cast<Acc>(sums[j] / static_cast<double>(sample));
  }

  void prepare(const Stored* rows, int64_t count, const double* factors, const Tensor& prepared) {
    const auto kernel = PRUNEFUSE_CHOOSE(prepare_row<Stored>);
    Acc* const to = static_cast<Acc*>(prepared.data_ptr());
    for_rows(count, width_,
             [&](int64_t i) { kernel(rows + i * width_, factors[i], origin_.data(), width_, to + i * width_); });
  }

  template <class Norm>
  void find_norms(const Tensor& prepared, int64_t count, const double* factors, Norm* norms) {
    const auto kernel = PRUNEFUSE_CHOOSE(squared_norm<Acc>);
    const Acc* const rows = static_cast<const Acc*>(prepared.data_ptr());
    for_rows(count, width_, [&](int64_t i) {
      // The cosine distance of a row of zeros is 1 to all: squared, it lies 2 from every unit vector, not 1.
      norms[i] = static_cast<Norm>(kernel(rows + i * width_, 1, width_) + (factors[i] == 0 ? 1 : 0));
    });
  }

  // References start to start + count meet the tile of queries.
  void take(int64_t start, int64_t count, const Stored* block, int64_t rows) {
    prepare(references_ + start * width_, count, factors_.data() + start, reference_tile_);
    Tensor products = first_rows(products_, rows);
    products = torch::stable::narrow(products, 1, 0, count);
    product(first_rows(query_tile_, rows), first_rows(reference_tile_, count), products);
    const Acc* const values = static_cast<const Acc*>(products_.data_ptr());
    const int64_t stride = products_.size(1);
    for_rows(rows, count, [&](int64_t i) { filter(i, block + i * width_, values + i * stride, start, count); });
  }

  // Products of row i with references start to start + count: what may be among its nearest joins its list.
  void filter(int64_t i, const Stored* query, const Acc* products, int64_t start, int64_t count) {
    const auto below = PRUNEFUSE_CHOOSE(keys_below<Acc>);
    const auto row = static_cast<size_t>(i);
    Acc* const keys = keys_.get() + i * room_;
    int64_t* const references = list_.get() + i * room_;
    int64_t length = lengths_[row];
    int32_t positions[kNeighborRun + 1];
    const double margin = slack(row);
    Acc bar = bar_of(row, margin);
    for (int64_t begin = 0; begin < count; begin += kNeighborRun) {
      const int64_t found = below(products + begin, norms_.data() + start + begin,
                                  std::min(kNeighborRun, count - begin), bar, keys + length, positions);
      for (int64_t n = 0; n < found; ++n) references[length + n] = start + begin + positions[n];
      length += found;
      if (length >= room_ - kNeighborRun) {
        length = cut(row, query, length, margin);
        bar = bar_of(row, margin);
      }
    }
    lengths_[row] = length;
  }

  // Twice how far a key may be from the truth.
  double slack(size_t row) const {
    return 2 * product_error<Acc>(std::sqrt(query_norms_[row]), std::sqrt(largest_), width_, search_.input_roundoff,
                                  search_.cosine ? 2 : 0);
  }

  // Keys above it are not among the nearest. Rounded up.
  Acc bar_of(size_t row, double margin) const {
    constexpr Acc infinity = std::numeric_limits<Acc>::infinity();
    return std::nextafter(static_cast<Acc>(static_cast<double>(farthest_[row]) + margin), infinity);
  }

  // Leaves out what cannot be among the k nearest; fewer than room_ - kNeighborRun references stay.
  int64_t cut(size_t row, const Stored* query, int64_t length, double margin) {
    length = keep_possible(row, length, margin);
    if (length < room_ - kNeighborRun) return length;
    std::vector<Neighbor> list = exact(row, query, length);
    const auto k = static_cast<size_t>(search_.k);
    std::nth_element(list.begin(), list.begin() + search_.k - 1, list.end(), nearer);
    farthest_[row] = std::numeric_limits<Acc>::lowest();
    for (size_t n = 0; n < k; ++n) {
      const size_t at = row * static_cast<size_t>(room_) + n;
      keys_[at] = static_cast<Acc>(list[n].squared - query_norms_[row]);
      list_[at] = list[n].row;
      exact_[row * k + n] = list[n].squared;
      farthest_[row] = std::max(farthest_[row], keys_[at]);
    }
    exact_lengths_[row] = search_.k;
    return search_.k;
  }

  int64_t keep_possible(size_t row, int64_t length, double margin) {
    if (length <= search_.k) return length;
    Acc* const keys = keys_.get() + static_cast<int64_t>(row) * room_;
    int64_t* const references = list_.get() + static_cast<int64_t>(row) * room_;
    double* const squared = exact_.get() + static_cast<int64_t>(row) * search_.k;
    farthest_[row] = PRUNEFUSE_CHOOSE(at_least_smallest<Acc>)(keys, length, search_.k);
    const Acc bar = bar_of(row, margin);
    const int64_t known = exact_lengths_[row];
    int64_t kept = 0;
    for (int64_t n = 0; n < length; ++n) {
      if (n == known) exact_lengths_[row] = kept;
      if (n < known) squared[kept] = squared[n];
      keys[kept] = keys[n];
      references[kept] = references[n];
      kept += keys[n] <= bar;
    }
    if (known == length) exact_lengths_[row] = kept;
    return kept;
  }

  // The squared distances of a list, those that are known from where they are kept.
  std::vector<Neighbor> exact(size_t row, const Stored* query, int64_t length) const {
    const auto distance = PRUNEFUSE_CHOOSE(squared_distance<Stored>);
    const int64_t* const references = list_.get() + static_cast<int64_t>(row) * room_;
    const double* const squared = exact_.get() + static_cast<int64_t>(row) * search_.k;
    const double a = query_factors_[row];
    std::vector<Neighbor> list(static_cast<size_t>(length));
    for (int64_t n = 0; n < length; ++n) {
      const int64_t reference = references[n];
      const double b = factors_[static_cast<size_t>(reference)];
      Neighbor& neighbor = list[static_cast<size_t>(n)];
      neighbor.row = reference;
      if (n < exact_lengths_[row]) {
        neighbor.squared = squared[n];
      } else if (a == 0 || b == 0) {
        neighbor.squared = 2;  // see find_norms
      } else {
        neighbor.squared = distance(query, a, references_ + reference * width_, b, width_);
      }
    }
    return list;
  }

  void finish(int64_t i, const Stored* query, Acc* distances, int64_t* indices) {
    const auto row = static_cast<size_t>(i);
    std::vector<Neighbor> list = exact(row, query, keep_possible(row, lengths_[row], slack(row)));
    if (list.size() > static_cast<size_t>(search_.k)) {
      std::nth_element(list.begin(), list.begin() + search_.k - 1, list.end(), nearer);
      list.resize(static_cast<size_t>(search_.k));
    }
    std::sort(list.begin(), list.end(), nearer);
    for (const Neighbor& neighbor : list) {
      const double squared = neighbor.squared;
      *distances++ = static_cast<Acc>(search_.cosine ? squared / 2 : std::sqrt(squared) / search_.scale);
      *indices++ = neighbor.row;
    }
  }

  const Stored* queries_;
  const Stored* references_;
  int64_t rows_, count_, width_;
  Neighbors search_;
  int64_t room_;                 // of a list
  int64_t tile_;                 // queries at a time
  std::vector<double> factors_;  // of the references
  std::vector<Acc> origin_;
  std::vector<Acc> norms_;  // squared, of the prepared references
  double largest_ = 0;      // of them
  std::vector<double> query_factors_;
  std::vector<double> query_norms_;  // squared
  // The candidates of each query in the tile: references and their keys, the squared distance less the query's squared
  // norm. The first of them may be exact.
  std::vector<int64_t> lengths_, exact_lengths_;
  std::vector<Acc> farthest_;  // k candidates' keys are at most this
  std::unique_ptr<Acc[]> keys_;
  std::unique_ptr<int64_t[]> list_;
  std::unique_ptr<double[]> exact_;
  Tensor query_tile_, reference_tile_, products_;
};

std::tuple<Tensor, Tensor> nearest_neighbors(const Tensor& queries, const Tensor& references, int64_t k, bool cosine,
                                             double scale, double input_roundoff) {
  const auto run = [](const Tensor& q, const Tensor& r, const Tensor& distances, const Tensor& indices,
                      const Neighbors& search, auto stored) {
    using Stored = decltype(stored);
    Searcher<Stored>(q, r, search)
        .run(static_cast<accumulate_t<Stored>*>(distances.data_ptr()), static_cast<int64_t*>(indices.data_ptr()));
  };
  return prunefuse::nearest_neighbors(queries, references, k, cosine, scale, input_roundoff, run);
}

}  // namespace
}  // namespace prunefuse::cpu

STABLE_TORCH_LIBRARY_IMPL(prunefuse, CPU, m) {
  m.impl("nearest_neighbors", TORCH_BOX(&prunefuse::cpu::nearest_neighbors));
}
