// One row's logits as exponentials relative to their maximum, kept in the cache for a second walk.
#pragma once

#include "rows.h"

namespace prunefuse::cpu::PRUNEFUSE_ISA {
namespace {

// Values added up in lanes before a sum goes on as one number: keeps the rounding of long rows down.
constexpr int64_t kBlock = 512;
constexpr int64_t kSum = 32;  // the same for values added up one by one

// The whole row as logits in the accumulation type: the caller's memory if it is that already, else `room`.
template <class Stored>
const accumulate_t<Stored>* row_logits(const Pool& pool, const Stored* row, accumulate_t<Stored>* room) {
  return logits_of(pool, row, 0, pool.classes, room);
}

// What the exponentials of one row's logits say.
template <class Acc>
struct RowSums {
  int64_t argmax = -1;  // -1: the row has no distribution
  Acc entropy = std::numeric_limits<Acc>::quiet_NaN();
  Acc rest = std::numeric_limits<Acc>::quiet_NaN();     // their sum without the maximum's own 1
  Acc inverse = std::numeric_limits<Acc>::quiet_NaN();  // what the exponentials times this are the probabilities
};

// Writes the exponentials of the row's logits, relative to its maximum, to `e` (which may be `x`).
template <class Acc>
RowSums<Acc> exponentials_one_by_one(const Acc* x, Acc* e, int64_t classes, Acc inverse_temperature) {
  RowSums<Acc> row;
  Acc max = -std::numeric_limits<Acc>::infinity();
  bool has_nan = false;
  for (int64_t j = 0; j < classes; ++j) {
    has_nan = has_nan || x[j] != x[j];
    if (x[j] > max) {
      max = x[j];
      row.argmax = j;
    }
  }
  if (has_nan || row.argmax < 0) return {};
  Acc ties = 0, tail = 0, dot = 0;
  for (int64_t begin = 0; begin < classes; begin += kSum) {
    Acc part_tail = 0, part_dot = 0;
    for (int64_t j = begin; j < classes && j < begin + kSum; ++j) {
      if (x[j] == max) {
        ties += 1;
        e[j] = 1;
      } else {
        const Acc z = shifted(x[j], max, inverse_temperature);
        e[j] = exp_of(z);
        part_tail += e[j];
        part_dot += e[j] * z;
      }
    }
    tail += part_tail;
    dot += part_dot;
  }
  const Acc rest = (ties - 1) + tail;
  row.rest = rest;
  row.inverse = 1 / (rest + 1);
  row.entropy = log1p_of(rest) - dot * row.inverse;
  return row;
}

// The same; `fetch(class)` asks for what is read next, while this leaves the memory idle.
template <class Fetch>
RowSums<double> exponentials(const double* x, double* e, int64_t classes, double inverse_temperature, const Fetch&) {
  return exponentials_one_by_one(x, e, classes, inverse_temperature);
}

template <class Fetch>
RowSums<float> exponentials(const float* x, float* e, int64_t classes, float inverse_temperature, const Fetch& fetch) {
  constexpr float lowest = -std::numeric_limits<float>::infinity();
  float highest = lowest;
  int64_t leading_block = 0;
  for (int64_t begin = 0; begin < classes; begin += kBlock) {
    const int64_t end = begin + kBlock < classes ? begin + kBlock : classes;
    floats top = broadcast(lowest);
    int64_t j = begin;
    for (; j + kLanes <= end; j += kLanes) top = larger(load(x + j), top);
    top = larger(load_first(x + j, end - j, lowest), top);
    const float block = largest(top);
    if (block > highest) {
      highest = block;
      leading_block = begin;
    }
  }
  if (!is_finite(highest)) return exponentials_one_by_one(x, e, classes, inverse_temperature);
  RowSums<float> row;
  row.argmax = leading_block;
  const floats max = broadcast(highest), scale = broadcast(inverse_temperature * kLog2E);
  while (row.argmax + kLanes <= classes && !any_equal(load(x + row.argmax), max)) row.argmax += kLanes;
  while (!(x[row.argmax] == highest)) ++row.argmax;

  float ties = 0, tail = 0, dot = 0;
  for (int64_t begin = 0; begin < classes; begin += kBlock) {
    const int64_t end = begin + kBlock < classes ? begin + kBlock : classes;
    floats block_tail{}, block_dot{};
    ints block_ties{};
    const auto take = [&](floats values) {
      const Exponential value = exponential(values, max, scale);
      block_ties -= value.equal;
      block_tail += value.lower;
      block_dot += value.lower * value.t;
      return value.e;
    };
    int64_t j = begin;
    for (; j + kLanes <= end; j += kLanes) {
      store(e + j, take(load(x + j)));
      fetch(j);
    }
    if (j < end) {
      store_first(e + j, take(load_first(x + j, end - j, lowest)), end - j);
    }
    tail += sum(block_tail);
    dot += sum(block_dot);
    ties += sum(__builtin_convertvector(block_ties, floats));
  }
  if (dot != dot) return {};
  const float rest = (ties - 1) + tail;
  row.rest = rest;
  row.inverse = 1 / (rest + 1);
  row.entropy = log1p_of(rest) - dot * kLn2 * row.inverse;
  return row;
}

}  // namespace
}  // namespace prunefuse::cpu::PRUNEFUSE_ISA
