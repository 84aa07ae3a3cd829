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
// Queries and references per product, whose result, 1 MB, is filtered while it is in the L2 cache.
constexpr int64_t kProductRows = 512, kReferenceTile = 512;
// Queries whose candidates' distances are computed together.
constexpr int64_t kTogether = 128;

struct Neighbor {
  double squared;
  int64_t row;
};

constexpr auto nearer = [](const Neighbor& a, const Neighbor& b) {
  return a.squared < b.squared || (a.squared == b.squared && a.row < b.row);
};

// Puts references and their squared distances in order, to `sorted`. As many bins as there are of them, by distance,
// and then hardly any is out of place: a third of the time of comparing alone for a thousand of them. `ends` is
// overwritten.
void sort_nearest(const double* squared, const int64_t* rows, size_t count, std::vector<Neighbor>& sorted,
                  std::vector<uint32_t>& ends) {
  constexpr size_t kFew = 64, kCrowded = 32;
  const auto sort = [&](size_t begin, size_t end) {
    std::sort(sorted.begin() + static_cast<int64_t>(begin), sorted.begin() + static_cast<int64_t>(end), nearer);
  };
  sorted.resize(count);
  double low = squared[0], high = low;
  for (size_t i = 0; i < count; ++i) {
    low = std::min(low, squared[i]);
    high = std::max(high, squared[i]);
  }
  const double scale = static_cast<double>(count - 1) / (high - low);
  if (count < kFew || !(scale > 0 && scale <= std::numeric_limits<double>::max())) {
    for (size_t i = 0; i < count; ++i) sorted[i] = {squared[i], rows[i]};
    return sort(0, count);
  }
  const auto bin_of = [&](size_t i) {
    return static_cast<size_t>(
        std::min(static_cast<int64_t>((squared[i] - low) * scale), static_cast<int64_t>(count - 1)));
  };
  ends.assign(count + 1, 0);
  for (size_t i = 0; i < count; ++i) ++ends[bin_of(i) + 1];
  for (size_t bin = 1; bin < count; ++bin) ends[bin] += ends[bin - 1];
  for (size_t i = 0; i < count; ++i) sorted[ends[bin_of(i)]++] = {squared[i], rows[i]};
  for (size_t bin = 0, begin = 0; bin < count; begin = ends[bin++]) {
    const size_t end = ends[bin];
    if (end - begin > kCrowded) {
      sort(begin, end);
      continue;
    }
    for (size_t at = begin + 1; at < end; ++at) {
      const Neighbor moved = sorted[at];
      size_t to = at;
      for (; to > begin && nearer(moved, sorted[to - 1]); --to) sorted[to] = sorted[to - 1];
      sorted[to] = moved;
    }
  }
}

template <class Body>
void for_rows(int64_t rows, int64_t work, const Body& body) {
  torch::stable::parallel_for(0, rows, kGrainValues / work + 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i);
  });
}

// Rows that are searched with or among, as they were given.
template <class Stored>
struct Rows {
  const Stored* values;
  int64_t count;
  int64_t width;

  const Stored* operator[](int64_t i) const { return values + i * width; }
  Rows part(int64_t first, int64_t rows) const { return {values + first * width, rows, width}; }
};

template <class Stored>
Rows<Stored> rows_of(const Tensor& tensor) {
  return {static_cast<const Stored*>(tensor.data_ptr()), tensor.size(0), tensor.size(1)};
}

template <class Acc>
Tensor new_matrix(const Tensor& like, int64_t rows, int64_t columns) {
  using torch::headeronly::ScalarType;
  return torch::stable::new_empty(like, {rows, columns},
                                  sizeof(Acc) == sizeof(double) ? ScalarType::Double : ScalarType::Float);
}

// What a row is multiplied by: the scale, for cosine also 1 / |row|; 0 for a row of zeros.
template <class Stored>
void find_factors(const Rows<Stored>& rows, const Neighbors& search, double* factors) {
  if (!search.cosine) return std::fill(factors, factors + rows.count, search.scale);
  const auto norm = PRUNEFUSE_CHOOSE(squared_norm<Stored>);
  for_rows(rows.count, rows.width, [&](int64_t i) {
    const double squared = norm(rows[i], search.scale, rows.width);
    factors[i] = squared > 0 ? search.scale / std::sqrt(squared) : 0;
  });
}

template <class Stored>
void prepare(const Rows<Stored>& rows, const double* factors, const accumulate_t<Stored>* origin,
             const Tensor& prepared) {
  const auto kernel = PRUNEFUSE_CHOOSE(prepare_row<Stored>);
  auto* const to = static_cast<accumulate_t<Stored>*>(prepared.data_ptr());
  for_rows(rows.count, rows.width,
           [&](int64_t i) { kernel(rows[i], factors[i], origin, rows.width, to + i * rows.width); });
}

// Squared norms of `count` prepared rows.
template <class Acc, class Norm>
void find_norms(const Tensor& prepared, int64_t count, const double* factors, Norm* norms) {
  const auto kernel = PRUNEFUSE_CHOOSE(squared_norm<Acc>);
  const Rows<Acc> rows = rows_of<Acc>(prepared);
  for_rows(count, rows.width, [&](int64_t i) {
    // The cosine distance of a row of zeros is 1 to all: squared, it lies 2 from every unit vector, not 1.
    norms[i] = static_cast<Norm>(kernel(rows[i], 1, rows.width) + (factors[i] == 0 ? 1 : 0));
  });
}

template <class Stored>
struct References {
  using Acc = accumulate_t<Stored>;

  References(const Tensor& references, const Neighbors& given)
      : rows(rows_of<Stored>(references)),
        search(given),
        factors(static_cast<size_t>(rows.count)),
        origin(static_cast<size_t>(rows.width)),
        norms(static_cast<size_t>(rows.count)) {
    find_factors(rows, search, factors.data());
    find_origin();
    const Tensor prepared = new_matrix<Acc>(references, std::min(rows.count, kReferenceTile), rows.width);
    for (int64_t start = 0; start < rows.count; start += kReferenceTile) {
      const int64_t count = std::min(kReferenceTile, rows.count - start);
      prepare(rows.part(start, count), factors.data() + start, origin.data(), prepared);
      find_norms<Acc>(prepared, count, factors.data() + start, norms.data() + start);
    }
    largest = *std::max_element(norms.begin(), norms.end());
  }

  Rows<Stored> rows;
  Neighbors search;
  std::vector<double> factors;
  std::vector<Acc> origin;  // about the mean: it changes how many candidates are computed again, never the result
  std::vector<Acc> norms;   // squared, of the prepared rows
  double largest = 0;       // of them

 private:
  void find_origin() {
    constexpr int64_t kSample = 1024;
    const int64_t sample = std::min(rows.count, kSample);
    std::vector<double> sums(origin.size(), 0.0);
    for (int64_t i = 0; i < sample; ++i) {
      const int64_t row = i * rows.count / sample;
      for (size_t j = 0; j < sums.size(); ++j) sums[j] += widen(rows[row][j]) * factors[static_cast<size_t>(row)];
    }
    for (size_t j = 0; j < sums.size(); ++j) origin[j] = static_cast<Acc>(sums[j] / static_cast<double>(sample));
  }
};

// A tile of queries with their candidates.
template <class Stored>
class Queries {
 public:
  using Acc = accumulate_t<Stored>;

  Queries(const References<Stored>& among, const Tensor& like, int64_t rows)
      : among_(among),
        search_(among.search),
        width_(among.rows.width),
        room_(2 * search_.k + 2 * kNeighborRun),
        factors_(static_cast<size_t>(rows)),
        norms_(static_cast<size_t>(rows)),
        margins_(static_cast<size_t>(rows)),
        lengths_(static_cast<size_t>(rows)),
        exact_lengths_(static_cast<size_t>(rows)),
        farthest_(static_cast<size_t>(rows)),
        keys_(new Acc[static_cast<size_t>(rows * room_)]),
        list_(new int64_t[static_cast<size_t>(rows * room_)]),
        exact_(new double[static_cast<size_t>(rows * search_.k)]) {
    const int64_t columns = std::min(among.rows.count, kReferenceTile);
    prepared_ = new_matrix<Acc>(like, rows, width_);
    references_ = new_matrix<Acc>(like, columns, width_);
    products_ = new_matrix<Acc>(like, std::min(rows, kProductRows), columns);
  }

  // The nearest of `queries`, of which there are at most as many as the tile has rows.
  void run(const Rows<Stored>& queries, Acc* distances, int64_t* indices) {
    find_factors(queries, search_, factors_.data());
    prepare(queries, factors_.data(), among_.origin.data(), prepared_);
    find_norms<Acc>(prepared_, queries.count, factors_.data(), norms_.data());
    const double largest = std::sqrt(among_.largest);
    for (size_t row = 0; row < static_cast<size_t>(queries.count); ++row) {
      margins_[row] = 2 * product_error<Acc>(std::sqrt(norms_[row]), largest, width_, search_.input_roundoff,
                                             search_.cosine ? 2 : 0);
    }
    std::fill(lengths_.begin(), lengths_.end(), 0);
    std::fill(exact_lengths_.begin(), exact_lengths_.end(), 0);
    std::fill(farthest_.begin(), farthest_.end(), std::numeric_limits<Acc>::infinity());
    for (int64_t start = 0; start < among_.rows.count; start += kReferenceTile) {
      take(queries, start, std::min(kReferenceTile, among_.rows.count - start));
    }
    torch::stable::parallel_for(0, queries.count, kGrainValues / room_ + 1, [&](int64_t begin, int64_t end) {
      for (int64_t first = begin; first < end; first += kTogether) {
        finish(queries, first, std::min(first + kTogether, end), distances, indices);
      }
    });
  }

 private:
  // References start to start + count meet the queries.
  void take(const Rows<Stored>& queries, int64_t start, int64_t count) {
    prepare(among_.rows.part(start, count), among_.factors.data() + start, among_.origin.data(), references_);
    Tensor references = first_rows(references_, count);
    references = torch::stable::transpose(references, 0, 1);
    const Rows<Acc> values = rows_of<Acc>(products_);
    for (int64_t first = 0; first < queries.count; first += kProductRows) {
      const int64_t rows = std::min(kProductRows, queries.count - first);
      Tensor products = first_rows(products_, rows);
      products = torch::stable::narrow(products, 1, 0, count);
      multiply(torch::stable::narrow(prepared_, 0, first, rows), references, products);
      for_rows(rows, count, [&](int64_t i) { filter(first + i, queries[first + i], values[i], start, count); });
    }
  }

  // Products of row i with references start to start + count: what may be among its nearest joins its list.
  void filter(int64_t i, const Stored* query, const Acc* products, int64_t start, int64_t count) {
    const auto below = PRUNEFUSE_CHOOSE(keys_below<Acc>);
    const auto row = static_cast<size_t>(i);
    Acc* const keys = keys_.get() + i * room_;
    int64_t* const references = list_.get() + i * room_;
    int64_t length = lengths_[row];
    if (search_.k == 1) {  // then one look at the tile leaves hardly a candidate but the nearest
      const Acc key = PRUNEFUSE_CHOOSE(smallest_key<Acc>)(products, among_.norms.data() + start, count);
      farthest_[row] = std::min(farthest_[row], key);
    }
    Acc bar = bar_of(row);
    for (int64_t begin = 0; begin < count; begin += kNeighborRun) {
      length += below(products + begin, among_.norms.data() + start + begin, std::min(kNeighborRun, count - begin),
                      start + begin, bar, keys + length, references + length);
      if (length >= room_ - kNeighborRun) {
        length = cut(row, query, length);
        bar = bar_of(row);
      }
    }
    lengths_[row] = length;
  }

  // Keys above it are not among the nearest. Rounded up.
  Acc bar_of(size_t row) const {
    constexpr Acc infinity = std::numeric_limits<Acc>::infinity();
    return std::nextafter(static_cast<Acc>(static_cast<double>(farthest_[row]) + margins_[row]), infinity);
  }

  // Leaves out what cannot be among the k nearest; fewer than room_ - kNeighborRun references stay.
  int64_t cut(size_t row, const Stored* query, int64_t length) {
    length = keep_possible(row, length, search_.k + search_.k / 8);
    if (length < room_ - kNeighborRun) return length;
    std::vector<double> scaled(static_cast<size_t>(width_)), squared(static_cast<size_t>(length));
    find_exact(row, query, 0, length, scaled.data(), squared.data());
    std::vector<Neighbor> list(squared.size());
    for (size_t n = 0; n < list.size(); ++n) list[n] = {squared[n], list_[row * static_cast<size_t>(room_) + n]};
    const auto k = static_cast<size_t>(search_.k);
    std::nth_element(list.begin(), list.begin() + search_.k - 1, list.end(), nearer);
    farthest_[row] = std::numeric_limits<Acc>::lowest();
    for (size_t n = 0; n < k; ++n) {
      const size_t at = row * static_cast<size_t>(room_) + n;
      keys_[at] = static_cast<Acc>(list[n].squared - norms_[row]);
      list_[at] = list[n].row;
      exact_[row * k + n] = list[n].squared;
      farthest_[row] = std::max(farthest_[row], keys_[at]);
    }
    exact_lengths_[row] = search_.k;
    return search_.k;
  }

  // `enough`: how many may stay, apart from those within the margin.
  int64_t keep_possible(size_t row, int64_t length, int64_t enough) {
    if (length <= search_.k) return length;
    Acc* const keys = keys_.get() + static_cast<int64_t>(row) * room_;
    int64_t* const references = list_.get() + static_cast<int64_t>(row) * room_;
    double* const squared = exact_.get() + static_cast<int64_t>(row) * search_.k;
    farthest_[row] = PRUNEFUSE_CHOOSE(at_least_smallest<Acc>)(keys, length, search_.k, enough);
    const Acc bar = bar_of(row);
    const int64_t known = exact_lengths_[row];
    int64_t kept = 0;
    for (int64_t n = 0; n < known; ++n) {
      squared[kept] = squared[n];
      kept += keys[n] <= bar;
    }
    exact_lengths_[row] = kept;
    return PRUNEFUSE_CHOOSE(keep_keys<Acc>)(keys, references, length, bar);
  }

  // The squared distances of places begin to end of a list, those that are known from where they are kept. `scaled` has
  // room for a query.
  void find_exact(size_t row, const Stored* query, int64_t begin, int64_t end, double* scaled, double* squared) const {
    const int64_t* const references = list_.get() + static_cast<int64_t>(row) * room_;
    const double* const known = exact_.get() + static_cast<int64_t>(row) * search_.k;
    const int64_t computed = std::clamp(exact_lengths_[row], begin, end);
    std::copy(known + begin, known + computed, squared);
    const bool has_factors = search_.cosine || search_.scale != 1;
    PRUNEFUSE_CHOOSE(squared_distances<Stored>)
    (query, factors_[row], among_.rows.values, has_factors ? among_.factors.data() : nullptr, width_,
     references + computed, end - computed, scaled, squared + (computed - begin));
    for (int64_t n = computed; has_factors && n < end; ++n) {
      const double factor = among_.factors[static_cast<size_t>(references[n])];
      if (factor == 0 || factors_[row] == 0) squared[n - begin] = 2;  // see find_norms
    }
  }

  // The nearest of queries first to end. Where each has many candidates they are looked up together, a part of the
  // references after the other, which the cache then holds for all of them.
  void finish(const Rows<Stored>& queries, int64_t first, int64_t end, Acc* distances, int64_t* indices) {
    constexpr int64_t kPartBytes = int64_t{1} << 19, kFewest = 32;
    const int64_t count = among_.rows.count, rows = end - first;
    std::vector<int64_t> starts(static_cast<size_t>(rows + 1), 0);  // of their squared distances
    for (int64_t i = 0; i < rows; ++i) {
      const auto row = static_cast<size_t>(first + i), at = static_cast<size_t>(i);
      lengths_[row] = keep_possible(row, lengths_[row], search_.k);
      starts[at + 1] = starts[at] + lengths_[row];
    }
    std::vector<double> scaled(static_cast<size_t>(width_)), squared(static_cast<size_t>(starts.back()));
    const int64_t bytes = count * width_ * static_cast<int64_t>(sizeof(Stored));
    const int64_t parts = std::max<int64_t>(1, std::min(bytes / kPartBytes, starts.back() / (rows * kFewest)));
    std::vector<int64_t> done(static_cast<size_t>(rows), 0);
    for (int64_t part = 1; part <= parts; ++part) {
      for (int64_t i = 0; i < rows; ++i) {
        const auto row = static_cast<size_t>(first + i), at = static_cast<size_t>(i);
        // Known distances are in no order, and go with the first part.
        const int64_t* const references = list_.get() + (first + i) * room_;
        const int64_t* const from = references + std::max(done[at], exact_lengths_[row]);
        const int64_t to = std::lower_bound(from, references + lengths_[row], count * part / parts) - references;
        find_exact(row, queries[first + i], done[at], to, scaled.data(), squared.data() + starts[at] + done[at]);
        done[at] = to;
      }
    }
    std::vector<Neighbor> sorted;
    std::vector<uint32_t> ends;
    for (int64_t i = 0; i < rows; ++i) {
      const auto at_row = static_cast<size_t>(i);
      sort_nearest(squared.data() + starts[at_row], list_.get() + (first + i) * room_,
                   static_cast<size_t>(starts[at_row + 1] - starts[at_row]), sorted, ends);
      for (int64_t n = 0; n < search_.k; ++n) {
        const auto [square, reference] = sorted[static_cast<size_t>(n)];
        const int64_t at = (first + i) * search_.k + n;
        distances[at] = static_cast<Acc>(search_.cosine ? square / 2 : std::sqrt(square) / search_.scale);
        indices[at] = reference;
      }
    }
  }

  const References<Stored>& among_;
  Neighbors search_;
  int64_t width_;
  int64_t room_;  // of a list
  std::vector<double> factors_;
  std::vector<double> norms_;    // squared, of the prepared queries
  std::vector<double> margins_;  // twice how far a key may be from the truth
  // The candidates of each query: references and their keys, the squared distance less the query's squared norm. The
  // first of them may be exact.
  std::vector<int64_t> lengths_, exact_lengths_;
  std::vector<Acc> farthest_;  // k candidates' keys are at most this
  std::unique_ptr<Acc[]> keys_;
  std::unique_ptr<int64_t[]> list_;
  std::unique_ptr<double[]> exact_;
  Tensor prepared_, references_, products_;
};

// Queries are shared out among the threads, each with tiles of its own: a thread that waits for no other is not held up
// by what else the machine does. Few queries are searched for one tile after the other, with all threads in each.
template <class Stored>
void search_all(const Tensor& queries, const Tensor& references, const Tensor& distances, const Tensor& indices,
                const Neighbors& search) {
  using Acc = accumulate_t<Stored>;
  constexpr int64_t kFewest = 256, kMost = 2048, kRoom = int64_t{1} << 20;  // queries in a tile; candidates
  const Rows<Stored> rows = rows_of<Stored>(queries);
  const References<Stored> among(references, search);
  const auto threads = static_cast<int64_t>(torch::stable::get_num_threads());
  int64_t most = std::clamp(std::min(2 * kMost / threads, kRoom / search.k), kFewest, kMost);
  if (most > kProductRows) most -= most % kProductRows;  // a product of few rows takes nearly the time of one of many
  const auto run = [&](int64_t begin, int64_t end) {
    const int64_t tile = std::min(most, end - begin);
    Queries<Stored> worker(among, queries, tile);
    for (int64_t first = begin; first < end; first += tile) {
      worker.run(rows.part(first, std::min(tile, end - first)),
                 static_cast<Acc*>(distances.data_ptr()) + first * search.k,
                 static_cast<int64_t*>(indices.data_ptr()) + first * search.k);
    }
  };
  if (threads == 1 || rows.count < threads * kFewest) return run(0, rows.count);
  torch::stable::parallel_for(0, rows.count, kFewest, run);
}

std::tuple<Tensor, Tensor> nearest_neighbors(const Tensor& queries, const Tensor& references, int64_t k, bool cosine,
                                             double scale, double input_roundoff) {
  const auto run = [](const Tensor& q, const Tensor& r, const Tensor& distances, const Tensor& indices,
                      const Neighbors& search,
                      auto stored) { search_all<decltype(stored)>(q, r, distances, indices, search); };
  return prunefuse::nearest_neighbors(queries, references, k, cosine, scale, input_roundoff, run);
}

}  // namespace
}  // namespace prunefuse::cpu

STABLE_TORCH_LIBRARY_IMPL(prunefuse, CPU, m) {
  m.impl("nearest_neighbors", TORCH_BOX(&prunefuse::cpu::nearest_neighbors));
}
