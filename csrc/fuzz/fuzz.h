// What every family of cases draws on: random numbers, arrays of any layout in memory that is exactly as long as they
// need (a read past its end lands in AddressSanitizer's redzone), and failing with what reproduces the case.
#pragma once

#include <cstdio>
#include <functional>
#include <initializer_list>
#include <random>
#include <sstream>
#include <vector>

#include "../math/portable.h"

namespace prunefuse::fuzz {

// The case that is running: printed by every failure, the sanitizers' included.
struct Running {
  uint64_t seed = 0;
  int64_t number = 0;
  const char* family = "";
  const char* level = "any";
};
extern Running running;
[[noreturn]] void fail(const std::string& what);

template <class... Parts>
void expect(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  message.precision(21);
  (message << ... << parts);
  fail(message.str());
}

// Calls body once for every instruction-set level of this processor, with that level in use.
void for_levels(const std::function<void()>& body);

class Random {
 public:
  Random(uint64_t seed, int64_t number, uint64_t family);
  int64_t below(int64_t count) { return std::uniform_int_distribution<int64_t>(0, count - 1)(engine_); }
  bool once_in(int64_t count) { return below(count) == 0; }
  uint64_t bits() { return engine_(); }
  double uniform() { return std::uniform_real_distribution<double>(0, 1)(engine_); }
  double normal() { return std::normal_distribution<double>(0, 1)(engine_); }
  template <class T>
  T one_of(std::initializer_list<T> choices) {
    return choices.begin()[below(static_cast<int64_t>(choices.size()))];
  }
  // 0 = first < ... < last = count: an interval cut into one or more parts.
  std::vector<int64_t> cuts(int64_t count);

 private:
  std::mt19937_64 engine_;
};

// What the two 16-bit formats say, by their definition.
double value_of(half_bits stored);
double value_of(bfloat16_bits stored);
inline double value_of(float stored) { return static_cast<double>(stored); }
inline double value_of(double stored) { return stored; }

void narrow(double value, half_bits& to);
void narrow(double value, bfloat16_bits& to);
inline void narrow(double value, float& to) { to = static_cast<float>(value); }
inline void narrow(double value, double& to) { to = value; }

// Passes x rows x classes, axes in any order in memory, with gaps, an offset, or one element for a whole axis.
struct Layout {
  int64_t sizes[3];
  int64_t strides[3];
  int64_t offset = 0;
  int64_t length = 0;
};
Layout random_layout(Random& random, int64_t passes, int64_t rows, int64_t classes);

// How the numbers of a case are drawn: around zero (or, for probabilities, above it), with special values in between.
class Numbers {
 public:
  Numbers(Random& random, bool probabilities);
  double draw(Random& random) const;

 private:
  bool probabilities_, integers_;
  double spread_;
  int64_t special_once_in_;
  std::vector<double> specials_;
};

template <class Stored>
struct Array {
  Array(Random& random, const Numbers& numbers, int64_t passes, int64_t rows, int64_t classes)
      : layout(random_layout(random, passes, rows, classes)), memory(static_cast<size_t>(layout.length)) {
    // What lies between the elements must not count.
    for (Stored& element : memory) narrow(std::numeric_limits<double>::quiet_NaN(), element);
    for (int64_t s = 0; s < passes; ++s) {
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t c = 0; c < classes; ++c) narrow(numbers.draw(random), memory[position(s, i, c)]);
      }
    }
  }
  size_t position(int64_t s, int64_t i, int64_t c) const {
    return static_cast<size_t>(layout.offset + s * layout.strides[0] + i * layout.strides[1] + c * layout.strides[2]);
  }
  const Stored* data() const { return memory.data() + layout.offset; }

  Layout layout;
  std::vector<Stored> memory;
};

int64_t random_rows(Random& random);
int64_t random_classes(Random& random);
double random_temperature(Random& random);

// Within `tolerance` of the truth, or the same NaN or infinity (what overflows the type counts as infinite).
template <class Acc>
bool near(Acc got, long double truth, long double tolerance) {
  if (std::isnan(truth)) return std::isnan(got);
  return got == static_cast<Acc>(truth) || std::fabs(static_cast<long double>(got) - truth) <= tolerance;
}

template <class Function>
void for_any_dtype(Random& random, const Function& function) {
  switch (random.below(4)) {
    case 0:
      return function(float{});
    case 1:
      return function(double{});
    case 2:
      return function(half_bits{});
    default:
      return function(bfloat16_bits{});
  }
}

void math_case(Random& random);
void score_case(Random& random);
void ensemble_case(Random& random);
void k_center_case(Random& random);
void k_means_case(Random& random);
void neighbor_case(Random& random);
void dynamics_case(Random& random);
void group_case(Random& random);

}  // namespace prunefuse::fuzz
