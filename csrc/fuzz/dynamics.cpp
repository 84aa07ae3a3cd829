// Training dynamics: the row loops (statistics of a label, divergence of successive rows), and windows over a history.
#include "../cpu/kernels/dynamics.h"

#include "../cpu/isa.h"
#include "truth.h"

namespace prunefuse::fuzz {
namespace {

// In RowDynamics' order, by their definitions; all NaN where the row has no distribution.
std::vector<long double> truth_of_label(const RowTruth& row, size_t label) {
  if (row.argmax < 0) return std::vector<long double>(kDynamicsCount, std::numeric_limits<long double>::quiet_NaN());
  const std::vector<long double>& x = row.logits;
  const long double infinity = std::numeric_limits<long double>::infinity();
  const long double top = x[static_cast<size_t>(row.argmax)];
  // Relative to the largest logit; where that is infinite, those that share it are equal.
  const auto relative = [&](size_t j) { return x[j] == top ? 0 : x[j] - top; };
  long double rest = 0, squares = 0, rival = -infinity, beside = 0;
  for (size_t j = 0; j < x.size(); ++j) {
    const long double e = std::exp(relative(j));
    beside += static_cast<int64_t>(j) == row.argmax ? 0 : e;
    if (j == label) continue;
    rest += e;
    squares += e * e;
    rival = std::fmax(rival, x[j]);
  }
  const long double own = std::exp(relative(label)), sum = own + rest;
  const long double loss =
      static_cast<int64_t>(label) == row.argmax ? std::log1p(rest) : std::log1p(beside) - relative(label);
  const long double margin = rival == x[label] ? 0 : x[label] - rival;
  const long double correct = row.argmax == static_cast<int64_t>(label) ? 1 : 0;
  return {own / sum, rest / sum, loss, margin, std::sqrt(rest * rest + squares) / sum, correct};
}

template <class Stored>
void check_statistics(Random& random, const Pool& pool, const std::vector<RowTruth>& truth) {
  using Acc = accumulate_t<Stored>;
  const auto kernel = [&] {
    using namespace cpu;
    return PRUNEFUSE_CHOOSE(dynamics_rows<Stored>);
  }();
  std::vector<int64_t> labels;
  for (int64_t i = 0; i < pool.rows; ++i) labels.push_back(random.below(pool.classes));
  std::vector<Acc> whole(static_cast<size_t>(kDynamicsCount * pool.rows), Acc(-9)), parts = whole;
  kernel(pool, labels.data(), whole.data(), 0, pool.rows);
  const std::vector<int64_t> cuts = random.cuts(pool.rows);
  for (size_t i = 1; i < cuts.size(); ++i) kernel(pool, labels.data(), parts.data(), cuts[i - 1], cuts[i]);
  expect(whole.empty() || memcmp(whole.data(), parts.data(), whole.size() * sizeof(Acc)) == 0,
         "results depend on how the rows are shared out");
  for (size_t i = 0; i < labels.size(); ++i) {
    const std::vector<long double> expected = truth_of_label(truth[i], static_cast<size_t>(labels[i]));
    for (size_t k = 0; k < expected.size(); ++k) {
      // What the argument of an exponential may be off by, as a factor of the result.
      const long double units = 16 + 8 * std::fmin(800.0L, std::isfinite(expected[3]) ? std::fabs(expected[3]) : 0);
      const long double tolerance = units * std::numeric_limits<Acc>::epsilon() * std::fabs(expected[k]) + 1e-30L;
      const Acc got = whole[k * labels.size() + i];
      expect(near(got, expected[k], tolerance), "statistic ", k, " of row ", i, " of ", pool.classes,
             " classes, label ", labels[i], ": ", got, ", not ", expected[k]);
    }
  }
}

// Units of the rounding of what is kept.
template <class Kept>
constexpr long double kept_epsilon = std::numeric_limits<Kept>::epsilon();
template <>
constexpr long double kept_epsilon<half_bits> = 0x1p-10L;
template <>
constexpr long double kept_epsilon<bfloat16_bits> = 0x1p-7L;

template <class Stored, class Kept>
void check_divergence(Random& random, const Pool& pool, const std::vector<RowTruth>& truth) {
  using Acc = wider_t<Stored, Kept>;
  const auto kernel = [&] {
    using namespace cpu;
    return PRUNEFUSE_CHOOSE(divergence_rows<Stored, Kept>);
  }();
  const auto classes = static_cast<size_t>(pool.classes), rows = static_cast<size_t>(pool.rows);
  const double epsilon = random.one_of({1e-8, 1e-30, 0.1});
  std::vector<Kept> kept(rows * classes);
  std::vector<int64_t> samples;
  for (size_t i = 0; i < rows; ++i) {
    samples.push_back(random.once_in(5) ? -1 : static_cast<int64_t>(rows - 1 - i));
    const bool fresh = random.once_in(5);
    for (size_t c = 0; c < classes; ++c) narrow(fresh ? kNeverSeen : std::log(random.uniform()), kept[i * classes + c]);
  }
  const std::vector<Kept> before = kept;
  std::vector<Kept> again = kept;
  std::vector<double> whole(rows, -9), parts = whole;
  const auto run = [&](std::vector<Kept>& state, std::vector<double>& to, int64_t begin, int64_t end) {
    std::vector<Acc> room(classes, Acc(-9));
    kernel(pool, samples.data(), state.data(), epsilon, to.data(), room.data(), begin, end);
  };
  run(kept, whole, 0, pool.rows);
  const std::vector<int64_t> cuts = random.cuts(pool.rows);
  for (size_t i = 1; i < cuts.size(); ++i) run(again, parts, cuts[i - 1], cuts[i]);
  expect(rows == 0 || (memcmp(whole.data(), parts.data(), rows * sizeof(double)) == 0 &&
                       memcmp(kept.data(), again.data(), kept.size() * sizeof(Kept)) == 0),
         "results depend on how the rows are shared out");
  const long double unit = std::numeric_limits<Acc>::epsilon();
  for (size_t i = 0; i < rows; ++i) {
    const size_t at = (samples[i] < 0 ? rows - 1 - i : static_cast<size_t>(samples[i])) * classes;
    if (samples[i] < 0) {
      expect(whole[i] == -1 && memcmp(&kept[at], &before[at], classes * sizeof(Kept)) == 0, "row ", i, " was written");
      continue;
    }
    long double expected = 0, size = 0;
    for (size_t c = 0; c < classes; ++c) {
      const long double q = truth[i].probabilities[c], log = std::log(q + static_cast<long double>(epsilon));
      const auto was = static_cast<long double>(value_of(before[at + c]));
      expected += std::fabs(q * (log - was));
      size += q * (std::fabs(log) + std::fabs(was) + 100);
      const long double off = 4 * unit * (std::fabs(log) + 100) + kept_epsilon<Kept> * std::fabs(log) + 1e-7L;
      const auto now = static_cast<long double>(value_of(kept[at + c]));
      expect(std::isnan(log) ? std::isnan(now) : std::fabs(now - log) <= off, "logarithm ", c, " of row ", i, ": ", now,
             ", not ", log);
    }
    if (value_of(before[at]) == static_cast<double>(kNeverSeen)) {
      expect(whole[i] == -1, "the first row of a sample: ", whole[i]);
    } else {
      expect(near(whole[i], expected, 8 * unit * size), "divergence of row ", i, " of ", pool.classes,
             " classes: ", whole[i], ", not ", expected);
    }
  }
}

void check_windows(Random& random) {
  const int64_t samples = 1 + random.below(4), length = 1 + random.below(6), size = length + random.below(3);
  const Window window = {length, random.one_of({1.0, 0.5, static_cast<double>(length)}), random.one_of({1.0, 0.1, 0.0}),
                         random.one_of({1.0, 0.9})};
  std::vector<double> ring(static_cast<size_t>(samples * size), std::nan("")), sums(static_cast<size_t>(2 * samples));
  std::vector<int64_t> counts(static_cast<size_t>(samples));
  const History history = {ring.data(), counts.data(), sums.data(), samples, size};
  std::vector<std::vector<double>> values(static_cast<size_t>(samples));
  std::vector<long double> expected(sums.size());
  for (int64_t step = random.below(30); step > 0; --step) {
    const auto sample = static_cast<size_t>(random.below(samples));
    std::vector<double>& all = values[sample];
    all.push_back(random.once_in(2) ? random.uniform() : 1 - 1e-9 * random.uniform());
    push_value(history, window, static_cast<int64_t>(sample), all.back());
    if (all.size() < static_cast<size_t>(size)) continue;
    const double* const x = all.data() + all.size() - static_cast<size_t>(size);
    long double mean = 0, squares = 0;
    for (int64_t i = 0; i < length; ++i) mean += static_cast<long double>(x[i]) / static_cast<long double>(length);
    for (int64_t i = 0; i < length; ++i) squares += (x[i] - mean) * (x[i] - mean);
    const long double spread = std::sqrt(squares / window.divisor);
    const size_t second = static_cast<size_t>(samples) + sample;
    expected[sample] = window.keep * expected[sample] + window.gain * spread;
    expected[second] = window.keep * expected[second] + window.gain * spread * (1 - mean);
  }
  for (size_t i = 0; i < sums.size(); ++i) {
    expect(near(sums[i], expected[i], 1e-14L * (1 + std::fabs(expected[i]))), "sum ", i, " of windows of ", length,
           ": ", sums[i], ", not ", expected[i]);
  }
}

}  // namespace

void dynamics_case(Random& random) {
  check_windows(random);
  for_any_dtype(random, [&](auto stored) {
    using Stored = decltype(stored);
    const Array<Stored> array(random, Numbers(random, false), 1, random_rows(random), random_classes(random));
    const Layout& layout = array.layout;
    const Pool pool = {array.data(), layout.sizes[1], layout.sizes[2], layout.strides[1], layout.strides[2], false};
    std::vector<RowTruth> truth;
    for (int64_t i = 0; i < pool.rows; ++i) truth.push_back(truth_of(array, 0, i, false, 1.0));
    for_levels([&] {
      check_statistics<Stored>(random, pool, truth);
      for_any_dtype(random, [&](auto kept) { check_divergence<Stored, decltype(kept)>(random, pool, truth); });
    });
  });
}

}  // namespace prunefuse::fuzz
