// The inner loops of greedy k-center. All distances come from one primitive, kLanes dot products at a time: of one row
// with several centers, or of one center with several rows. A dot product is added up in the same order in both, so
// that a distance does not depend on when, or with what else, it is computed.
#include "k_center.h"

#include "simd.h"

namespace prunefuse::cpu::PRUNEFUSE_ISA {
namespace {

// Centers are taken in runs that stay in the L1 cache while the rows of a block pass by.
constexpr int64_t kCenterRun = 64;

// out[lane] = |fixed - others[lane]|^2
inline void squared_distances(const float* fixed, const float* const (&others)[kLanes], int64_t width,
                              float (&out)[kLanes]) {
  floats sums[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= width; j += kLanes) {
    const floats x = load(fixed + j);
    for (int lane = 0; lane < kLanes; ++lane) {
      const floats difference = x - load(others[lane] + j);
      sums[lane] += difference * difference;
    }
  }
  if (j < width) {
    const floats x = load_first(fixed + j, width - j, 0.0f);
    for (int lane = 0; lane < kLanes; ++lane) {
      const floats difference = x - load_first(others[lane] + j, width - j, 0.0f);
      sums[lane] += difference * difference;
    }
  }
  transpose(sums);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  store(out, sums[0]);
}

inline void squared_distances(const double* fixed, const double* const (&others)[kLanes], int64_t width,
                              double (&out)[kLanes]) {
  for (int lane = 0; lane < kLanes; ++lane) {
    // Unused lanes repeat the one before them.
    if (lane > 0 && others[lane] == others[lane - 1]) {
      out[lane] = out[lane - 1];
      continue;
    }
    double sums[4] = {};
    for (int64_t j = 0; j < width; ++j) {
      const double difference = fixed[j] - others[lane][j];
      sums[j % 4] += difference * difference;
    }
    out[lane] = (sums[0] + sums[2]) + (sums[1] + sums[3]);  // by halves, as above
  }
}

// A row's distance to one more center.
template <class T>
inline void shorten(const Centers<T>& all, int64_t row, T distance, T* nearest) {
  if (distance < all.least) nearest[row] = -1;
  const T weighted = all.weights ? distance * all.weights[row] : distance;
  if (weighted < nearest[row]) nearest[row] = weighted;
}

// One row, centers begin..end.
template <class T>
void apply_to_row(const Centers<T>& all, int64_t row, int64_t begin, int64_t end, T* nearest) {
  const T* x = all.features + row * all.width;
  for (int64_t first = begin; first < end; first += kLanes) {
    const int64_t count = end - first < kLanes ? end - first : kLanes;
    const T* others[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      others[lane] = all.features + all.centers[first + (lane < count ? lane : count - 1)] * all.width;
    }
    T distances[kLanes];
    squared_distances(x, others, all.width, distances);
    for (int64_t lane = 0; lane < count; ++lane) shorten(all, row, distances[lane], nearest);
  }
}

// One center, up to kLanes rows.
template <class T>
void apply_to_rows(const Centers<T>& all, int64_t center, const int64_t* rows, int64_t count, T* nearest) {
  const T* others[kLanes];
  for (int lane = 0; lane < kLanes; ++lane)
    others[lane] = all.features + rows[lane < count ? lane : count - 1] * all.width;
  T distances[kLanes];
  squared_distances(all.features + center * all.width, others, all.width, distances);
  for (int64_t lane = 0; lane < count; ++lane) shorten(all, rows[lane], distances[lane], nearest);
}

}  // namespace

template <class T>
void find_finite(const T* features, int64_t width, bool* finite, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    T norm = 0;
    for (int64_t j = 0; j < width; ++j) norm += features[i * width + j] * features[i * width + j];
    finite[i] = norm <= std::numeric_limits<T>::max();
  }
}

template <class T>
void apply_centers(const Centers<T>& all, const int64_t* rows, int64_t row_count, T* nearest, int32_t* applied) {
  int64_t oldest = all.count;
  for (int64_t i = 0; i < row_count; ++i) oldest = applied[rows[i]] < oldest ? applied[rows[i]] : oldest;
  for (int64_t run = oldest; run < all.count; run += kCenterRun) {
    const int64_t run_end = all.count - run < kCenterRun ? all.count : run + kCenterRun;
    // Lanes go to centers or to rows, whichever there are more of.
    if (run_end - run < kLanes && run_end - run < row_count) {
      for (int64_t number = run; number < run_end; ++number) {
        int64_t group[kLanes];
        int64_t count = 0;
        for (int64_t i = 0; i < row_count; ++i) {
          if (applied[rows[i]] > number) continue;
          group[count++] = rows[i];
          if (count == kLanes) {
            apply_to_rows(all, all.centers[number], group, count, nearest);
            count = 0;
          }
        }
        if (count > 0) apply_to_rows(all, all.centers[number], group, count, nearest);
      }
    } else {
      for (int64_t i = 0; i < row_count; ++i) {
        const int64_t begin = applied[rows[i]] > run ? applied[rows[i]] : run;
        apply_to_row(all, rows[i], begin, run_end, nearest);
      }
    }
  }
  for (int64_t i = 0; i < row_count; ++i) applied[rows[i]] = static_cast<int32_t>(all.count);
}

template <class T>
int64_t largest(const T* values, int64_t count) {
  T best = values[0];
  int64_t i = 0;
  if constexpr (sizeof(T) == sizeof(float)) {
    if (count >= kLanes) {
      floats lanes = load(values);
      for (i = kLanes; i + kLanes <= count; i += kLanes) lanes = larger(load(values + i), lanes);
      for (int lane = 0; lane < kLanes; ++lane) best = lanes[lane] > best ? lanes[lane] : best;
    }
  }
  for (; i < count; ++i) best = values[i] > best ? values[i] : best;
  int64_t position = 0;
  while (values[position] != best) ++position;
  return position;
}

#define PRUNEFUSE_INSTANTIATE(T)                                                            \
  template void find_finite<T>(const T*, int64_t, bool*, int64_t, int64_t);                 \
  template void apply_centers<T>(const Centers<T>&, const int64_t*, int64_t, T*, int32_t*); \
  template int64_t largest<T>(const T*, int64_t);
PRUNEFUSE_INSTANTIATE(float)
PRUNEFUSE_INSTANTIATE(double)
#undef PRUNEFUSE_INSTANTIATE

}  // namespace prunefuse::cpu::PRUNEFUSE_ISA
