// Rows of a pool: widening, taking logarithms of probabilities, turning rows into lanes, and the exponentials of a row.
#pragma once

#include "../../math/row_state.h"
#include "simd.h"

namespace prunefuse::cpu::PRUNEFUSE_ISA {
namespace {

// Up to here a row per lane: the group of rows (128 x 16 values, 8 KiB) stays in L1.
constexpr int64_t kShortRow = 128;

inline bool is_finite(float x) { return x - x == 0; }

// The exponential of x relative to the row's maximum (its exp2 has the argument t), and `lower`: zero where x is the
// maximum itself (`equal`).
struct Exponential {
  floats t, e, lower;
  ints equal;
};

inline Exponential exponential(floats x, floats max, floats scale) {
  const ints equal = x == max;
  // This way round a NaN stays.
  const floats t = larger(broadcast(kLowestLog2), (x - max) * scale);
  const floats e = exp2_of<floats, ints>(t);
  return {t, e, zero_where(equal, e), equal};
}

inline void take_logs(float* x, int64_t count) {
  const int64_t whole = count - count % kLanes;
  for (int64_t j = 0; j < whole; j += kLanes) store(x + j, log_nonnegative<floats, ints>(load(x + j)));
  for (int64_t j = whole; j < count; ++j) x[j] = log_of(x[j]);
}

inline void take_logs(double* x, int64_t count) {
  for (int64_t j = 0; j < count; ++j) x[j] = log_of(x[j]);
}

template <class Stored>
void widen_block(const Stored* from, accumulate_t<Stored>* to, int64_t count, int64_t stride) {
  int64_t j = 0;
  if constexpr (sizeof(accumulate_t<Stored>) == sizeof(float)) {
    if (stride == 1) {
      for (; j + kLanes <= count; j += kLanes) store(to + j, load(from + j));
    }
  }
  for (; j < count; ++j) to[j] = widen(from[j * stride]);
}

// Columns begin.. of one row as logits in the accumulation type: the caller's memory if it is that already, else
// `room`.
template <class Stored>
const accumulate_t<Stored>* logits_of(const Pool& pool, const Stored* row, int64_t begin, int64_t count,
                                      accumulate_t<Stored>* room) {
  const Stored* from = row + begin * pool.class_stride;
  if constexpr (sizeof(Stored) == sizeof(accumulate_t<Stored>)) {
    if (pool.class_stride == 1 && !pool.probabilities) return from;
  }
  widen_block(from, room, count, pool.class_stride);
  if (pool.probabilities) take_logs(room, count);
  return room;
}

// values[c][lane] = class c of row begin + lane, for `rows` (1 to kLanes) rows; the other lanes repeat the last row.
// Classes are kPitch values apart, and what follows the last may be written.
template <class Stored, int64_t kPitch = kLanes>
void gather_group(const Pool& pool, int64_t begin, int64_t rows, float* values) {
  const Stored* data = static_cast<const Stored*>(pool.data) + begin * pool.row_stride;
  const int64_t stride = pool.row_stride;
  // What lies behind a row may be read with it as long as that is inside the pool.
  constexpr int64_t step = kColumns<Stored>;
  const int64_t reach = (pool.classes + step - 1) / step * step;
  const int64_t ahead = (pool.rows - begin - rows) * stride;
  if (rows == kLanes && pool.class_stride == 1 && stride >= 0 && reach <= pool.classes + ahead) {
    for (int64_t column = 0; column < pool.classes; column += step) {
      floats columns[step];
      load_columns<Stored>([&](int lane) { return data + lane * stride + column; }, columns);
      for (int i = 0; i < step; ++i) store(values + (column + i) * kPitch, columns[i]);
    }
  } else {
    for (int lane = 0; lane < kLanes; ++lane) {
      const Stored* row = data + (lane < rows ? lane : rows - 1) * stride;
      for (int64_t c = 0; c < pool.classes; ++c) values[c * kPitch + lane] = widen(row[c * pool.class_stride]);
    }
  }
  if (!pool.probabilities) return;
  for (int64_t c = 0; c < pool.classes; ++c) take_logs(values + c * kPitch, kLanes);
}

// Rows' results to memory: all lanes at once, or the first `rows`.
template <class Lanes, class Number>
void write_lanes(Number* to, Lanes from, int64_t rows) {
  if (rows == kLanes) {
    memcpy(to, &from, sizeof(from));
  } else {
    for (int64_t lane = 0; lane < rows; ++lane) to[lane] = from[lane];
  }
}

}  // namespace
}  // namespace prunefuse::cpu::PRUNEFUSE_ISA
