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

}  // namespace prunefuse
