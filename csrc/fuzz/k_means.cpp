// The inner loops of k-means++: distances between outer products element by element in long double.
#include "../cpu/kernels/k_means.h"

#include <algorithm>

#include "../cpu/isa.h"
#include "fuzz.h"

namespace prunefuse::fuzz {
namespace {

template <class T>
struct Factor {
  int64_t width;
  std::vector<T> values;

  long double at(int64_t row, int64_t j) const { return values[static_cast<size_t>(row * width + j)]; }
  long double size(int64_t row) const {
    long double sum = 0;
    for (int64_t j = 0; j < width; ++j) sum += at(row, j) * at(row, j);
    return sum;
  }
};

template <class T>
Factor<T> random_factor(Random& random, int64_t rows) {
  Factor<T> factor = {random.one_of<int64_t>({0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 67}), {}};
  const double offset = random.one_of({0.0, 0.0, 100.0, -1e4}), spread = random.one_of({1e-3, 1.0, 1e3});
  const bool integers = random.once_in(3);
  for (int64_t i = 0; i < rows * factor.width; ++i) {
    const double value = integers ? static_cast<double>(random.below(5)) : random.normal();
    factor.values.push_back(static_cast<T>(value * spread + offset));
  }
  factor.values.shrink_to_fit();
  return factor;
}

template <class T>
void typed_case(Random& random) {
  const int64_t rows = 1 + random.below(40);
  const Factor<T> r = random_factor<T>(random, rows), h = random_factor<T>(random, rows);
  const int64_t center = random.below(rows);
  const auto count = static_cast<size_t>(rows);
  std::vector<double> before(count, std::numeric_limits<double>::infinity());
  for (double& distance : before) {
    if (random.once_in(3)) distance = random.one_of({-1.0, 0.0, 1e-3, 1.0, 1e6});
  }
  for_levels([&] {
    using namespace cpu;
    const auto squares = PRUNEFUSE_CHOOSE(find_squares<T>);
    const auto apply = PRUNEFUSE_CHOOSE(apply_seed<T>);
    std::vector<double> of_r(count, -1), of_h(count, -1);
    const int64_t cut = random.below(rows + 1);
    for (const auto& [first, last] : {std::pair{cut, rows}, std::pair{int64_t{0}, cut}}) {
      squares(r.values.data(), r.width, of_r.data(), first, last);
      squares(h.values.data(), h.width, of_h.data(), first, last);
    }
    std::vector<double> nearest = before;
    const OuterRows<T> all = {r.values.data(), r.width, h.values.data(), h.width, of_r.data(), of_h.data()};
    apply(all, center, nearest.data(), cut, rows);
    apply(all, center, nearest.data(), 0, cut);
    for (int64_t i = 0; i < rows; ++i) {
      const auto at = static_cast<size_t>(i);
      expect(near(of_r[at], r.size(i), 1e-14L * r.size(i)), "squared norm of row ", i);
      expect(near(of_h[at], h.size(i), 1e-14L * h.size(i)), "squared norm of row ", i);
      long double truth = 0, ee = 0, ff = 0;
      for (int64_t c = 0; c < r.width; ++c) {
        for (int64_t j = 0; j < h.width; ++j) {
          // r x h - s x g in a form that does not cancel.
          const long double difference =
              (r.at(i, c) - r.at(center, c)) * h.at(i, j) + r.at(center, c) * (h.at(i, j) - h.at(center, j));
          truth += difference * difference;
        }
        ee += (r.at(i, c) - r.at(center, c)) * (r.at(i, c) - r.at(center, c));
      }
      for (int64_t j = 0; j < h.width; ++j) ff += (h.at(i, j) - h.at(center, j)) * (h.at(i, j) - h.at(center, j));
      // Relative to the two parts, which are as small as the distance but where one makes up for the other.
      const long double size = ee * h.size(i) + r.size(center) * ff;
      const long double tolerance =
          static_cast<long double>(r.width + h.width + 8) * 2 * std::numeric_limits<T>::epsilon() * size +
          64 * static_cast<long double>(std::numeric_limits<T>::min());
      const bool unchanged = before[at] <= 0;
      expect(unchanged ? nearest[at] == before[at]
                       : near(nearest[at], std::fmin(truth, static_cast<long double>(before[at])), tolerance),
             "distance of row ", i, ": ", nearest[at], ", not ", truth, " or ", before[at]);
      expect(i != center || unchanged || nearest[at] == 0, "a row lies ", nearest[at], " from itself");
    }
  });
}

}  // namespace

void k_means_case(Random& random) { random.once_in(2) ? typed_case<float>(random) : typed_case<double>(random); }

}  // namespace prunefuse::fuzz
