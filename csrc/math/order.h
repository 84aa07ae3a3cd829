// The order in which utilities are picked, as unsigned integers: a larger key is picked first. Shared by CPU and CUDA.
#pragma once

#include "portable.h"

namespace prunefuse {

// Never selected; below the key of every number, -inf included.
template <class Key>
constexpr Key kNeverSelected = 0;

template <class T>
struct key_of_float {};
template <>
struct key_of_float<float> {
  using type = uint32_t;
};
template <>
struct key_of_float<double> {
  using type = uint64_t;
};
template <class T>
using order_key_t = typename key_of_float<T>::type;

// IEEE numbers sort like sign-and-magnitude integers; flipping makes them sort like unsigned ones. -0 counts as +0.
template <class T>
PRUNEFUSE_HD order_key_t<T> order_key(T utility) {
  using Key = order_key_t<T>;
  if (utility != utility) return kNeverSelected<Key>;
  const Key bits = bits_as<Key>(utility == 0 ? T(0) : utility);
  constexpr Key sign = Key(1) << (8 * sizeof(Key) - 1);
  return (bits & sign) != 0 ? ~bits : (bits | sign);
}

// The utility of a key that is not kNeverSelected.
template <class T>
PRUNEFUSE_HD T utility_of(order_key_t<T> key) {
  constexpr order_key_t<T> sign = order_key_t<T>(1) << (8 * sizeof(T) - 1);
  return bits_as<T>((key & sign) != 0 ? key ^ sign : order_key_t<T>(~key));
}

// A sample of `count` values, from which to estimate what about the best b of them reach.
constexpr int64_t kSample = 2048;

// Strides of a large odd number of places: unlike equal ones, they do not fall in step with a pattern in the values.
PRUNEFUSE_HD int64_t sample_place(int64_t i, int64_t count) {
  constexpr uint64_t kStride = 0x9e3779b97f4a7c15;
  return static_cast<int64_t>((static_cast<uint64_t>(i) * kStride >> 32) * static_cast<uint64_t>(count) >> 32);
}

// The place in the sorted sample, from 0, of a value that more than b of the values reach, very likely.
PRUNEFUSE_HD int64_t sample_rank(int64_t b, int64_t count, int64_t sample = kSample) {
  const double share = static_cast<double>(b) / static_cast<double>(count), size = static_cast<double>(sample);
  const double rank = size * share + 4 * ::sqrt(size * share * (1 - share)) + 4;
  return rank < size ? static_cast<int64_t>(rank) : sample - 1;
}

}  // namespace prunefuse
