#include "fuzz.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "../cpu/isa.h"

namespace prunefuse::fuzz {

Running running;

void for_levels(const std::function<void()>& body) {
  for (int level = 0; level <= prunefuse_isa_best(); ++level) {
    prunefuse_isa_force(level);
    running.level = cpu::kIsaNames[level];
    body();
  }
  running.level = "any";
}

Random::Random(uint64_t seed, int64_t number, uint64_t family) {
  std::seed_seq words{seed, seed >> 32, static_cast<uint64_t>(number), family};
  engine_.seed(words);
}

std::vector<int64_t> Random::cuts(int64_t count) {
  std::vector<int64_t> result = {0};
  while (result.back() < count) result.push_back(result.back() + 1 + below(count - result.back()));
  return result;
}

double value_of(half_bits stored) {
  const int exponent = (stored.bits >> 10) & 31, mantissa = stored.bits & 1023;
  const double sign = (stored.bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == 31) return mantissa != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  return sign * (exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(mantissa + 1024, exponent - 25));
}

double value_of(bfloat16_bits stored) {
  const int exponent = (stored.bits >> 7) & 255, mantissa = stored.bits & 127;
  const double sign = (stored.bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == 255) return mantissa != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  return sign * (exponent == 0 ? std::ldexp(mantissa, -133) : std::ldexp(mantissa + 128, exponent - 134));
}

void narrow(double value, half_bits& to) {
  const double size = std::fabs(value);
  uint16_t bits = 0x7c00;
  if (std::isnan(value)) {
    bits = 0x7e00;
  } else if (size < 0x1p-14) {
    bits = static_cast<uint16_t>(std::lround(size * 0x1p24));
  } else if (size < 65504) {
    const int exponent = std::ilogb(size);
    bits = static_cast<uint16_t>(((exponent + 14) << 10) + std::lround(std::ldexp(size, 10 - exponent)));
  }
  to.bits = static_cast<uint16_t>(bits | (std::signbit(value) ? 0x8000 : 0));
}

void narrow(double value, bfloat16_bits& to) {
  to.bits = static_cast<uint16_t>(bits_as<uint32_t>(static_cast<float>(value)) >> 16);
  if (std::isnan(value)) to.bits = 0x7fc0;
}

Layout random_layout(Random& random, int64_t passes, int64_t rows, int64_t classes) {
  Layout layout{{passes, rows, classes}, {}};
  int order[3] = {2, 1, 0};  // innermost first
  if (random.once_in(3)) std::shuffle(std::begin(order), std::end(order), std::mt19937_64(random.bits()));
  int64_t step = random.once_in(6) ? 2 : 1;
  for (const int axis : order) {
    layout.strides[axis] = random.once_in(12) ? 0 : step;
    step = step * layout.sizes[axis] + (random.once_in(4) ? random.below(9) : 0);
  }
  if (std::find(layout.sizes, layout.sizes + 3, 0) != layout.sizes + 3) return layout;
  layout.offset = random.once_in(3) ? random.below(20) : 0;
  layout.length = layout.offset + 1;
  for (int axis = 0; axis < 3; ++axis) layout.length += (layout.sizes[axis] - 1) * layout.strides[axis];
  return layout;
}

Numbers::Numbers(Random& random, bool probabilities)
    : probabilities_(probabilities),
      integers_(random.once_in(5)),
      spread_(random.one_of({0.01, 1.0, 3.0, 30.0, 1e4})),
      special_once_in_(random.one_of<int64_t>({2, 10, 100, 1000})) {
  const double infinity = std::numeric_limits<double>::infinity();
  for (int64_t count = random.below(4); count > 0; --count) {
    specials_.push_back(random.one_of({std::nan(""), infinity, -infinity, -infinity, 0.0, -0.0, 1e-40, -1e-40, 3e38,
                                       -3e38, 6e4, -6e4, 1.7e308, 5e-324, 1.0, -0.3}));
  }
}

double Numbers::draw(Random& random) const {
  if (!specials_.empty() && random.once_in(special_once_in_)) {
    return specials_[static_cast<size_t>(random.below(static_cast<int64_t>(specials_.size())))];
  }
  const double value = probabilities_ ? std::pow(random.uniform(), spread_) : random.normal() * spread_;
  return integers_ ? std::round(value) : value;
}

int64_t random_rows(Random& random) {
  return random.one_of<int64_t>({0, 1, 1, 2, 3, 4, 5, 7, 8, 13, 15, 16, 17, 23, 31, 32, 33, 47});
}

int64_t random_classes(Random& random) {
  if (random.once_in(8)) return random.one_of<int64_t>({257, 511, 512, 513, 521, 1000, 1024, 1031, 1537});
  return random.one_of<int64_t>({1,  1,  2,  2,  3,  4,  5,  6,  7,  8,  9,  10,  10,  11,  12,  13,
                                 15, 16, 17, 23, 31, 32, 33, 47, 61, 64, 65, 100, 127, 128, 129, 131});
}

double random_temperature(Random& random) {
  return random.once_in(2) ? 1 : random.one_of({0.25, 3.0, 0.37, 1e-3, 1e4, 1e-30, 1e30});
}

}  // namespace prunefuse::fuzz
