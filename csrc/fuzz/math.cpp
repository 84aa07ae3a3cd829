// The scalar math that CPU and CUDA share: exponential and logarithms, widening, the order of utilities, shares of rows
// in registers, and the index arithmetic of scatter.
#include "../math/exp_log.h"
#include "../math/order.h"
#include "../math/scatter.h"
#include "../math/shares.h"
#include "fuzz.h"

namespace prunefuse::fuzz {
namespace {

constexpr long double kEps = std::numeric_limits<float>::epsilon();

// Any bit pattern: NaN, infinities and subnormal numbers come often enough.
float any_float(Random& random) {
  const auto bits = static_cast<uint32_t>(random.bits());
  return bits_as<float>(random.once_in(8) ? bits & 0x807fffffu : bits);
}

void check_exp_log(Random& random) {
  const float x = any_float(random);
  // log1p and exp are for what sums and differences from a maximum are.
  const auto z = static_cast<float>(-std::pow(10, random.uniform() * 8 - 4));
  const auto wide = static_cast<long double>(z);
  expect(near(exp_of(z), std::exp(wide), (2 - wide) * kEps * std::exp(wide) + 0x1p-125f), "exp(", z, ") is ",
         exp_of(z));
  const long double log = x >= 0 ? std::log(static_cast<long double>(x)) : std::nan("");
  expect(near(log_of(x), log, 2 * kEps * std::fabs(log)), "log(", x, ") is ", log_of(x), ", not ", log);
  expect(near(log_of(-x), x <= 0 ? std::log(-static_cast<long double>(x)) : std::nan(""), 200 * kEps), "log(", -x, ")");
  const float sum = std::isfinite(x) ? std::fabs(x) : 0.0f;
  const long double log1p = std::log1p(static_cast<long double>(sum));
  expect(near(log1p_of(sum), log1p, 2 * kEps * log1p + std::numeric_limits<float>::denorm_min()), "log1p(", sum,
         ") is ", log1p_of(sum), ", not ", log1p);
}

template <class Stored>
void check_widen(uint16_t bits) {
  const Stored stored{bits};
  const float got = widen(stored);
  const double expected = value_of(stored);
  expect(near(got, expected, 0) && std::signbit(got) == ((bits & 0x8000) != 0), "bits ", bits, " widen to ", got);
}

template <class T>
void check_order(T a, T b) {
  const auto x = order_key(a), y = order_key(b);
  if (std::isnan(a) || std::isnan(b)) {
    expect((x == kNeverSelected<order_key_t<T>>) == std::isnan(a) && (y == 0) == std::isnan(b), "NaN among ", a, ", ",
           b);
  } else {
    expect((x > y) == (a > b) && (x == y) == (a == b) && x > 0, "order of ", a, " and ", b);
  }
}

// A lane's share of a row: its largest number, piece by piece, and the sum of its exponentials in either way.
template <class Stored, int Width>
void check_share(Random& random) {
  using Acc = accumulate_t<Stored>;
  constexpr int pieces = 32 / Width;
  const Numbers numbers(random, false);
  Piece<Stored, Width> share[pieces];
  long double values[32], top = -std::numeric_limits<long double>::infinity();
  for (int l = 0; l < pieces; ++l) {
    Stored stored[Width];
    for (int i = 0; i < Width; ++i) {
      narrow(numbers.draw(random), stored[i]);
      values[l * Width + i] = value_of(stored[i]);
      if (!std::isnan(values[l * Width + i])) top = std::max(top, values[l * Width + i]);
    }
    share[l] = {};
    std::memcpy(share[l].words, stored, sizeof(stored));
    for (int i = 0; i < Width; ++i) {
      expect(near(value_at(share[l], i), values[l * Width + i], 0), "value ", i, " of a piece");
    }
  }
  PieceTop<Stored, Width> tops[pieces];
  const Acc found = find_tops(share, tops);
  if (std::isinf(top) && top < 0) {
    expect(std::isnan(found) || found == -std::numeric_limits<Acc>::infinity(), "largest of none is ", found);
    return;
  }
  expect(static_cast<long double>(found) == top, "largest is ", found, ", not ", top);
  for (int l = 0; l < pieces; ++l) {
    long double of_piece = -std::numeric_limits<long double>::infinity();
    for (int i = 0; i < Width; ++i) of_piece = std::fmax(of_piece, values[l * Width + i]);
    expect(tops[l].is(found) == (of_piece == top), "piece ", l, " has the largest");
    const Acc largest = tops[l].largest();
    expect(std::isnan(largest) || static_cast<long double>(largest) == of_piece, "largest of piece ", l, " is ",
           largest, ", not ", of_piece);
  }

  const Acc scale = exponent_scale(static_cast<Acc>(std::pow(10, random.uniform() * 4 - 2)));
  const Exponents<Acc> exponents(found, scale);
  constexpr bool powers_of_two = sizeof(Acc) == sizeof(float);
  if (!std::isfinite(top)) return;
  long double truth = 0, careful = 0, quick = 0;
  bool finite = exponents.usable;
  for (const long double wide : values) {
    const auto value = static_cast<Acc>(wide);
    finite = finite && std::isfinite(value);
    const long double t = (wide - top) * scale;
    truth += powers_of_two ? std::exp2(t) : std::exp(t);
    careful += exponential(exponents.careful(value));
    if (finite) quick += exponential(exponents.quick(value));
  }
  const long double allowed = 64 * static_cast<long double>(std::numeric_limits<Acc>::epsilon()) * truth;
  expect(near(careful, truth, allowed), "careful sum ", careful, ", not ", truth);
  quick *= finite ? exponential(-exponents.error) : Acc(1);
  expect(!finite || near(quick, truth, allowed), "quick sum ", quick, ", not ", truth, " of largest ", found);
}

void check_scatter(Random& random) {
  ScatterTarget target{};
  target.rank = random.below(kMaxRank + 1);
  std::vector<std::vector<int64_t>> kept(static_cast<size_t>(target.rank));
  int64_t elements = 1;
  for (int64_t axis = 0; axis < target.rank; ++axis) {
    target.sizes[axis] = 1 + random.below(4);
    target.strides[axis] = random.below(1000);
    elements *= target.sizes[axis];
    auto& indices = kept[static_cast<size_t>(axis)];
    for (int64_t i = 0; i < target.sizes[axis]; ++i) indices.push_back(3 * i + random.below(3));
    indices.shrink_to_fit();
    if (random.once_in(2)) target.kept[axis] = indices.data();
  }
  const int64_t position = random.below(elements);
  int64_t offset = 0, left = position, block = elements;
  for (int64_t axis = 0; axis < target.rank; ++axis) {
    block /= target.sizes[axis];
    const int64_t i = left / block;
    left %= block;
    offset += (target.kept[axis] != nullptr ? kept[static_cast<size_t>(axis)][static_cast<size_t>(i)] : i) *
              target.strides[axis];
  }
  expect(dense_offset(target, target.rank, position) == offset, "offset of element ", position, " is not ", offset);
}

}  // namespace

void math_case(Random& random) {
  for (int i = 0; i < 50; ++i) {
    check_exp_log(random);
    const auto bits = static_cast<uint16_t>(random.bits());
    check_widen<half_bits>(bits);
    check_widen<bfloat16_bits>(bits);
    const float a = any_float(random);
    check_order(a, random.once_in(3) ? -a : any_float(random));
    check_order(bits_as<double>(random.bits()), static_cast<double>(a));
  }
  check_share<float, 1>(random);
  check_share<float, 4>(random);
  check_share<half_bits, 1>(random);
  check_share<half_bits, 2>(random);
  check_share<half_bits, 8>(random);
  check_share<bfloat16_bits, 4>(random);
  check_share<bfloat16_bits, 8>(random);
  check_share<double, 2>(random);
  check_scatter(random);
}

}  // namespace prunefuse::fuzz
