// One row's statistics by their definitions, in long double.
#pragma once

#include "fuzz.h"

namespace prunefuse::fuzz {

struct RowTruth {
  std::vector<long double> logits;         // logarithms where the values are probabilities
  std::vector<long double> probabilities;  // all NaN where the row has no distribution
  int64_t argmax = -1;
  bool tied = false;  // another value is so near the maximum that float32 may take it for equal
  long double utilities[5];
  long double logsumexp, p1, p2;
  // The logarithm of a probability is itself rounded: what that does to a result, in units of its own rounding.
  long double amplified = 1;
};

RowTruth truth_of_row(std::vector<long double> values, bool probabilities, long double temperature);

// In nats, of numbers that sum to 1.
long double entropy_of(const std::vector<long double>& probabilities);

template <class Stored>
RowTruth truth_of(const Array<Stored>& array, int64_t pass, int64_t row, bool probabilities, double temperature) {
  std::vector<long double> values;
  for (int64_t c = 0; c < array.layout.sizes[2]; ++c) {
    values.push_back(value_of(array.memory[array.position(pass, row, c)]));
  }
  return truth_of_row(std::move(values), probabilities, temperature);
}

// What a result of size about 1 may be off by.
template <class Acc>
long double tolerance_of(const RowTruth& truth) {
  const long double classes = static_cast<long double>(truth.logits.size());
  return 8 * std::numeric_limits<Acc>::epsilon() * std::fmax(1.0L, std::log(classes)) * truth.amplified;
}

}  // namespace prunefuse::fuzz
