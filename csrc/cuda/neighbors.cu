// Exact nearest neighbors on CUDA: csrc/neighbors.h says how. A tile of queries meets all references, tile by tile; a
// warp per query keeps its candidates in a list in global memory. Nothing waits for the device, so that a call can be
// captured in a graph.
//
// Per tile, 4,096 queries by 8,192 references for k up to 128: the product takes 2 * d operations for each of its
// elements, the filter reads 4 bytes of it, 134 MB or 30 to 40 us of an H200's memory, against 0.7 ms of float32
// arithmetic at d = 512. Preparing the tile reads and writes d values per reference for each 4,096 queries.
//
// Occupancy: a block of 8 warps and at most 64 registers make 32 warps resident on a multiprocessor; each has 4 loads
// of 128 bytes under way, 16 KB per multiprocessor. A list is touched where a key passes the bar, rarely after the
// first tile. Not run on a GPU yet.
#include "../neighbors.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "../math/neighbors.h"
#include "lanes.h"

namespace prunefuse::cuda {
namespace {

using torch::headeronly::ScalarType;

constexpr int kWarpsPerBlock = 8;
constexpr int kBlockThreads = kWarpsPerBlock * kWarp;
// Products that a warp looks at before its list is cut, if it must be.
constexpr int kLoads = 4;
constexpr int64_t kRun = kLoads * kWarp;
constexpr int64_t kColumns = 8192;

// The rows of the grid's warps.
__device__ inline int64_t first_row() { return blockIdx.x * int64_t{kWarpsPerBlock} + threadIdx.x / kWarp; }
__device__ inline int64_t row_step() { return gridDim.x * int64_t{kWarpsPerBlock}; }

// What a row is multiplied by: the scale, for cosine also 1 / |row|; 0 for a row of zeros.
template <class Stored>
__global__ void find_factors(const Stored* rows, int64_t count, int64_t width, double scale, bool cosine,
                             double* factors) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t i = first_row(); i < count; i += row_step()) {
    double sum = 0;
    for (int64_t j = lane; cosine && j < width; j += kWarp) {
      const double value = widen(rows[i * width + j]) * scale;
      sum += value * value;
    }
    sum = warp_sum(sum);
    if (lane == 0) factors[i] = !cosine ? scale : sum > 0 ? scale / sqrt(sum) : 0;
  }
}

// About the mean of the references: of `sample` of them.
template <class Stored>
__global__ void find_origin(const Stored* rows, int64_t count, int64_t width, const double* factors, int64_t sample,
                            accumulate_t<Stored>* origin) {
  for (int64_t j = blockIdx.x * int64_t{kBlockThreads} + threadIdx.x; j < width;
       j += int64_t{gridDim.x} * kBlockThreads) {
    double sum = 0;
    for (int64_t i = 0; i < sample; ++i) {
      const int64_t row = i * count / sample;
      sum += widen(rows[row * width + j]) * factors[row];
    }
    origin[j] = static_cast<accumulate_t<Stored>>(sum / static_cast<double>(sample));
  }
}

template <class Stored>
__global__ void prepare(const Stored* rows, int64_t count, int64_t width, const double* factors,
                        const accumulate_t<Stored>* origin, accumulate_t<Stored>* prepared) {
  using Acc = accumulate_t<Stored>;
  const int lane = threadIdx.x % kWarp;
  for (int64_t i = first_row(); i < count; i += row_step()) {
    const Acc factor = static_cast<Acc>(factors[i]);
    for (int64_t j = lane; j < width; j += kWarp) {
      prepared[i * width + j] = widen(rows[i * width + j]) * factor - origin[j];
    }
  }
}

// Squared norms of prepared rows; `largest`, if there is one, becomes the largest of them and of what it was.
template <class Acc, class Norm>
__global__ void find_norms(const Acc* prepared, int64_t count, int64_t width, const double* factors, Norm* norms,
                           double* largest) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t i = first_row(); i < count; i += row_step()) {
    double sum = 0;
    for (int64_t j = lane; j < width; j += kWarp) {
      const double value = prepared[i * width + j];
      sum += value * value;
    }
    // The cosine distance of a row of zeros is 1 to all: squared, it lies 2 from every unit vector, not 1.
    sum = warp_sum(sum) + (factors[i] == 0 ? 1 : 0);
    if (lane > 0) continue;
    norms[i] = static_cast<Norm>(sum);
    // Numbers that are not negative are ordered as their bits are.
    if (largest != nullptr) {
      atomicMax(reinterpret_cast<unsigned long long*>(largest), bits_as<unsigned long long>(double{norms[i]}));
    }
  }
}

// The candidates of each query in a tile, `room` places each: references and their keys, the squared distance less the
// query's squared norm, of which the first `exact_lengths` are exact, with the distances themselves in `squared`.
template <class Acc>
struct Lists {
  int64_t room;
  Acc* keys;
  int64_t* references;
  double* squared;
  double* margins;    // twice how far a key may be from the truth
  Acc* nearest_keys;  // k places each: where a list that is cut to k is put together
  int64_t* nearest;
  double* nearest_squared;
  Acc* farthest;  // k candidates' keys are at most this
  int64_t* lengths;
  int64_t* exact_lengths;
};

template <class Stored>
struct Search {
  using Acc = accumulate_t<Stored>;
  const Stored* queries;     // of the tile, like all that follows
  const Stored* references;  // all
  int64_t width;
  Neighbors given;
  const double* factors;
  const double* query_factors;
  const double* query_norms;  // squared
  const Acc* norms;           // squared, of the prepared references
  const double* largest;      // of them
  Lists<Acc> lists;
};

// One query's list, in the hands of a warp.
template <class Stored>
struct Row {
  using Acc = accumulate_t<Stored>;

  const Search<Stored>& search;
  int64_t i;
  int lane;
  Acc* keys;
  int64_t* references;
  double* squared;
  int64_t length;
  int64_t known;  // are exact
  Acc farthest;
  double margin;

  __device__ Row(const Search<Stored>& of, int64_t row)
      : search(of),
        i(row),
        lane(threadIdx.x % kWarp),
        keys(of.lists.keys + row * of.lists.room),
        references(of.lists.references + row * of.lists.room),
        squared(of.lists.squared + row * of.lists.room),
        length(of.lists.lengths[row]),
        known(of.lists.exact_lengths[row]),
        farthest(of.lists.farthest[row]),
        margin(of.lists.margins[row]) {}

  __device__ void store() const {
    if (lane > 0) return;
    search.lists.lengths[i] = length;
    search.lists.exact_lengths[i] = known;
    search.lists.farthest[i] = farthest;
  }

  // Keys above it are not among the nearest. Rounded up.
  __device__ Acc bar() const {
    constexpr Acc infinity = std::numeric_limits<Acc>::infinity();
    return nextafter(static_cast<Acc>(static_cast<double>(farthest) + margin), infinity);
  }

  __device__ void append(bool passes, Acc key, int64_t reference) {
    const unsigned found = __ballot_sync(kAllLanes, passes);
    if (passes) {
      const int64_t at = length + __popc(found & ((1u << lane) - 1));
      keys[at] = key;
      references[at] = reference;
    }
    length += __popc(found);
  }

  // A number that at least k keys do not exceed, and hardly more.
  __device__ Acc at_least_smallest() const {
    const int64_t k = search.given.k, enough = k + k / 8;
    Acc low = keys[0], high = keys[0];
    for (int64_t n = lane; n < length; n += kWarp) {
      low = keys[n] < low ? keys[n] : low;
      high = keys[n] > high ? keys[n] : high;
    }
    for (int mask = kWarp / 2; mask > 0; mask /= 2) {
      const Acc other_low = __shfl_xor_sync(kAllLanes, low, mask), other_high = __shfl_xor_sync(kAllLanes, high, mask);
      low = other_low < low ? other_low : low;
      high = other_high > high ? other_high : high;
    }
    for (;;) {
      const Acc middle = low / 2 + high / 2;
      if (!(middle > low && middle < high)) return high;
      int mine = 0;
      for (int64_t n = lane; n < length; n += kWarp) mine += keys[n] <= middle;
      const int64_t found = warp_sum(mine);
      if (found >= k) {
        high = middle;
        if (found <= enough) return high;
      } else {
        low = middle;
      }
    }
  }

  // Leaves out what cannot be among the k nearest, in order.
  __device__ void keep_possible() {
    if (length <= search.given.k) return;
    farthest = at_least_smallest();
    const Acc highest = bar();
    int64_t kept = 0, kept_known = 0;
    for (int64_t first = 0; first < length; first += kWarp) {
      const int64_t n = first + lane;
      Acc key = 0;
      int64_t reference = 0;
      double distance = 0;
      if (n < length) {
        key = keys[n];
        reference = references[n];
        if (n < known) distance = squared[n];
      }
      const bool stays = n < length && key <= highest;
      const unsigned found = __ballot_sync(kAllLanes, stays);
      __syncwarp();  // all have read before any writes: a vote alone orders no memory
      if (stays) {
        const int64_t at = kept + __popc(found & ((1u << lane) - 1));
        keys[at] = key;
        references[at] = reference;
        if (n < known) squared[at] = distance;
      }
      kept_known += __popc(__ballot_sync(kAllLanes, stays && n < known));
      kept += __popc(found);
    }
    __syncwarp();
    length = kept;
    known = kept_known;
  }

  // All squared distances of the list.
  __device__ void compute() {
    const Stored* const x = search.queries + i * search.width;
    const double a = search.query_factors[i];
    for (int64_t n = known; n < length; ++n) {
      const int64_t reference = references[n];
      const Stored* const y = search.references + reference * search.width;
      const double b = search.factors[reference];
      double sum = 0;
      for (int64_t j = lane; j < search.width; j += kWarp) {
        // Not fused: a x - a x must be 0.
        const double difference = __dmul_rn(widen(x[j]), a) - __dmul_rn(widen(y[j]), b);
        sum += difference * difference;
      }
      sum = warp_sum(sum);
      if (lane == 0) squared[n] = a == 0 || b == 0 ? 2 : sum;  // see find_norms
    }
    known = length;
    __syncwarp();
  }

  // place(rank, n) for the k nearest, n their place in the list, whose distances are computed. Equals by lower
  // reference.
  template <class Place>
  __device__ void for_nearest(const Place& place) const {
    for (int64_t n = lane; n < length; n += kWarp) {
      int64_t rank = 0;
      for (int64_t m = 0; m < length; ++m) {
        rank += squared[m] < squared[n] || (squared[m] == squared[n] && references[m] < references[n]);
      }
      if (rank < search.given.k) place(rank, n);
    }
  }

  // Fewer than room - kRun candidates stay.
  __device__ void cut() {
    __syncwarp();  // what other lanes appended
    keep_possible();
    if (length < search.lists.room - kRun) return;
    compute();
    const int64_t k = search.given.k;
    Acc* const best_keys = search.lists.nearest_keys + i * k;
    int64_t* const best = search.lists.nearest + i * k;
    double* const best_squared = search.lists.nearest_squared + i * k;
    for_nearest([&](int64_t rank, int64_t n) {
      best_keys[rank] = static_cast<Acc>(squared[n] - search.query_norms[i]);
      best[rank] = references[n];
      best_squared[rank] = squared[n];
    });
    __syncwarp();
    for (int64_t n = lane; n < k; n += kWarp) {
      keys[n] = best_keys[n];
      references[n] = best[n];
      squared[n] = best_squared[n];
    }
    __syncwarp();
    farthest = keys[k - 1];
    length = known = k;
  }
};

// Empty lists. Here, not where a warp takes a query up, since square roots in float64 are slow on many cards.
template <class Stored>
__global__ void open_lists(Search<Stored> search, int64_t rows) {
  using Acc = accumulate_t<Stored>;
  const Lists<Acc>& lists = search.lists;
  for (int64_t i = blockIdx.x * int64_t{kBlockThreads} + threadIdx.x; i < rows;
       i += int64_t{gridDim.x} * kBlockThreads) {
    lists.farthest[i] = std::numeric_limits<Acc>::infinity();
    lists.lengths[i] = lists.exact_lengths[i] = 0;
    lists.margins[i] = 2 * product_error<Acc>(sqrt(search.query_norms[i]), sqrt(*search.largest), search.width,
                                              search.given.input_roundoff, search.given.cosine ? 2 : 0);
  }
}

// Products (rows, columns) with references start to start + count: what may be among a query's nearest joins its list.
template <class Stored>
__global__ void __launch_bounds__(kBlockThreads, 4)
    filter(Search<Stored> search, const accumulate_t<Stored>* products, int64_t columns, int64_t start, int64_t count,
           int64_t rows) {
  using Acc = accumulate_t<Stored>;
  for (int64_t i = first_row(); i < rows; i += row_step()) {
    Row<Stored> row(search, i);
    Acc bar = row.bar();
    for (int64_t begin = 0; begin < count; begin += kRun) {
      Acc keys[kLoads];
      bool any = false;
#pragma unroll
      for (int load = 0; load < kLoads; ++load) {
        const int64_t j = begin + load * kWarp + row.lane;
        keys[load] = j < count ? search.norms[start + j] - 2 * products[i * columns + j]
                               : std::numeric_limits<Acc>::quiet_NaN();  // does not pass
        any = any || keys[load] <= bar;
      }
      if (__any_sync(kAllLanes, any) == 0) continue;
#pragma unroll
      for (int load = 0; load < kLoads; ++load) {
        row.append(keys[load] <= bar, keys[load], start + begin + load * kWarp + row.lane);
      }
      if (row.length >= search.lists.room - kRun) {
        row.cut();
        bar = row.bar();
      }
    }
    row.store();
  }
}

template <class Stored>
__global__ void finish(Search<Stored> search, int64_t rows, accumulate_t<Stored>* distances, int64_t* indices) {
  using Acc = accumulate_t<Stored>;
  const int64_t k = search.given.k;
  for (int64_t i = first_row(); i < rows; i += row_step()) {
    Row<Stored> row(search, i);
    row.keep_possible();
    row.compute();
    row.for_nearest([&](int64_t rank, int64_t n) {
      const double squared = row.squared[n];
      distances[i * k + rank] =
          static_cast<Acc>(search.given.cosine ? squared / 2 : sqrt(squared) / search.given.scale);
      indices[i * k + rank] = row.references[n];
    });
  }
}

template <class Stored>
void launch(const Tensor& queries, const Tensor& references, const Tensor& distances, const Tensor& indices,
            const Neighbors& given) {
  using Acc = accumulate_t<Stored>;
  constexpr ScalarType dtype = sizeof(Acc) == sizeof(double) ? ScalarType::Double : ScalarType::Float;
  const int64_t rows = queries.size(0), count = references.size(0), width = queries.size(1);
  const int64_t room = 2 * given.k + 2 * kRun;
  const int64_t tile = std::min(rows, std::max<int64_t>(256, std::min<int64_t>(4096, (int64_t{1} << 21) / room)));
  const int64_t columns = std::min(count, kColumns);
  const cudaStream_t stream = current_stream(queries.get_device_index());

  // Held here until all launches are made; torch's allocator keeps the memory for this stream.
  std::vector<Tensor> held;
  const auto room_for = [&](auto kind, int64_t size) {
    using T = decltype(kind);
    held.push_back(torch::stable::new_empty(queries, {size * static_cast<int64_t>(sizeof(T))}, ScalarType::Byte));
    return static_cast<T*>(held.back().data_ptr());
  };
  const Tensor query_tile = torch::stable::new_empty(queries, {tile, width}, dtype);
  const Tensor reference_tile = torch::stable::new_empty(queries, {columns, width}, dtype);
  const Tensor products = torch::stable::new_empty(queries, {tile, columns}, dtype);
  auto* const prepared_queries = static_cast<Acc*>(query_tile.data_ptr());
  auto* const prepared_references = static_cast<Acc*>(reference_tile.data_ptr());
  const auto* const x = static_cast<const Stored*>(queries.data_ptr());
  const auto* const y = static_cast<const Stored*>(references.data_ptr());
  auto* const factors = room_for(double{}, count);
  auto* const query_factors = room_for(double{}, tile);
  auto* const query_norms = room_for(double{}, tile);
  auto* const norms = room_for(Acc{}, count);
  auto* const largest = room_for(double{}, 1);
  auto* const origin = room_for(Acc{}, width);
  const Lists<Acc> lists = {room,
                            room_for(Acc{}, tile * room),
                            room_for(int64_t{}, tile * room),
                            room_for(double{}, tile * room),
                            room_for(double{}, tile),
                            room_for(Acc{}, tile * given.k),
                            room_for(int64_t{}, tile * given.k),
                            room_for(double{}, tile * given.k),
                            room_for(Acc{}, tile),
                            room_for(int64_t{}, tile),
                            room_for(int64_t{}, tile)};
  const auto warps = [](int64_t of) { return grid_for(divide_up(of, kWarpsPerBlock)); };
  const auto threads = [](int64_t of) { return grid_for(divide_up(of, kBlockThreads)); };

  launch_kernel(find_factors<Stored>, {warps(count), kBlockThreads}, stream, y, count, width, given.scale, given.cosine,
                factors);
  launch_kernel(find_origin<Stored>, {threads(width), kBlockThreads}, stream, y, count, width, factors,
                std::min<int64_t>(count, 1024), origin);
  check_cuda(cudaMemsetAsync(largest, 0, sizeof(double), stream));
  const auto prepare_references = [&](int64_t start) {
    const int64_t part = std::min(columns, count - start);
    launch_kernel(prepare<Stored>, {warps(part), kBlockThreads}, stream, y + start * width, part, width,
                  factors + start, origin, prepared_references);
    return part;
  };
  for (int64_t start = 0; start < count; start += columns) {
    const int64_t part = prepare_references(start);
    launch_kernel(find_norms<Acc, Acc>, {warps(part), kBlockThreads}, stream, prepared_references, part, width,
                  factors + start, norms + start, largest);
  }
  for (int64_t first = 0; first < rows; first += tile) {
    const int64_t part = std::min(tile, rows - first);
    const Stored* const block = x + first * width;
    launch_kernel(find_factors<Stored>, {warps(part), kBlockThreads}, stream, block, part, width, given.scale,
                  given.cosine, query_factors);
    launch_kernel(prepare<Stored>, {warps(part), kBlockThreads}, stream, block, part, width, query_factors, origin,
                  prepared_queries);
    launch_kernel(find_norms<Acc, double>, {warps(part), kBlockThreads}, stream, prepared_queries, part, width,
                  query_factors, query_norms, nullptr);
    const Search<Stored> search = {block, y, width, given, factors, query_factors, query_norms, norms, largest, lists};
    launch_kernel(open_lists<Stored>, {threads(part), kBlockThreads}, stream, search, part);
    for (int64_t start = 0; start < count; start += columns) {
      const int64_t some = prepare_references(start);
      Tensor out = first_rows(products, part);
      out = torch::stable::narrow(out, 1, 0, some);
      product(first_rows(query_tile, part), first_rows(reference_tile, some), out);
      launch_kernel(filter<Stored>, {warps(part), kBlockThreads}, stream, search,
                    static_cast<const Acc*>(products.data_ptr()), columns, start, some, part);
    }
    launch_kernel(finish<Stored>, {warps(part), kBlockThreads}, stream, search, part,
                  static_cast<Acc*>(distances.data_ptr()) + first * given.k,
                  static_cast<int64_t*>(indices.data_ptr()) + first * given.k);
  }
}

std::tuple<Tensor, Tensor> nearest_neighbors(const Tensor& queries, const Tensor& references, int64_t k, bool cosine,
                                             double scale, double input_roundoff) {
  const torch::stable::accelerator::DeviceGuard guard(queries.get_device_index());
  const auto run = [](const Tensor& q, const Tensor& r, const Tensor& distances, const Tensor& indices,
                      Neighbors search, auto stored) {
    // Whatever torch's settings say, the environment or a library's own may let a float32 product round to TF32.
    if (sizeof(accumulate_t<decltype(stored)>) == sizeof(float)) {
      search.input_roundoff = std::max(search.input_roundoff, 0x1p-11);
    }
    launch<decltype(stored)>(q, r, distances, indices, search);
  };
  return prunefuse::nearest_neighbors(queries, references, k, cosine, scale, input_roundoff, run);
}

}  // namespace
}  // namespace prunefuse::cuda

STABLE_TORCH_LIBRARY_IMPL(prunefuse, CUDA, m) {
  m.impl("nearest_neighbors", TORCH_BOX(&prunefuse::cuda::nearest_neighbors));
}
