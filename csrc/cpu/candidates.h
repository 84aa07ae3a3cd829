// What picking the best of a pool and of a stream share: a threshold that about the best b of many values reach,
// estimated from a sample, and the order in which candidates are picked.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <type_traits>
#include <vector>

#include "../math/order.h"

namespace prunefuse::cpu {

template <class T>
struct Candidate {
  T utility;
  int64_t index;
};

// A value that, by a sample, more than b of the values reach, but not many more; that it is so must be checked. NaN
// counts as lowest.
template <class T>
T estimate_threshold(const T* values, int64_t count, int64_t b) {
  T sample[kSample];
  for (int64_t i = 0; i < kSample; ++i) {
    sample[i] = values[sample_place(i, count)];
    if (sample[i] != sample[i]) sample[i] = -std::numeric_limits<T>::infinity();
  }
  const int64_t at = sample_rank(b, count);
  std::nth_element(sample, sample + at, sample + kSample, std::greater<T>());
  return sample[at];
}

// Stable, by a number of each candidate, the lowest first; `spare` is memory to use. A digit that is the same in all of
// them costs nothing but a count.
template <class Entry, class Number>
void radix_sort(std::vector<Entry>& entries, std::vector<Entry>& spare, const Number& number) {
  using Unsigned = decltype(number(entries[0]));
  constexpr int kBits = 11, kDigits = (8 * sizeof(Unsigned) + kBits - 1) / kBits;
  constexpr uint32_t kBins = 1 << kBits;
  std::vector<size_t> starts(size_t(kDigits) * kBins);
  for (const Entry& entry : entries) {
    const Unsigned n = number(entry);
    for (int d = 0; d < kDigits; ++d) ++starts[size_t(d) * kBins + (n >> (d * kBits) & (kBins - 1))];
  }
  spare.resize(entries.size());
  for (int d = 0; d < kDigits; ++d) {
    size_t* start = starts.data() + size_t(d) * kBins;
    if (std::any_of(start, start + kBins, [&](size_t n) { return n == entries.size(); })) continue;
    size_t before = 0;
    for (uint32_t bin = 0; bin < kBins; ++bin) {
      const size_t size = start[bin];
      start[bin] = before;
      before += size;
    }
    for (const Entry& entry : entries) spare[start[number(entry) >> (d * kBits) & (kBins - 1)]++] = entry;
    entries.swap(spare);
  }
}

// Larger utility first, equals by lower index.
template <class T>
void sort_candidates(std::vector<Candidate<T>>& candidates) {
  using Entry = Candidate<T>;
  constexpr size_t kFew = 512;  // are sorted before a radix sort has cleared its counts
  if (candidates.size() <= kFew) {
    std::sort(candidates.begin(), candidates.end(), [](const Entry& a, const Entry& b) {
      return a.utility > b.utility || (a.utility == b.utility && a.index < b.index);
    });
    return;
  }
  std::vector<Entry> spare;
  const auto lower = [](const Entry& a, const Entry& b) { return a.index < b.index; };
  if (!std::is_sorted(candidates.begin(), candidates.end(), lower)) {
    constexpr uint64_t sign = uint64_t(1) << 63;  // a caller's index may be negative
    radix_sort(candidates, spare, [](const Entry& entry) { return static_cast<uint64_t>(entry.index) ^ sign; });
  }
  radix_sort(candidates, spare, [](const Entry& entry) { return order_key_t<T>(~order_key(entry.utility)); });
}

}  // namespace prunefuse::cpu
