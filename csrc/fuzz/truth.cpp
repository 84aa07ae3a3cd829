#include "truth.h"

#include <algorithm>

namespace prunefuse::fuzz {
namespace {

constexpr long double kNan = std::numeric_limits<long double>::quiet_NaN();
constexpr long double kInfinity = std::numeric_limits<long double>::infinity();

}  // namespace

long double entropy_of(const std::vector<long double>& probabilities) {
  long double sum = 0;
  for (const long double p : probabilities) sum += p == 0 ? 0 : -p * std::log(p);
  return sum;
}

RowTruth truth_of_row(std::vector<long double> values, bool probabilities, long double temperature) {
  RowTruth truth;
  truth.logits = std::move(values);
  std::vector<long double>& x = truth.logits;
  if (probabilities) {
    for (long double& value : x) value = value >= 0 ? std::log(value) : kNan;
  }
  truth.probabilities.assign(x.size(), kNan);
  std::fill(std::begin(truth.utilities), std::end(truth.utilities), kNan);
  truth.logsumexp = truth.p1 = truth.p2 = kNan;
  long double top = -kInfinity, second = -kInfinity;
  for (size_t j = 0; j < x.size(); ++j) {
    if (std::isnan(x[j])) {
      truth.argmax = -1;
      return truth;
    }
    if (x[j] > top) {
      second = top;
      top = x[j];
      truth.argmax = static_cast<int64_t>(j);
    } else {
      second = std::fmax(second, x[j]);
    }
  }
  if (top == -kInfinity) return truth;

  std::vector<long double> e, z;
  for (const long double value : x) {
    z.push_back(value == top ? 0 : (value - top) / temperature);
    e.push_back(std::exp(z.back()));
  }
  long double rest = -1, dot = 0;  // without the maximum's own 1
  for (size_t j = 0; j < x.size(); ++j) {
    rest += e[j];
    dot += e[j] == 0 ? 0 : e[j] * z[j];
  }
  const long double sum = rest + 1;
  const long double runner_up = second == top ? 1 : std::exp((second - top) / temperature);
  for (size_t j = 0; j < x.size(); ++j) truth.probabilities[j] = e[j] / sum;
  const long double log_sum = std::log(sum);
  truth.utilities[0] = rest / sum;
  truth.utilities[1] = (rest + runner_up) / sum;
  truth.utilities[2] = log_sum - dot / sum;
  truth.utilities[3] = -(top + temperature * log_sum);
  truth.utilities[4] = second == top ? 0 : second - top;
  truth.logsumexp = top / temperature + log_sum;
  truth.p1 = 1 / sum;
  truth.p2 = runner_up / sum;
  if (probabilities && std::isfinite(top)) {
    truth.tied = top - second <= 1e-5L * std::fmax(1.0L, std::fabs(top));
    truth.amplified = std::fmax(1.0L, std::fabs(top) / std::fmin(1.0L, temperature));
  }
  return truth;
}

}  // namespace prunefuse::fuzz
