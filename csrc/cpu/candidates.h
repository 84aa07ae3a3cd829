// What picking the best of a pool and of a stream share: a threshold that about the best b of many values reach,
// estimated from a sample, and the order in which candidates are picked.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <type_traits>
#include <utility>
#include <vector>

#include "../math/order.h"

namespace prunefuse::cpu {

// With 4-byte utilities and indices it is half as much to move.
template <class T, class Index>
struct Candidate {
  T utility;
  Index index;
};

// A value that, by a sample, more than b of the values reach, but not many more; that it is so must be checked. NaN
// counts as lowest.
template <int64_t kSize = kSample, class T>
T estimate_threshold(const T* values, int64_t count, int64_t b) {
  T sample[kSize];
  for (int64_t i = 0; i < kSize; ++i) {
    const T value = values[sample_place(i, count)];
    sample[i] = value == value ? value : -std::numeric_limits<T>::infinity();
  }
  const int64_t at = sample_rank(b, count, kSize);
  std::nth_element(sample, sample + at, sample + kSize, std::greater<T>());
  return sample[at];
}

// The complement of the order key of a utility that is no NaN: the lowest is picked first.
template <class T>
order_key_t<T> pick_order(T utility) {
  using Key = order_key_t<T>;
  constexpr int last = 8 * sizeof(Key) - 1;
  const Key bits = bits_as<Key>(utility + T(0));  // -0 counts as +0
  return (bits >> last) != 0 ? bits : Key(~bits ^ (Key(1) << last));
}

constexpr int kDigitBits = 11;  // counts of a digit stay in the L1 cache

// The least and the largest number of the entries.
template <class Entry, class Number>
auto extent(const std::vector<Entry>& entries, const Number& number) {
  using Unsigned = decltype(number(entries[0]));
  std::pair<Unsigned, Unsigned> found = {~Unsigned(0), 0};
  for (const Entry& entry : entries) {
    found.first = std::min(found.first, number(entry));
    found.second = std::max(found.second, number(entry));
  }
  return found;
}

// Leaves out, by the leading digit of their numbers, entries that are not among the `count` of lowest number.
template <class Entry, class Number>
void keep_lowest(std::vector<Entry>& entries, size_t count, const Number& number) {
  if (entries.size() <= count) return;
  const auto [lowest, highest] = extent(entries, number);
  const auto least = lowest;
  const int width = static_cast<int>(std::bit_width(highest - lowest));
  const int shift = std::max(width - kDigitBits, 0);
  const auto bin_of = [&](const Entry& entry) { return static_cast<size_t>((number(entry) - least) >> shift); };
  std::vector<uint32_t> counts(size_t(1) << kDigitBits);
  for (const Entry& entry : entries) ++counts[bin_of(entry)];
  size_t last = 0;
  for (size_t reached = counts[0]; reached < count; reached += counts[last]) ++last;
  size_t left = 0;
  for (const Entry& entry : entries) {
    entries[left] = entry;
    left += bin_of(entry) <= last;
  }
  entries.resize(left);
}

// Stable, by a number of each entry, the lowest first; `spare` is memory to use. Only the digits in which the numbers
// differ cost a pass.
template <class Entry, class Number>
void radix_sort(std::vector<Entry>& entries, std::vector<Entry>& spare, const Number& number) {
  const auto [lowest, highest] = extent(entries, number);
  if (lowest >= highest) return;
  const auto least = lowest;
  const int width = static_cast<int>(std::bit_width(highest - lowest));
  const int digits = (width + kDigitBits - 1) / kDigitBits, bits = (width + digits - 1) / digits;
  const size_t bins = size_t(1) << bits;
  const auto digit = [&](const Entry& entry, int d) { return (number(entry) - least) >> (d * bits) & (bins - 1); };
  std::vector<size_t> starts(size_t(digits) * bins);
  for (const Entry& entry : entries) {
    for (int d = 0; d < digits; ++d) ++starts[size_t(d) * bins + digit(entry, d)];
  }
  spare.resize(entries.size());
  for (int d = 0; d < digits; ++d) {
    size_t* start = starts.data() + size_t(d) * bins;
    size_t before = 0;
    for (size_t bin = 0; bin < bins; ++bin) before += std::exchange(start[bin], before);
    for (const Entry& entry : entries) spare[start[digit(entry, d)]++] = entry;
    entries.swap(spare);
  }
}

// Lower index first.
template <class T, class Index>
void sort_by_index(std::vector<Candidate<T, Index>>& candidates) {
  using Entry = Candidate<T, Index>;
  const auto lower = [](const Entry& a, const Entry& b) { return a.index < b.index; };
  if (std::is_sorted(candidates.begin(), candidates.end(), lower)) return;
  std::vector<Entry> spare;
  constexpr uint64_t sign = uint64_t(1) << 63;  // a caller's index may be negative
  radix_sort(candidates, spare, [](const Entry& entry) { return static_cast<uint64_t>(entry.index) ^ sign; });
}

// Of candidates in the order of their indices the b best: larger utility first, equals by lower index. Others may
// follow.
template <class T, class Index>
void sort_candidates(std::vector<Candidate<T, Index>>& candidates, int64_t b) {
  using Entry = Candidate<T, Index>;
  constexpr size_t kFew = 512;  // are sorted before a radix sort has cleared its counts
  if (candidates.size() <= kFew) {
    std::sort(candidates.begin(), candidates.end(), [](const Entry& a, const Entry& other) {
      return a.utility > other.utility || (a.utility == other.utility && a.index < other.index);
    });
    return;
  }
  const auto number = [](const Entry& entry) { return pick_order(entry.utility); };
  keep_lowest(candidates, static_cast<size_t>(b), number);
  std::vector<Entry> spare;
  radix_sort(candidates, spare, number);
}

}  // namespace prunefuse::cpu
