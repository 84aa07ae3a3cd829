// The row loops of training dynamics. The statistics of a row are sums over the classes beside the label's, which takes
// the row apart in two: each part is walked for its maximum and, still in the cache, for its exponentials. Short rows
// go kLanes at a time with a row in every lane. The divergence keeps a row's exponentials in the cache, and walks them
// with the logarithms of the time before, which it replaces: one exp and one log per class.
#include "dynamics.h"

#include "exponentials.h"

namespace prunefuse::cpu::PRUNEFUSE_ISA {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

template <class Acc>
OthersState<Acc> state_one_by_one(const Acc* x, int64_t count, int64_t stride) {
  OthersState<Acc> state;
  for (int64_t begin = 0; begin < count; begin += kSum) {
    OthersState<Acc> part;
    for (int64_t j = begin; j < count && j < begin + kSum; ++j) {
      const Acc value[1] = {x[j * stride]};
      absorb(part, value);
    }
    state = begin == 0 ? part : merge(state, part);
  }
  return state;
}

// Of at most kBlock values.
OthersState<double> block_state(const double* x, int64_t count) { return state_one_by_one(x, count, 1); }

OthersState<float> block_state(const float* x, int64_t count) {
  floats top = broadcast(kLowest);
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) top = larger(load(x + j), top);
  const floats last = load_first(x + j, count - j, kLowest);
  top = larger(last, top);
  const float highest = largest(top);
  if (!is_finite(highest)) return state_one_by_one(x, count, 1);
  const floats max = broadcast(highest), scale = broadcast(kLog2E);
  floats tail{}, squares{};
  ints ties{}, nan{};
  const auto take = [&](floats values) {
    const Exponential value = exponential(values, max, scale);
    tail += value.lower;
    squares += value.lower * value.lower;
    ties -= value.equal;
    nan |= values != values;
  };
  for (j = 0; j + kLanes <= count; j += kLanes) take(load(x + j));
  take(last);
  return {highest, sum(__builtin_convertvector(ties, floats)), sum(tail), sum(squares), any(nan)};
}

template <class Stored>
void long_row(const Pool& pool, int64_t label, accumulate_t<Stored>* out, int64_t row) {
  using Acc = accumulate_t<Stored>;
  alignas(64) Acc room[kBlock];
  const Stored* data = static_cast<const Stored*>(pool.data) + row * pool.row_stride;
  OthersState<Acc> others;
  const auto take = [&](int64_t begin, int64_t end) {
    for (; begin < end; begin += kBlock) {
      const int64_t count = end - begin < kBlock ? end - begin : kBlock;
      others = merge(others, block_state(logits_of(pool, data, begin, count, room), count));
    }
  };
  take(0, label);
  const Acc own = widen(data[label * pool.class_stride]);
  const bool leads = !(others.max == own);
  take(label + 1, pool.classes);
  write_dynamics(out, pool.rows, row, summarize(others, own, leads));
}

// `rows` (1 to kLanes) rows from `begin` on, a row in every lane. No row's result depends on those beside it.
template <class Stored>
void short_rows(const Pool& pool, const int64_t* labels, float* out, int64_t begin, int64_t rows) {
  alignas(64) float values[kShortRow * kLanes];
  gather_group<Stored>(pool, begin, rows, values);
  ints label = ints{} - 1;
  for (int64_t lane = 0; lane < rows; ++lane) label[lane] = static_cast<int32_t>(labels[begin + lane]);
  floats max = broadcast(kLowest), own{};
  for (int64_t c = 0; c < pool.classes; ++c) {
    const ints labeled = label == static_cast<int32_t>(c);
    floats x = load(values + c * kLanes);
    own = select(labeled, x, own);
    x = select(labeled, broadcast(kLowest), x);
    max = larger(x, max);
    store(values + c * kLanes, x);
  }
  const floats scale = broadcast(kLog2E);
  floats tail{}, squares{};
  ints ties{}, nan{};
  for (int64_t c = 0; c < pool.classes; ++c) {
    const floats x = load(values + c * kLanes);
    const Exponential value = exponential(x, max, scale);
    tail += value.lower;
    squares += value.lower * value.lower;
    ties -= value.equal;
    nan |= x != x;
  }
  const floats count = __builtin_convertvector(ties, floats);
  for (int64_t lane = 0; lane < rows; ++lane) {
    OthersState<float> others = {max[lane], count[lane], tail[lane], squares[lane], nan[lane] != 0};
    if (!is_finite(others.max)) others = state_one_by_one(values + lane, pool.classes, kLanes);
    bool leads = true;
    for (int64_t c = 0; others.max == own[lane] && c < labels[begin + lane]; ++c) {
      leads = leads && values[c * kLanes + lane] != own[lane];
    }
    write_dynamics(out, pool.rows, begin + lane, summarize(others, own[lane], leads));
  }
}

// Replaces the logarithms by those of the probabilities e * inverse; the divergence between.
template <class Kept>
double move(const double* e, double inverse, double epsilon, Kept* kept, int64_t classes) {
  double total = 0;
  for (int64_t begin = 0; begin < classes; begin += kSum) {
    double part = 0;
    for (int64_t j = begin; j < classes && j < begin + kSum; ++j) {
      const double q = e[j] * inverse, log = log_of_shifted(q, epsilon);
      part += ::fabs(q * (log - static_cast<double>(widen(kept[j]))));
      narrow_to(log, kept[j]);
    }
    total += part;
  }
  return total;
}

template <class Kept>
double move(const float* e, float inverse, float epsilon, Kept* kept, int64_t classes) {
  double total = 0;
  for (int64_t begin = 0; begin < classes; begin += kBlock) {
    const int64_t end = classes - begin < kBlock ? classes : begin + kBlock;
    floats part{};
    const auto take = [&](floats value, floats before) {
      const floats q = value * inverse;
      const floats log = log_normal<floats, ints>(q + epsilon, floats{});
      part += bits_as<floats>(bits_as<ints>(q * (log - before)) & 0x7fffffff);
      return log;
    };
    int64_t j = begin;
    for (; j + kLanes <= end; j += kLanes) store(kept + j, take(load(e + j), load(kept + j)));
    if (j < end) {
      const floats log = take(load_first(e + j, end - j, 0.0f), load_first(kept + j, end - j, 0.0f));
      store_first(kept + j, log, end - j);
    }
    total += static_cast<double>(sum(part));
  }
  return total;
}

// `e` holds the row's exponentials.
template <class Acc, class Kept>
double divergence(const RowSums<Acc>& row, Acc* e, Acc epsilon, Kept* kept, int64_t classes) {
  const bool seen = !(widen(kept[0]) == kNeverSeen);
  if (row.argmax < 0) {
    for (int64_t j = 0; j < classes; ++j) narrow_to(std::numeric_limits<Acc>::quiet_NaN(), kept[j]);
    return seen ? std::numeric_limits<double>::quiet_NaN() : -1;
  }
  const int64_t top = row.argmax;
  const Acc before = static_cast<Acc>(widen(kept[top])), log = log_of_largest(row.rest, epsilon);
  e[top] = 0;  // counted here, precisely
  const double total = move(e, row.inverse, epsilon, kept, classes) +
                       ::fabs(static_cast<double>(row.inverse) * static_cast<double>(log - before));
  narrow_to(log, kept[top]);
  return seen ? total : -1;
}

}  // namespace

template <class Stored>
void dynamics_rows(const Pool& pool, const int64_t* labels, accumulate_t<Stored>* out, int64_t begin, int64_t end) {
  if constexpr (sizeof(accumulate_t<Stored>) == sizeof(float)) {
    for (; pool.classes <= kShortRow && begin < end; begin += kLanes) {
      short_rows<Stored>(pool, labels, out, begin, end - begin < kLanes ? end - begin : kLanes);
    }
  }
  for (; begin < end; ++begin) long_row<Stored>(pool, labels[begin], out, begin);
}

template <class Stored, class Kept>
void divergence_rows(const Pool& pool, const int64_t* samples, Kept* kept, double epsilon, double* divergences,
                     wider_t<Stored, Kept>* room, int64_t begin, int64_t end) {
  using Acc = wider_t<Stored, Kept>;
  for (int64_t row = begin; row < end; ++row) {
    divergences[row] = -1;
    // Samples come in any order: what a row will need of them is asked for some rows before.
    constexpr int64_t ahead = 8;
    if (row + ahead < end && samples[row + ahead] >= 0) {
      __builtin_prefetch(kept + samples[row + ahead] * pool.classes, /*write=*/1);
    }
    if (samples[row] < 0) continue;
    const Stored* data = static_cast<const Stored*>(pool.data) + row * pool.row_stride;
    const Acc* x = room;
    if constexpr (sizeof(Acc) == sizeof(accumulate_t<Stored>)) {
      x = logits_of(pool, data, 0, pool.classes, room);
    } else {
      for (int64_t j = 0; j < pool.classes; ++j) room[j] = static_cast<Acc>(widen(data[j * pool.class_stride]));
    }
    const RowSums<Acc> sums =
        exponentials(x, room, pool.classes, Acc(1), [&](int64_t j) { __builtin_prefetch(data + pool.row_stride + j); });
    divergences[row] =
        divergence(sums, room, static_cast<Acc>(epsilon), kept + samples[row] * pool.classes, pool.classes);
  }
}

#define PRUNEFUSE_INSTANTIATE_PAIR(Stored, Kept)                                                   \
  template void divergence_rows<Stored, Kept>(const Pool&, const int64_t*, Kept*, double, double*, \
                                              wider_t<Stored, Kept>*, int64_t, int64_t);
#define PRUNEFUSE_INSTANTIATE(Stored)                                                                        \
  template void dynamics_rows<Stored>(const Pool&, const int64_t*, accumulate_t<Stored>*, int64_t, int64_t); \
  PRUNEFUSE_INSTANTIATE_PAIR(Stored, float)                                                                  \
  PRUNEFUSE_INSTANTIATE_PAIR(Stored, double)                                                                 \
  PRUNEFUSE_INSTANTIATE_PAIR(Stored, half_bits)                                                              \
  PRUNEFUSE_INSTANTIATE_PAIR(Stored, bfloat16_bits)
PRUNEFUSE_INSTANTIATE(float)
PRUNEFUSE_INSTANTIATE(double)
PRUNEFUSE_INSTANTIATE(half_bits)
PRUNEFUSE_INSTANTIATE(bfloat16_bits)
#undef PRUNEFUSE_INSTANTIATE
#undef PRUNEFUSE_INSTANTIATE_PAIR

}  // namespace prunefuse::cpu::PRUNEFUSE_ISA
