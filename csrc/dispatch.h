// From a run-time dtype to a template argument: a function object is called with a value of the storage type.
#pragma once

#include "check.h"
#include "math/portable.h"

namespace prunefuse {

template <class Function>
void dispatch_floating(const char* op, const char* argument, torch::headeronly::ScalarType dtype,
                       const Function& function) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Float:
      return function(float{});
    case ScalarType::Double:
      return function(double{});
    case ScalarType::Half:
      return function(half_bits{});
    case ScalarType::BFloat16:
      return function(bfloat16_bits{});
    default:
      check(false, op, argument, " must be float16, bfloat16, float32 or float64, got ",
            torch::headeronly::toString(dtype));
  }
}

template <class Function>
void dispatch_float_double(const char* op, const char* argument, torch::headeronly::ScalarType dtype,
                           const Function& function) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Float:
      return function(float{});
    case ScalarType::Double:
      return function(double{});
    default:
      check(false, op, argument, " must be float32 or float64, got ", torch::headeronly::toString(dtype));
  }
}

}  // namespace prunefuse
