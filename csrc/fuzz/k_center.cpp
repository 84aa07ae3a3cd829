// The inner loops of greedy k-center: rows in any state of being up to date, brought up to date in any company, have
// the same distances bit for bit.
#include "../cpu/kernels/k_center.h"

#include <algorithm>
#include <memory>
#include <numeric>

#include "../cpu/isa.h"
#include "fuzz.h"

namespace prunefuse::fuzz {
namespace {

template <class T>
struct Features {
  int64_t rows, width;
  std::vector<T> values;
};

template <class T>
Features<T> random_features(Random& random) {
  Features<T> x = {
      1 + random.below(150), random.one_of<int64_t>({0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 64, 67}), {}};
  const double offset = random.one_of({0.0, 0.0, 100.0, -1e4}), spread = random.one_of({1e-20, 1.0, 1e10});
  const bool integers = random.once_in(3);
  for (int64_t i = 0; i < x.rows * x.width; ++i) {
    const double value = integers ? static_cast<double>(random.below(5)) : random.normal();
    x.values.push_back(static_cast<T>((value + offset) * spread));
  }
  x.values.shrink_to_fit();
  return x;
}

template <class T>
void check_distances(Random& random, const Features<T>& x) {
  const auto apply = [&] {
    using namespace cpu;
    return PRUNEFUSE_CHOOSE(apply_centers<T>);
  }();
  std::vector<int64_t> centers(static_cast<size_t>(random.below(90)));
  for (int64_t& center : centers) center = random.below(x.rows);
  const auto count = static_cast<int32_t>(centers.size());
  const auto rows = static_cast<size_t>(x.rows);
  constexpr T infinity = std::numeric_limits<T>::infinity();
  std::vector<T> weights(rows);
  for (T& weight : weights) weight = static_cast<T>(random.below(4)) / 2;
  const bool weighted = random.once_in(2);
  const T* const factors = weighted ? weights.data() : nullptr;
  const T least = random.once_in(2) ? 0 : static_cast<T>(random.one_of({1e-40, 1.0, 9.0, 1e20}));

  // One row and one center at a time.
  std::vector<T> expected(rows, infinity);
  std::vector<int32_t> one_by_one(rows, 0);
  for (int64_t i = 0; i < x.rows; ++i) {
    for (int32_t n = 0; n < count; ++n) {
      apply({x.values.data(), x.width, centers.data(), n + 1, factors, least}, &i, 1, expected.data(),
            one_by_one.data());
    }
    long double nearest = infinity;
    for (const int64_t center : centers) {
      long double sum = 0;
      for (int64_t j = 0; j < x.width; ++j) {
        const auto at = [&](int64_t row) {
          return static_cast<long double>(x.values[static_cast<size_t>(row * x.width + j)]);
        };
        sum += (at(i) - at(center)) * (at(i) - at(center));
      }
      nearest = std::fmin(nearest, sum);
    }
    const long double size = std::isinf(nearest) ? 0 : nearest;
    const long double slack = static_cast<long double>(x.width + 4) * std::numeric_limits<T>::epsilon() * size +
                              4 * static_cast<long double>(x.width) * std::numeric_limits<T>::denorm_min();
    const T got = expected[static_cast<size_t>(i)];
    const long double weight = weighted ? weights[static_cast<size_t>(i)] : 1;
    const bool too_near = got == -1 && nearest < static_cast<long double>(least) + slack;
    const bool far_enough = std::isinf(nearest) || nearest >= static_cast<long double>(least) - slack;
    expect(too_near || (far_enough && near(got, std::isinf(nearest) ? nearest : weight * nearest, 2 * slack)),
           "distance of row ", i, ": ", got, ", not ", nearest, " times ", weight, ", at least ", least);
  }

  std::vector<T> nearest(rows, infinity);
  std::vector<int32_t> applied(rows, 0);
  for (int64_t known = 0; known < count;) {
    known += 1 + random.below(count - known);
    if (random.once_in(3)) known = count;
    std::vector<int64_t> some(rows);
    std::iota(some.begin(), some.end(), 0);
    std::shuffle(some.begin(), some.end(), std::mt19937_64(random.bits()));
    if (known < count) some.resize(static_cast<size_t>(random.below(x.rows + 1)));
    some.shrink_to_fit();
    apply({x.values.data(), x.width, centers.data(), known, factors, least}, some.data(),
          static_cast<int64_t>(some.size()), nearest.data(), applied.data());
  }
  expect(memcmp(nearest.data(), expected.data(), rows * sizeof(T)) == 0,
         "distances depend on when, or with what else, they are computed");
  expect(applied == std::vector<int32_t>(rows, count) && applied == one_by_one, "not all centers count as applied");
}

template <class T>
void check_search(Random& random, Features<T> x) {
  const auto largest = [&] {
    using namespace cpu;
    return PRUNEFUSE_CHOOSE(largest<T>);
  }();
  const auto find_finite = [&] {
    using namespace cpu;
    return PRUNEFUSE_CHOOSE(find_finite<T>);
  }();
  std::vector<T> values(static_cast<size_t>(1 + random.below(200)));
  for (T& value : values) {
    value = random.once_in(4) ? std::numeric_limits<T>::infinity() : static_cast<T>(random.below(6) - 1);
    if (random.once_in(2)) value = -1;
  }
  const int64_t position = largest(values.data(), static_cast<int64_t>(values.size()));
  expect(position == std::max_element(values.begin(), values.end()) - values.begin(), "the largest is at ", position);

  std::vector<bool> expected(static_cast<size_t>(x.rows), true);
  for (int64_t i = 0; i < x.rows; ++i) {
    if (x.width == 0 || !random.once_in(3)) continue;
    const T big = std::sqrt(std::numeric_limits<T>::max());
    const T special = random.one_of({std::numeric_limits<T>::quiet_NaN(), std::numeric_limits<T>::infinity(),
                                     -std::numeric_limits<T>::max(), big * T(1.01), big * T(0.5)});
    x.values[static_cast<size_t>(i * x.width + random.below(x.width))] = special;
    expected[static_cast<size_t>(i)] = special == big * T(0.5);
  }
  const std::unique_ptr<bool[]> finite(new bool[static_cast<size_t>(x.rows)]());
  const int64_t cut = random.below(x.rows + 1);
  find_finite(x.values.data(), x.width, finite.get(), cut, x.rows);
  find_finite(x.values.data(), x.width, finite.get(), 0, cut);
  for (int64_t i = 0; i < x.rows; ++i) {
    expect(finite[static_cast<size_t>(i)] == expected[static_cast<size_t>(i)], "row ", i, " taken for finite or not");
  }
}

template <class T>
void typed_case(Random& random) {
  const Features<T> x = random_features<T>(random);
  for_levels([&] {
    check_distances(random, x);
    check_search(random, x);
  });
}

}  // namespace

void k_center_case(Random& random) { random.once_in(2) ? typed_case<float>(random) : typed_case<double>(random); }

}  // namespace prunefuse::fuzz
