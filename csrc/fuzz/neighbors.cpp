// The inner loops of the search for nearest neighbors: sums of squares, the filter, and a bound for the k smallest.
#include "../cpu/kernels/neighbors.h"

#include <algorithm>
#include <numeric>

#include "../cpu/isa.h"
#include "fuzz.h"

namespace prunefuse::fuzz {
namespace {

template <class Stored>
void check_rows(Random& random) {
  using Acc = accumulate_t<Stored>;
  const int64_t width = 1 + random.below(70);
  const double offset = random.one_of({0.0, 0.0, 100.0}), a = random.uniform() + 0.1, b = random.uniform() + 0.1;
  std::vector<Stored> x(static_cast<size_t>(width)), y(x.size());
  std::vector<Acc> origin(x.size()), prepared(x.size());
  for (size_t j = 0; j < x.size(); ++j) {
    narrow(random.normal() + offset, x[j]);
    narrow(random.normal() + offset, y[j]);
    origin[j] = static_cast<Acc>(random.normal());
  }
  long double norm = 0, distance = 0;
  for (size_t j = 0; j < x.size(); ++j) {
    const long double p = static_cast<long double>(value_of(x[j])) * a,
                      q = static_cast<long double>(value_of(y[j])) * b;
    norm += p * p;
    distance += (p - q) * (p - q);
  }
  const auto tolerance = [&](long double of) { return static_cast<long double>(width + 8) * 2.3e-16L * of; };
  using namespace cpu;
  expect(near(PRUNEFUSE_CHOOSE(squared_norm<Stored>)(x.data(), a, width), norm, tolerance(norm)), "squared norm");
  // Products of values and factors are rounded before they are subtracted.
  // As many rows as are taken together, and some that are left: y, and x itself.
  const int64_t count = 1 + random.below(9);
  std::vector<Stored> rows;
  std::vector<double> factors, scaled(x.size()), squared(static_cast<size_t>(count));
  std::vector<int64_t> which;
  for (int64_t i = 0; i < count; ++i) {
    const bool is_y = random.once_in(2);
    rows.insert(rows.end(), (is_y ? y : x).begin(), (is_y ? y : x).end());
    factors.push_back(is_y ? b : a);
    which.push_back(count - 1 - i);
  }
  PRUNEFUSE_CHOOSE(squared_distances<Stored>)
  (x.data(), a, rows.data(), factors.data(), width, which.data(), count, scaled.data(), squared.data());
  for (size_t i = 0; i < which.size(); ++i) {
    const bool is_y = factors[static_cast<size_t>(which[i])] == b;
    expect(near(squared[i], is_y ? distance : 0, is_y ? tolerance(distance + std::sqrt(distance * norm)) : 0),
           "squared distance ", squared[i], ", not ", is_y ? distance : 0);
  }
  PRUNEFUSE_CHOOSE(squared_distances<Stored>)
  (x.data(), 1, rows.data(), nullptr, width, which.data(), count, scaled.data(), squared.data());
  factors.assign(factors.size(), 1);
  std::vector<double> same(squared);
  PRUNEFUSE_CHOOSE(squared_distances<Stored>)
  (x.data(), 1, rows.data(), factors.data(), width, which.data(), count, scaled.data(), squared.data());
  expect(same == squared, "factors of 1 change a distance");
  PRUNEFUSE_CHOOSE(prepare_row<Stored>)(x.data(), a, origin.data(), width, prepared.data());
  for (size_t j = 0; j < x.size(); ++j) {
    const long double whole = static_cast<long double>(value_of(x[j])) * static_cast<Acc>(a);
    const long double expected = whole - origin[j];
    expect(near(prepared[j], expected, 2 * std::numeric_limits<Acc>::epsilon() * (std::fabs(whole) + 1)),
           "prepared value ", j, ": ", prepared[j], ", not ", expected);
  }
}

template <class T>
void check_filter(Random& random) {
  const int64_t count = 1 + random.below(cpu::kNeighborRun);
  std::vector<T> products(static_cast<size_t>(count)), norms(products.size());
  const bool integers = random.once_in(2);
  for (size_t i = 0; i < products.size(); ++i) {
    products[i] = integers ? static_cast<T>(random.below(5)) : static_cast<T>(random.normal());
    norms[i] = integers ? static_cast<T>(random.below(3)) : static_cast<T>(random.uniform());
  }
  const T bar = random.once_in(5)   ? std::numeric_limits<T>::infinity()
                : random.once_in(5) ? std::numeric_limits<T>::lowest()
                                    : static_cast<T>(random.below(9) - 6);
  std::vector<T> keys(products.size() + 1);
  std::vector<int64_t> rows(products.size() + 1);
  const int64_t first = random.below(3) * (int64_t{1} << 40);
  using namespace cpu;
  const int64_t found =
      PRUNEFUSE_CHOOSE(keys_below<T>)(products.data(), norms.data(), count, first, bar, keys.data(), rows.data());
  int64_t n = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<size_t>(i);
    const T rounded = norms[at] - 2 * products[at];
    const T fused = std::fma(T(-2), products[at], norms[at]);
    if (n < found && rows[static_cast<size_t>(n)] == first + i) {
      const T key = keys[static_cast<size_t>(n++)];
      expect((key == rounded || key == fused) && key <= bar, "key ", key, " at ", i);
    } else {
      expect(rounded > bar || fused > bar, "a key that passes was left out at ", i);
    }
  }
  expect(n == found, "rows are out of order");
  const T smallest = PRUNEFUSE_CHOOSE(smallest_key<T>)(products.data(), norms.data(), count);
  bool is_one = false;
  for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
    const T rounded = norms[i] - 2 * products[i], fused = std::fma(T(-2), products[i], norms[i]);
    is_one |= smallest == rounded || smallest == fused;
    expect(smallest <= std::max(rounded, fused), "key ", rounded, " is smaller than the smallest, ", smallest);
  }
  expect(is_one, "the smallest key, ", smallest, ", is none of them");

  std::vector<T> values(norms);
  for (size_t i = 0; i < values.size(); ++i) values[i] -= 2 * products[i];
  const int64_t k = 1 + random.below(count);
  const int64_t enough = random.once_in(2) ? k : k + k / 8;
  const T bound = PRUNEFUSE_CHOOSE(at_least_smallest<T>)(values.data(), count, k, enough);
  std::vector<T> kept(values);
  std::vector<int64_t> numbers(values.size());
  std::iota(numbers.begin(), numbers.end(), first);
  const int64_t stay = PRUNEFUSE_CHOOSE(keep_keys<T>)(kept.data(), numbers.data(), count, bound);
  int64_t next = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<size_t>(i), to = static_cast<size_t>(next);
    if (!(values[at] <= bound)) continue;
    expect(next < stay && kept[to] == values[at] && numbers[to] == first + i, "key ", i, " is not kept as it was");
    ++next;
  }
  expect(next == stay, stay, " keys are kept, not ", next);
  std::sort(values.begin(), values.end());
  expect(bound >= values[static_cast<size_t>(k - 1)], "fewer than ", k, " of ", count, " values are below ", bound);
  // Not more than may be, but for equals and for what lies too close together to be told apart.
  const auto last = static_cast<size_t>(std::min(count - 1, enough));
  const T room = 8 * std::numeric_limits<T>::epsilon() * (std::fabs(bound) + std::fabs(values.front()));
  expect(bound < values[last] || values[last] - values[static_cast<size_t>(k - 1)] <= room || enough >= count,
         "the bound ", bound, " for ", k, " of ", count, " is loose");
}

}  // namespace

void neighbor_case(Random& random) {
  for_levels([&] {
    for_any_dtype(random, [&](auto stored) { check_rows<decltype(stored)>(random); });
    random.once_in(2) ? check_filter<float>(random) : check_filter<double>(random);
  });
}

}  // namespace prunefuse::fuzz
