// Exact nearest neighbors on CUDA: csrc/neighbors.h says how. A tile of queries meets all references, tile by tile; a
// warp per query keeps its candidates in a list in global memory. Nothing waits for the device, so that a call can be
// captured in a graph.
//
// Float32 is multiplied as tensor cores do it fast, by no setting of torch or of the environment: a value is the sum of
// two bfloat16, high and low, and a row of the product is high * high + high * low + low * high, one product of three
// times the width. It is off by 2^-14 |q| |r|, and the margin knows that.
//
// A tile is 4,096 queries by 2,048 references for k up to 256. Its product, 32 MB, stays in the L2 cache of an H100
// until the filter has read it, 16 bytes at a time; norms are in shared memory. References are prepared once where that
// takes at most a gigabyte, else for every tile of queries.
//
// Occupancy: a block of 8 warps and at most 64 registers make 32 warps resident on a multiprocessor; each lane has 2
// loads of 16 bytes under way, 32 KB per multiprocessor. A list is touched where a key passes the bar, rarely after the
// first tile. In machine code for sm_90 a product takes 13 instructions, and 24 where one of every 256 passes. What the
// lists need does not fit in 64 registers: 88 bytes of a thread's stack hold it, touched 5 times for every 256
// products. Not run on a GPU yet.
#include "../neighbors.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "../math/dynamics.h"
#include "../math/neighbors.h"
#include "lanes.h"

namespace prunefuse::cuda {
namespace {

using torch::headeronly::ScalarType;

constexpr int kWarpsPerBlock = 8;
constexpr int kBlockThreads = kWarpsPerBlock * kWarp;
// Loads of 16 bytes that each lane has under way, and the products that a warp looks at before its list is cut, if it
// must be.
constexpr int kLoads = 2;
template <class Acc>
constexpr int kWidth = 16 / sizeof(Acc);
template <class Acc>
constexpr int kRun = kLoads * kWarp * kWidth<Acc>;
constexpr int64_t kColumns = 2048;
constexpr int64_t kMostPrepared = int64_t{1} << 30;  // bytes
constexpr int64_t kSample = 1024, kSamplePart = 16;  // rows that the origin is the mean of

// What is multiplied. Of a value that is two bfloat16, high + low is off by 2^-16 of it, as much as low * low, so three
// products are off by less than (2 v + v^2) |q| |r|. Tensor cores may cut off what they add where others round; they
// may for each of the three terms, and for each sum of some.
template <class Stored>
constexpr bool kSplit = sizeof(accumulate_t<Stored>) == sizeof(float);
constexpr double kSplitRoundoff = 0x1p-15;
constexpr int64_t kSplitTerms = 12;

template <class Stored>
using multiplied_t = std::conditional_t<kSplit<Stored>, bfloat16_bits, double>;

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

// Sums of the references that the origin is the mean of: a row of `sums` for each part of the sample.
template <class Stored>
__global__ void sum_sample(const Stored* rows, int64_t count, int64_t width, const double* factors, int64_t sample,
                           double* sums) {
  for (int64_t part = blockIdx.x; part * kSamplePart < sample; part += gridDim.x) {
    const int64_t end = (part + 1) * kSamplePart < sample ? (part + 1) * kSamplePart : sample;
    for (int64_t j = threadIdx.x; j < width; j += kBlockThreads) {
      double sum = 0;
      for (int64_t i = part * kSamplePart; i < end; ++i) {
        const int64_t row = i * count / sample;
        sum += widen(rows[row * width + j]) * factors[row];
      }
      sums[part * width + j] = sum;
    }
  }
}

// About the mean of the references.
template <class Acc>
__global__ void find_origin(const double* sums, int64_t parts, int64_t width, int64_t sample, Acc* origin) {
  for (int64_t j = blockIdx.x * int64_t{kBlockThreads} + threadIdx.x; j < width;
       j += int64_t{gridDim.x} * kBlockThreads) {
    double sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += sums[part * width + j];
    origin[j] = static_cast<Acc>(sum / static_cast<double>(sample));
  }
}

template <class Stored>
__device__ accumulate_t<Stored> prepared_value(Stored stored, accumulate_t<Stored> factor,
                                               accumulate_t<Stored> origin) {
  return widen(stored) * factor - origin;
}

// Rows as they are multiplied, `stride` numbers each: split, the parts of a query and of a reference stand across, and
// zeros fill up the row.
template <class Stored>
__global__ void prepare(const Stored* rows, int64_t count, int64_t width, const double* factors,
                        const accumulate_t<Stored>* origin, bool references, int64_t stride,
                        multiplied_t<Stored>* prepared) {
  using Acc = accumulate_t<Stored>;
  const int lane = threadIdx.x % kWarp;
  for (int64_t i = first_row(); i < count; i += row_step()) {
    const Acc factor = static_cast<Acc>(factors[i]);
    multiplied_t<Stored>* const to = prepared + i * stride;
    for (int64_t j = lane; j < width; j += kWarp) {
      const Acc value = prepared_value(rows[i * width + j], factor, origin[j]);
      if constexpr (kSplit<Stored>) {
        bfloat16_bits high, low;
        narrow_to(value, high);
        narrow_to(value - widen(high), low);
        to[j] = high;
        to[width + j] = references ? low : high;
        to[2 * width + j] = references ? high : low;
      } else {
        to[j] = value;
      }
    }
    if constexpr (kSplit<Stored>) {
      for (int64_t j = 3 * width + lane; j < stride; j += kWarp) to[j] = bfloat16_bits{0};
    }
  }
}

// Squared norms of prepared rows; `largest`, if there is one, becomes the largest of them and of what it was.
template <class Stored, class Norm>
__global__ void find_norms(const Stored* rows, int64_t count, int64_t width, const double* factors,
                           const accumulate_t<Stored>* origin, Norm* norms, double* largest) {
  using Acc = accumulate_t<Stored>;
  const int lane = threadIdx.x % kWarp;
  for (int64_t i = first_row(); i < count; i += row_step()) {
    const Acc factor = static_cast<Acc>(factors[i]);
    double sum = 0;
    for (int64_t j = lane; j < width; j += kWarp) {
      const double value = prepared_value(rows[i * width + j], factor, origin[j]);
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
  double* margins;  // twice how far a key may be from the truth
  Acc* farthest;    // k candidates' keys are at most this
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

  // A number that at least k keys do not exceed, and at most `enough`, but for such as are too close to be told apart.
  __device__ Acc at_least_smallest(int64_t enough) const {
    const int64_t k = search.given.k;
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

  // Leaves out what cannot be among the k nearest, in order. `enough`: how many may stay, apart from those within the
  // margin.
  __device__ void keep_possible(int64_t enough) {
    if (length <= search.given.k) return;
    farthest = at_least_smallest(enough);
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

  // All squared distances of the list, some at a time, so that a lane waits for several rows at once.
  __device__ void compute() {
    constexpr int kTogether = 4;
    const Stored* const x = search.queries + i * search.width;
    const double a = search.query_factors[i];
    for (int64_t n = known; n < length; n += kTogether) {
      const Stored* y[kTogether];
      double b[kTogether], sums[kTogether];
#pragma unroll
      for (int c = 0; c < kTogether; ++c) {
        const int64_t reference = references[n + c < length ? n + c : length - 1];
        y[c] = search.references + reference * search.width;
        b[c] = search.factors[reference];
        sums[c] = 0;
      }
      for (int64_t j = lane; j < search.width; j += kWarp) {
        const double value = __dmul_rn(widen(x[j]), a);
#pragma unroll
        for (int c = 0; c < kTogether; ++c) {
          // Not fused: a x - a x must be 0.
          const double difference = value - __dmul_rn(widen(y[c][j]), b[c]);
          sums[c] += difference * difference;
        }
      }
#pragma unroll
      for (int c = 0; c < kTogether; ++c) {
        const double sum = warp_sum(sums[c]);
        if (lane == 0 && n + c < length) squared[n + c] = a == 0 || b[c] == 0 ? 2 : sum;  // see find_norms
      }
    }
    known = length;
    __syncwarp();
  }

  __device__ bool is_after(int64_t m, int64_t n) const {
    return squared[m] > squared[n] || (squared[m] == squared[n] && references[m] > references[n]);
  }

  // Puts a list whose distances are computed in order, equals by lower reference, by a bitonic network in which all
  // that is behind the list counts as farther: it stays where it is. Keys do not move along.
  __device__ void sort() {
    for (int64_t size = 2; size < 2 * length; size *= 2) {
      for (int64_t stride = size / 2; stride > 0; stride /= 2) {
        for (int64_t n = lane; n < length; n += kWarp) {
          const int64_t other = n ^ (stride == size / 2 ? size - 1 : stride);
          if (other <= n || other >= length || !is_after(n, other)) continue;
          const double distance = squared[n];
          const int64_t reference = references[n];
          squared[n] = squared[other];
          references[n] = references[other];
          squared[other] = distance;
          references[other] = reference;
        }
        __syncwarp();
      }
    }
  }

  // Fewer than room - kRun candidates stay.
  __device__ void cut() {
    __syncwarp();  // what other lanes appended
    const int64_t k = search.given.k;
    keep_possible(k + k / 8);
    if (length < search.lists.room - kRun<Acc>) return;
    compute();
    sort();
    for (int64_t n = lane; n < k; n += kWarp) keys[n] = static_cast<Acc>(squared[n] - search.query_norms[i]);
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
    constexpr int64_t terms = kSplit<Stored> ? kSplitTerms : 1;
    const double roundoff = kSplit<Stored> ? kSplitRoundoff : search.given.input_roundoff;
    lists.margins[i] = 2 * product_error<Acc>(sqrt(search.query_norms[i]), sqrt(*search.largest), terms * search.width,
                                              roundoff, search.given.cosine ? 2 : 0);
  }
}

// Products (rows, columns) with references start to start + count: what may be among a query's nearest joins its list.
template <class Stored>
__global__ void __launch_bounds__(kBlockThreads, 4) filter(Search<Stored> search, const accumulate_t<Stored>* products,
                                                           int64_t columns, int64_t start, int count, int64_t rows) {
  using Acc = accumulate_t<Stored>;
  constexpr int width = kWidth<Acc>;
  // Behind the last reference nothing passes.
  Acc* const norms = dynamic_shared<Acc>();
  for (int n = static_cast<int>(threadIdx.x); n < divide_up(count, kRun<Acc>) * kRun<Acc>; n += kBlockThreads) {
    norms[n] = n < count ? search.norms[start + n] : std::numeric_limits<Acc>::quiet_NaN();
  }
  __syncthreads();
  for (int64_t i = first_row(); i < rows; i += row_step()) {
    Row<Stored> row(search, i);
    Acc bar = row.bar();
    const Acc* const line = products + i * columns;
    for (int begin = 0; begin < count; begin += kRun<Acc>) {
      const int first = begin + row.lane * width;  // of the lane; the next load is for a warp's width behind it
      uint4 loaded[kLoads];
#pragma unroll
      for (int load = 0; load < kLoads; ++load) {
        const int at = first + load * kWarp * width;
        loaded[load] = {};
        if (at < count) loaded[load] = __ldg(reinterpret_cast<const uint4*>(line + at));
      }
      Acc keys[kLoads][width];
      bool any = false;
#pragma unroll
      for (int load = 0; load < kLoads; ++load) {
        Acc values[width];
        memcpy(values, &loaded[load], sizeof(values));
        Acc squares[width];
        memcpy(squares, __builtin_assume_aligned(norms + first + load * kWarp * width, 16), sizeof(squares));
#pragma unroll
        for (int v = 0; v < width; ++v) {
          keys[load][v] = fma(Acc{-2}, values[v], squares[v]);
          any = any || keys[load][v] <= bar;
        }
      }
      if (__any_sync(kAllLanes, any) == 0) continue;
#pragma unroll
      for (int load = 0; load < kLoads; ++load) {
#pragma unroll
        for (int v = 0; v < width; ++v) {
          row.append(keys[load][v] <= bar, keys[load][v], start + first + load * kWarp * width + v);
        }
      }
      if (row.length >= search.lists.room - kRun<Acc>) {
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
    row.keep_possible(k);
    row.compute();
    row.sort();
    for (int64_t n = row.lane; n < k; n += kWarp) {
      const double squared = row.squared[n];
      distances[i * k + n] = static_cast<Acc>(search.given.cosine ? squared / 2 : sqrt(squared) / search.given.scale);
      indices[i * k + n] = row.references[n];
    }
  }
}

template <class Stored>
void launch(const Tensor& queries, const Tensor& references, const Tensor& distances, const Tensor& indices,
            const Neighbors& given) {
  using Acc = accumulate_t<Stored>;
  constexpr ScalarType dtype = sizeof(Acc) == sizeof(double) ? ScalarType::Double : ScalarType::Float;
  const int64_t rows = queries.size(0), count = references.size(0), width = queries.size(1);
  const int64_t room = 2 * given.k + 2 * kRun<Acc>;
  const int64_t most = (int64_t{1} << 21) / std::max<int64_t>(2 * given.k, 512);  // queries, for 50 MB of lists
  const int64_t tile = std::min(rows, std::clamp<int64_t>(most, 256, 4096));
  // Rows of the product, and what is multiplied, begin at 16 bytes.
  const int64_t columns = divide_up(std::min(count, kColumns), kWidth<Acc>) * kWidth<Acc>;
  const int64_t stride = kSplit<Stored> ? divide_up(3 * width, 8) * 8 : width;
  const bool once = count * stride * static_cast<int64_t>(sizeof(multiplied_t<Stored>)) <= kMostPrepared;
  const cudaStream_t stream = current_stream(queries.get_device_index());

  // Held here until all launches are made; torch's allocator keeps the memory for this stream.
  std::vector<Tensor> held;
  const auto room_for = [&](auto kind, int64_t size) {
    using T = decltype(kind);
    held.push_back(torch::stable::new_empty(queries, {size * static_cast<int64_t>(sizeof(T))}, ScalarType::Byte));
    return static_cast<T*>(held.back().data_ptr());
  };
  constexpr ScalarType multiplied = kSplit<Stored> ? ScalarType::BFloat16 : ScalarType::Double;
  Tensor query_tile = torch::stable::new_empty(queries, {tile, stride}, multiplied);
  Tensor prepared = torch::stable::new_empty(queries, {once ? count : std::min(count, columns), stride}, multiplied);
  Tensor products = torch::stable::new_empty(queries, {tile, columns}, dtype);
  auto* const prepared_queries = static_cast<multiplied_t<Stored>*>(query_tile.data_ptr());
  auto* const prepared_references = static_cast<multiplied_t<Stored>*>(prepared.data_ptr());
  const auto* const x = static_cast<const Stored*>(queries.data_ptr());
  const auto* const y = static_cast<const Stored*>(references.data_ptr());
  auto* const factors = room_for(double{}, count);
  auto* const query_factors = room_for(double{}, tile);
  auto* const query_norms = room_for(double{}, tile);
  auto* const norms = room_for(Acc{}, count);
  auto* const largest = room_for(double{}, 1);
  auto* const origin = room_for(Acc{}, width);
  const int64_t sample = std::min(count, kSample), parts = divide_up(sample, kSamplePart);
  auto* const sums = room_for(double{}, parts * width);
  const Lists<Acc> lists = {room,
                            room_for(Acc{}, tile * room),
                            room_for(int64_t{}, tile * room),
                            room_for(double{}, tile * room),
                            room_for(double{}, tile),
                            room_for(Acc{}, tile),
                            room_for(int64_t{}, tile),
                            room_for(int64_t{}, tile)};
  const auto warps = [](int64_t of) { return grid_for(divide_up(of, kWarpsPerBlock)); };
  const auto threads = [](int64_t of) { return grid_for(divide_up(of, kBlockThreads)); };

  launch_kernel(find_factors<Stored>, {warps(count), kBlockThreads}, stream, y, count, width, given.scale, given.cosine,
                factors);
  launch_kernel(sum_sample<Stored>, {grid_for(parts), kBlockThreads}, stream, y, count, width, factors, sample, sums);
  launch_kernel(find_origin<Acc>, {threads(width), kBlockThreads}, stream, sums, parts, width, sample, origin);
  check_cuda(cudaMemsetAsync(largest, 0, sizeof(double), stream));
  launch_kernel(find_norms<Stored, Acc>, {warps(count), kBlockThreads}, stream, y, count, width, factors, origin, norms,
                largest);
  const auto prepare_references = [&](int64_t start, int64_t part) {
    launch_kernel(prepare<Stored>, {warps(part), kBlockThreads}, stream, y + start * width, part, width,
                  factors + start, origin, true, stride, prepared_references);
  };
  if (once) prepare_references(0, count);
  // Tiles of references, transposed: made once, since a view costs the host as long as the device takes for a tile.
  std::vector<Tensor> views;
  for (int64_t start = 0; start < count; start += columns) {
    Tensor view = torch::stable::narrow(prepared, 0, once ? start : 0, std::min(columns, count - start));
    views.push_back(torch::stable::transpose(view, 0, 1));
  }
  for (int64_t first = 0; first < rows; first += tile) {
    const int64_t part = std::min(tile, rows - first);
    const Stored* const block = x + first * width;
    launch_kernel(find_factors<Stored>, {warps(part), kBlockThreads}, stream, block, part, width, given.scale,
                  given.cosine, query_factors);
    launch_kernel(find_norms<Stored, double>, {warps(part), kBlockThreads}, stream, block, part, width, query_factors,
                  origin, query_norms, nullptr);
    launch_kernel(prepare<Stored>, {warps(part), kBlockThreads}, stream, block, part, width, query_factors, origin,
                  false, stride, prepared_queries);
    const Search<Stored> search = {block, y, width, given, factors, query_factors, query_norms, norms, largest, lists};
    launch_kernel(open_lists<Stored>, {threads(part), kBlockThreads}, stream, search, part);
    const Tensor multiplied_queries = first_rows(query_tile, part);
    Tensor of_part = first_rows(products, part), out = of_part;
    for (int64_t start = 0; start < count; start += columns) {
      const int64_t some = std::min(columns, count - start);
      if (!once) prepare_references(start, some);
      if (out.size(1) != some) out = torch::stable::narrow(of_part, 1, 0, some);
      multiply(multiplied_queries, views[static_cast<size_t>(start / columns)], out);
      const size_t shared = static_cast<size_t>(divide_up(some, kRun<Acc>) * kRun<Acc>) * sizeof(Acc);
      launch_kernel(filter<Stored>, {warps(part), kBlockThreads, shared}, stream, search,
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
                      const Neighbors& search,
                      auto stored) { launch<decltype(stored)>(q, r, distances, indices, search); };
  return prunefuse::nearest_neighbors(queries, references, k, cosine, scale, input_roundoff, run);
}

}  // namespace
}  // namespace prunefuse::cuda

STABLE_TORCH_LIBRARY_IMPL(prunefuse, CUDA, m) {
  m.impl("nearest_neighbors", TORCH_BOX(&prunefuse::cuda::nearest_neighbors));
}
