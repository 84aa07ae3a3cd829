// The inner loops of k-means++ over outer products: one pass over a row's residuals and features gives four sums, from
// which its distance to a center follows.
#include "k_means.h"

#include "simd.h"

namespace prunefuse::cpu::PRUNEFUSE_ISA {
namespace {

struct FloatSums {
  floats squares = {}, products = {};
};

// Of e = x - c: e.e, and e.c or e.x.
template <bool WithCenter>
inline FloatSums differences(const float* x, const float* center, int64_t width) {
  FloatSums sums;
  const auto add = [&](floats value, floats from) {
    const floats difference = value - from;
    sums.squares += difference * difference;
    sums.products += difference * (WithCenter ? from : value);
  };
  int64_t j = 0;
  for (; j + kLanes <= width; j += kLanes) add(load(x + j), load(center + j));
  if (j < width) add(load_first(x + j, width - j, 0.0f), load_first(center + j, width - j, 0.0f));
  return sums;
}

// The sums of four vectors' lanes, in the first four lanes.
inline floats sums_of(floats a, floats b, floats c, floats d) {
  constexpr all_lanes lanes;
  exchange<1>(a, b, lanes);
  exchange<1>(c, d, lanes);
  a += b;
  c += d;
  exchange<2>(a, c, lanes);
  a += c;
  if constexpr (kLanes >= 8) a += swapped<4>(a, lanes);
  if constexpr (kLanes >= 16) a += swapped<8>(a, lanes);
  return a;
}

inline OuterSums<float> outer_sums(const OuterRows<float>& rows, int64_t row, int64_t center) {
  const FloatSums r =
      differences<true>(rows.residuals + row * rows.classes, rows.residuals + center * rows.classes, rows.classes);
  const FloatSums h =
      differences<false>(rows.features + row * rows.width, rows.features + center * rows.width, rows.width);
  const floats all = sums_of(r.squares, r.products, h.squares, h.products);
  return {all[0], all[1], all[2], all[3]};
}

template <bool WithCenter>
inline void differences(const double* x, const double* center, int64_t width, double& squares, double& products) {
  double of_squares[4] = {}, of_products[4] = {};
  for (int64_t j = 0; j < width; ++j) {
    const double difference = x[j] - center[j];
    of_squares[j % 4] += difference * difference;
    of_products[j % 4] += difference * (WithCenter ? center[j] : x[j]);
  }
  squares = (of_squares[0] + of_squares[2]) + (of_squares[1] + of_squares[3]);
  products = (of_products[0] + of_products[2]) + (of_products[1] + of_products[3]);
}

inline OuterSums<double> outer_sums(const OuterRows<double>& rows, int64_t row, int64_t center) {
  OuterSums<double> sums;
  differences<true>(rows.residuals + row * rows.classes, rows.residuals + center * rows.classes, rows.classes, sums.ee,
                    sums.es);
  differences<false>(rows.features + row * rows.width, rows.features + center * rows.width, rows.width, sums.ff,
                     sums.fh);
  return sums;
}

}  // namespace

template <class T>
void find_squares(const T* rows, int64_t width, double* squares, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    double sums[4] = {};
    for (int64_t j = 0; j < width; ++j) {
      const double value = rows[i * width + j];
      sums[j % 4] += value * value;
    }
    squares[i] = (sums[0] + sums[2]) + (sums[1] + sums[3]);
  }
}

template <class T>
void apply_seed(const OuterRows<T>& rows, int64_t center, double* nearest, int64_t begin, int64_t end) {
  const double ss = rows.residual_squares[center];
  for (int64_t i = begin; i < end; ++i) {
    if (nearest[i] <= 0) continue;  // cannot fall
    const double distance = outer_distance(outer_sums(rows, i, center), rows.feature_squares[i], ss);
    if (distance < nearest[i]) nearest[i] = distance;
  }
}

#define PRUNEFUSE_INSTANTIATE(T)                                               \
  template void find_squares<T>(const T*, int64_t, double*, int64_t, int64_t); \
  template void apply_seed<T>(const OuterRows<T>&, int64_t, double*, int64_t, int64_t);
PRUNEFUSE_INSTANTIATE(float)
PRUNEFUSE_INSTANTIATE(double)
#undef PRUNEFUSE_INSTANTIATE

}  // namespace prunefuse::cpu::PRUNEFUSE_ISA
