// One step of greedy k-center: |x - c|^2 = |x|^2 + |c|^2 - 2 x.c with cached norms, so that a step reads each row once
// and does one multiply-add per value.
#include "k_center.h"

#include "simd.h"

namespace prunefuse::cpu::PRUNEFUSE_ISA {
namespace {

// Four accumulators: enough independent multiply-adds in flight to hide their latency.
float dot(const float* a, const float* b, int64_t width) {
  floats sums[4] = {};
  int64_t j = 0;
  for (; j + 4 * kLanes <= width; j += 4 * kLanes) {
    for (int k = 0; k < 4; ++k) sums[k] += load(a + j + k * kLanes) * load(b + j + k * kLanes);
  }
  for (; j + kLanes <= width; j += kLanes) sums[0] += load(a + j) * load(b + j);
  const floats lanes = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  float total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += lanes[lane];
  for (; j < width; ++j) total += a[j] * b[j];
  return total;
}

double dot(const double* a, const double* b, int64_t width) {
  double sums[4] = {};
  int64_t j = 0;
  for (; j + 4 <= width; j += 4) {
    for (int k = 0; k < 4; ++k) sums[k] += a[j + k] * b[j + k];
  }
  for (; j < width; ++j) sums[0] += a[j] * b[j];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

}  // namespace

template <class T>
void squared_norms(const T* features, int64_t width, T* out, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const T* row = features + i * width;
    out[i] = dot(row, row, width);
  }
}

template <class T>
Farthest<T> update_nearest(const T* features, int64_t width, const T* norms, int64_t center, T* nearest, int64_t begin,
                           int64_t end) {
  Farthest<T> best;
  const T* c = features + center * width;
  for (int64_t i = begin; i < end; ++i) {
    if (nearest[i] < 0) continue;
    T distance = norms[i] + norms[center] - 2 * dot(features + i * width, c, width);
    distance = distance > 0 ? distance : 0;
    if (distance < nearest[i]) nearest[i] = distance;
    if (nearest[i] > best.distance) best = {nearest[i], i};
  }
  return best;
}

#define PRUNEFUSE_INSTANTIATE(T)                                           \
  template void squared_norms<T>(const T*, int64_t, T*, int64_t, int64_t); \
  template Farthest<T> update_nearest<T>(const T*, int64_t, const T*, int64_t, T*, int64_t, int64_t);
PRUNEFUSE_INSTANTIATE(float)
PRUNEFUSE_INSTANTIATE(double)
#undef PRUNEFUSE_INSTANTIATE

}  // namespace prunefuse::cpu::PRUNEFUSE_ISA
