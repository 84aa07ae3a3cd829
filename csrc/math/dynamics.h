// What a row of logits says of its sample given the label, how far a row moved since it was last seen, and windows over
// a sample's history. One source for CPU and CUDA.
//
// Statistics are sums over the classes other than the label's. With b the largest logit of those, e_j = exp(x_j - b),
// R = sum of e_j, Q = sum of e_j^2 and d = x_label - b (the margin):
//   p = 1 / (1 + R exp(-d)),  1 - p = R exp(-d) p,  loss = log1p(R exp(-d)),
//   EL2N = ||softmax - onehot|| = sqrt(R^2 + Q) exp(-d) p,
// and for d < 0 the same multiplied out by exp(d), so that nothing overflows. No difference of nearly equal numbers is
// taken, so 1 - p, loss and EL2N have full relative precision however sure the row is, and p and loss however wrong.
//
// Values as in row_state.h: -inf is a masked class; +inf values share the mass; a NaN, or no value above -inf: NaN.
#pragma once

#include "row_state.h"

namespace prunefuse {

constexpr int64_t kDynamicsCount = 6;

// In this order in memory, each (rows,).
template <class V>
struct RowDynamics {
  V probability;  // of the label
  V error;        // 1 - probability
  V loss;         // -log probability
  V margin;       // the label's logit minus the largest other
  V el2n;         // Euclidean distance of the softmax from the one-hot label
  V correct;      // 1 if the label has the largest logit (the lowest class of equals), else 0
};

// Sums over values, relative to the largest of them; `tail` and `squares` leave out those equal to it.
template <class Acc>
struct OthersState {
  Acc max = -std::numeric_limits<Acc>::infinity();
  Acc ties = 0;
  Acc tail = 0;
  Acc squares = 0;
  bool has_nan = false;
};

template <class Acc>
PRUNEFUSE_HD OthersState<Acc> merge(OthersState<Acc> a, OthersState<Acc> b) {
  const bool has_nan = a.has_nan || b.has_nan;
  if (b.max > a.max) {
    const OthersState<Acc> lower = a;
    a = b;
    b = lower;
  }
  const bool equal = a.max == b.max;
  const Acc e = equal ? Acc(1) : exp_of(shifted(b.max, a.max, Acc(1)));
  a.ties += equal ? b.ties : Acc(0);
  a.tail += equal ? b.tail : e * (b.ties + b.tail);
  a.squares += equal ? b.squares : e * e * (b.ties + b.squares);
  a.has_nan = has_nan;
  return a;
}

template <int Count, class Acc>
PRUNEFUSE_HD void absorb(OthersState<Acc>& state, const Acc (&values)[Count]) {
  Acc top = state.max;
  for (int i = 0; i < Count; ++i) top = values[i] > top ? values[i] : top;
  if (top > state.max) {
    const Acc e = exp_of(shifted(state.max, top, Acc(1)));
    state.tail = e * (state.ties + state.tail);
    state.squares = e * e * (state.ties + state.squares);
    state.ties = 0;
    state.max = top;
  }
  for (int i = 0; i < Count; ++i) {
    const Acc x = values[i];
    state.has_nan = state.has_nan || x != x;
    if (x == state.max) {
      state.ties += 1;
    } else {
      const Acc e = exp_of(shifted(x, state.max, Acc(1)));
      state.tail += e;
      state.squares += e * e;
    }
  }
}

PRUNEFUSE_HD float root_of(float x) { return ::sqrtf(x); }
PRUNEFUSE_HD double root_of(double x) { return ::sqrt(x); }

// `rest` is R without the maximum's own 1, `squares` is Q. `d` may be infinite, of either sign, but no NaN.
template <class Acc>
PRUNEFUSE_HD RowDynamics<Acc> dynamics_of(Acc d, Acc rest, Acc squares, Acc correct) {
  const Acc sum = rest + 1;
  const Acc length = root_of(sum * sum + squares);
  const Acc small = exp_of(d >= 0 ? -d : d);
  if (d >= 0) {
    const Acc odds = sum * small, p = 1 / (1 + odds);
    return {p, odds * p, log1p_of(odds), d, length * small * p, correct};
  }
  const Acc inverse = 1 / (sum + small);
  return {small * inverse, sum * inverse, log1p_of(rest + small) - d, d, length * inverse, correct};
}

// From the largest of the others, and sums over them relative to it: `rest` without its own 1. `leads`: no class before
// the label's has its logit.
template <class Acc>
PRUNEFUSE_HD RowDynamics<Acc> dynamics_of_sums(Acc max, Acc rest, Acc squares, bool has_nan, Acc label, bool leads) {
  constexpr Acc nan = std::numeric_limits<Acc>::quiet_NaN();
  constexpr Acc infinity = std::numeric_limits<Acc>::infinity();
  if (has_nan || label != label || !(label > -infinity || max > -infinity)) return {nan, nan, nan, nan, nan, nan};
  if (max == -infinity) return {1, 0, 0, infinity, 0, 1};
  // Equal logits may be infinite.
  const Acc d = label == max ? Acc(0) : label - max;
  const Acc correct = d > 0 || (d == 0 && leads) ? Acc(1) : Acc(0);
  return dynamics_of<Acc>(d, rest, squares, correct);
}

template <class Acc>
PRUNEFUSE_HD RowDynamics<Acc> summarize(const OthersState<Acc>& others, Acc label, bool leads) {
  return dynamics_of_sums<Acc>(others.max, (others.ties - 1) + others.tail, others.ties + others.squares,
                               others.has_nan, label, leads);
}

template <class Acc>
PRUNEFUSE_HD void write_dynamics(Acc* out, int64_t rows, int64_t row, const RowDynamics<Acc>& result) {
  out[row] = result.probability;
  out[rows + row] = result.error;
  out[2 * rows + row] = result.loss;
  out[3 * rows + row] = result.margin;
  out[4 * rows + row] = result.el2n;
  out[5 * rows + row] = result.correct;
}

// What the divergence of rows stored as one type from logarithms kept as another is computed in.
template <class Stored, class Kept>
struct wider {
  using type = float;
};
template <class Kept>
struct wider<double, Kept> {
  using type = double;
};
template <class Stored>
struct wider<Stored, double> {
  using type = double;
};
template <>
struct wider<double, double> {
  using type = double;
};
template <class Stored, class Kept>
using wider_t = typename wider<Stored, Kept>::type;

// What a row's kept logarithms hold where it was not seen yet: no logarithm of a probability is so large.
constexpr float kNeverSeen = 1;

// log(q + epsilon) of a probability; epsilon is at least 1e-30.
PRUNEFUSE_HD float log_of_shifted(float q, float epsilon) { return log_normal<float, int32_t>(q + epsilon, 0.0f); }
PRUNEFUSE_HD double log_of_shifted(double q, double epsilon) { return ::log(q + epsilon); }

// log(q + epsilon) of the largest probability q = 1 / (1 + rest), precise where q is near 1.
template <class Acc>
PRUNEFUSE_HD Acc log_of_largest(Acc rest, Acc epsilon) {
  const Acc off = rest / (1 + rest) - epsilon;  // 1 - (q + epsilon)
  if (off <= 0) return log1p_of(-off);
  return off < Acc(0.5) ? -log1p_of(off / (1 - off)) : log_of_shifted(1 / (1 + rest), epsilon);
}

// A sum that loses next to nothing (Kahan), where the processor has few units for float64.
template <class Acc>
struct CompensatedSum {
  Acc sum = 0;
  Acc excess = 0;  // of `sum` over the true one

  PRUNEFUSE_HD void add(Acc value) {
    const Acc wanted = value - excess;
    const Acc next = sum + wanted;
    excess = (next - sum) - wanted;
    sum = next;
  }
  PRUNEFUSE_HD double value() const { return static_cast<double>(sum) - static_cast<double>(excess); }
};

// To the two 16-bit formats, to nearest, ties to even. Not for what overflows them; a NaN stays one.
PRUNEFUSE_HD void narrow_to(float value, float& to) { to = value; }
PRUNEFUSE_HD void narrow_to(float value, double& to) { to = value; }
PRUNEFUSE_HD void narrow_to(double value, float& to) { to = static_cast<float>(value); }
PRUNEFUSE_HD void narrow_to(double value, double& to) { to = value; }
PRUNEFUSE_HD void narrow_to(float value, bfloat16_bits& to) {
  const uint32_t bits = bits_as<uint32_t>(value);
  to.bits = static_cast<uint16_t>(value == value ? (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16 : 0x7fc0u);
}
PRUNEFUSE_HD void narrow_to(float value, half_bits& to) {
  const uint32_t sign = (bits_as<uint32_t>(value) >> 16) & 0x8000u;
  const uint32_t size = bits_as<uint32_t>(value) & 0x7fffffffu;
  uint32_t bits;
  if (value != value) {
    bits = 0x7e00u;
  } else if (size < 0x38800000u) {
    // Below the smallest normal: 0.5 has the wanted unit, 2^-24, as its last place.
    bits = bits_as<uint32_t>(bits_as<float>(size) + 0.5f) - 0x3f000000u;
  } else {
    bits = ((size + 0xfffu + ((size >> 13) & 1u)) >> 13) - (112u << 10);
  }
  to.bits = static_cast<uint16_t>(sign | bits);
}
template <class Kept>
PRUNEFUSE_HD void narrow_to(double value, Kept& to) {
  narrow_to(static_cast<float>(value), to);
}

struct Window {
  int64_t length;  // values in a window
  double divisor;  // of the sum of squared deviations
  double keep;     // sum = keep * sum + gain * spread
  double gain;
};

// A sample's latest `size` values in a ring, how many it has had, and sums over the windows that ended `size - length`
// values ago: of the spread sqrt(sum (x - mean)^2 / divisor), and of spread * (1 - mean).
struct History {
  double* ring;     // samples x size
  int64_t* counts;  // samples
  double* sums;     // 2 x samples
  int64_t samples;
  int64_t size;
};

PRUNEFUSE_HD void push_value(const History& history, const Window& window, int64_t sample, double value) {
  double* const ring = history.ring + sample * history.size;
  const int64_t count = history.counts[sample]++;
  ring[count % history.size] = value;
  const int64_t first = count + 1 - history.size;  // the oldest value of the window
  if (first < 0) return;
  // Two passes, from the oldest on: the same bits whereever the ring begins.
  double mean = 0, squares = 0;
  int64_t at = first % history.size;
  for (int64_t i = 0, j = at; i < window.length; ++i, j = j + 1 < history.size ? j + 1 : 0) mean += ring[j];
  mean /= static_cast<double>(window.length);
  for (int64_t i = 0; i < window.length; ++i, at = at + 1 < history.size ? at + 1 : 0) {
    const double off = ring[at] - mean;
    squares += off * off;
  }
  const double spread = root_of(squares / window.divisor);
  double& sum = history.sums[sample];
  double& weighted = history.sums[history.samples + sample];
  sum = window.keep * sum + window.gain * spread;
  weighted = window.keep * weighted + window.gain * (spread * (1 - mean));
}

}  // namespace prunefuse
