// The ensemble scorer's row loops: all passes at once, and pass by pass into a state.
#include "../cpu/kernels/ensembles.h"

#include "../cpu/isa.h"
#include "truth.h"

namespace prunefuse::fuzz {
namespace {

struct EnsembleTruth {
  std::vector<long double> sums;  // of probabilities
  std::vector<int32_t> votes;     // unless tied
  bool tied = false;              // a vote may go either way
  long double entropies = 0;      // summed over passes
  long double utilities[4] = {};
  long double amplified = 1;
};

EnsembleTruth truth_of_passes(const std::vector<RowTruth>& passes) {
  const size_t classes = passes[0].logits.size();
  EnsembleTruth truth{std::vector<long double>(classes, 0), std::vector<int32_t>(classes, 0)};
  for (const RowTruth& pass : passes) {
    for (size_t j = 0; j < classes; ++j) truth.sums[j] += pass.probabilities[j];
    if (pass.argmax >= 0) ++truth.votes[static_cast<size_t>(pass.argmax)];
    truth.entropies += entropy_of(pass.probabilities);
    truth.tied = truth.tied || pass.tied;
    truth.amplified = std::fmax(truth.amplified, pass.amplified);
  }
  const auto count = static_cast<long double>(passes.size());
  std::vector<long double> mean = truth.sums;
  int32_t modal = 0;
  for (size_t j = 0; j < classes; ++j) {
    mean[j] /= count;
    modal = truth.votes[j] > modal ? truth.votes[j] : modal;
  }
  truth.utilities[1] = entropy_of(mean);
  truth.utilities[3] = truth.entropies / count;
  const long double gain = truth.utilities[1] - truth.utilities[3];
  truth.utilities[0] = gain < 0 ? 0 : gain;
  truth.utilities[2] = std::isnan(gain) ? gain : 1 - static_cast<long double>(modal) / count;
  return truth;
}

template <class Acc>
long double tolerance_of_ensemble(const EnsembleTruth& truth) {
  const auto classes = static_cast<long double>(truth.sums.size());
  return 16 * std::numeric_limits<Acc>::epsilon() * std::fmax(1.0L, std::log(classes)) * truth.amplified;
}

template <class Stored>
void check_all_passes(Random& random, const Passes& passes, double temperature,
                      const std::vector<EnsembleTruth>& truth) {
  using Acc = accumulate_t<Stored>;
  const auto kernel = [&] {
    using namespace cpu;
    return PRUNEFUSE_CHOOSE(ensemble_rows<Stored>);
  }();
  const int64_t rows = passes.pool.rows;
  EnsembleOutputs<Acc> out;
  out.count = 1 + static_cast<int>(random.below(kEnsembleUtilityCount));
  out.rows = rows;
  const int64_t first = random.below(kEnsembleUtilityCount);
  for (int k = 0; k < out.count; ++k) out.which[k] = static_cast<EnsembleUtility>((first + k) % kEnsembleUtilityCount);
  const auto inverse = static_cast<Acc>(1 / temperature);
  std::vector<Acc> whole(static_cast<size_t>(out.count * rows), Acc(-9)), parts = whole;
  const auto run = [&](std::vector<Acc>& to, int64_t begin, int64_t end) {
    std::vector<Acc> room(static_cast<size_t>(cpu::ensemble_room(passes.pool.classes)), Acc(-9));
    out.utilities = to.data();
    kernel(passes, out, inverse, room.data(), begin, end);
  };
  run(whole, 0, rows);
  const std::vector<int64_t> cuts = random.cuts(rows);
  for (size_t i = 1; i < cuts.size(); ++i) run(parts, cuts[i - 1], cuts[i]);
  expect(whole.empty() || memcmp(whole.data(), parts.data(), whole.size() * sizeof(Acc)) == 0,
         "results depend on how the rows are shared out");
  for (size_t i = 0; i < truth.size(); ++i) {
    for (int k = 0; k < out.count; ++k) {
      const auto which = static_cast<int>(out.which[k]);
      const Acc got = whole[static_cast<size_t>(k * rows) + i];
      const long double expected = truth[i].utilities[which];
      const bool unsure = truth[i].tied && out.which[k] == EnsembleUtility::kVariationRatio && !std::isnan(got);
      expect(unsure || near(got, expected, tolerance_of_ensemble<Acc>(truth[i])), "utility ", which, " of row ", i,
             " of ", passes.pool.classes, " classes, ", passes.count, " passes: ", got, ", not ", expected);
    }
  }
}

template <class Stored>
void check_pass_by_pass(Random& random, const Passes& passes, double temperature,
                        const std::vector<EnsembleTruth>& truth) {
  using Acc = accumulate_t<Stored>;
  const auto kernel = [&] {
    using namespace cpu;
    return PRUNEFUSE_CHOOSE(ensemble_add_rows<Stored>);
  }();
  const int64_t rows = passes.pool.rows, classes = passes.pool.classes;
  const auto size = static_cast<size_t>(rows * classes);
  struct Sums {
    std::vector<Acc> probabilities, entropies;
    std::vector<int32_t> votes;
  };
  Sums whole = {std::vector<Acc>(size, 0), std::vector<Acc>(static_cast<size_t>(rows), 0),
                std::vector<int32_t>(size, 0)};
  Sums parts = whole;
  const auto inverse = static_cast<Acc>(1 / temperature);
  const auto run = [&](const Pool& pool, Sums& to, int64_t begin, int64_t end) {
    std::vector<Acc> room(static_cast<size_t>(cpu::ensemble_room(classes)), Acc(-9));
    kernel(pool, {to.probabilities.data(), to.votes.data(), to.entropies.data()}, inverse, room.data(), begin, end);
  };
  Pool pool = passes.pool;
  for (int64_t s = 0; s < passes.count; ++s) {
    run(pool, whole, 0, rows);
    const std::vector<int64_t> cuts = random.cuts(rows);
    for (size_t i = 1; i < cuts.size(); ++i) run(pool, parts, cuts[i - 1], cuts[i]);
    pool.data = static_cast<const Stored*>(pool.data) + passes.stride;
  }
  const auto same = [](const auto& a, const auto& b) {
    return a.empty() || memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0;
  };
  expect(same(whole.probabilities, parts.probabilities) && same(whole.entropies, parts.entropies) &&
             same(whole.votes, parts.votes),
         "the state depends on how the rows are shared out");
  for (size_t i = 0; i < truth.size(); ++i) {
    const long double tolerance = tolerance_of_ensemble<Acc>(truth[i]) * static_cast<long double>(passes.count);
    expect(near(whole.entropies[i], truth[i].entropies, tolerance), "entropies of row ", i, ": ", whole.entropies[i],
           ", not ", truth[i].entropies);
    const bool valid = !std::isnan(truth[i].entropies);
    for (size_t j = 0; j < truth[i].sums.size(); ++j) {
      const size_t at = i * static_cast<size_t>(classes) + j;
      expect(near(whole.probabilities[at], valid ? truth[i].sums[j] : truth[i].entropies, tolerance),
             "probabilities of row ", i, ", class ", j, ": ", whole.probabilities[at], ", not ", truth[i].sums[j]);
      expect(truth[i].tied || whole.votes[at] == truth[i].votes[j], "votes of row ", i, ", class ", j, ": ",
             whole.votes[at], ", not ", truth[i].votes[j]);
    }
  }
}

}  // namespace

void ensemble_case(Random& random) {
  for_any_dtype(random, [&](auto stored) {
    using Stored = decltype(stored);
    const bool probabilities = random.once_in(4);
    const double temperature = random_temperature(random);
    const int64_t count = random.one_of<int64_t>({1, 2, 3, 5});
    const Array<Stored> array(random, Numbers(random, probabilities), count, random_rows(random),
                              random_classes(random));
    std::vector<EnsembleTruth> truth;
    for (int64_t i = 0; i < array.layout.sizes[1]; ++i) {
      std::vector<RowTruth> row;
      for (int64_t s = 0; s < count; ++s) row.push_back(truth_of(array, s, i, probabilities, temperature));
      truth.push_back(truth_of_passes(row));
    }
    const Pool pool = {
        array.data(), array.layout.sizes[1], array.layout.sizes[2], array.layout.strides[1], array.layout.strides[2],
        probabilities};
    const Passes passes = {pool, count, array.layout.strides[0]};
    for_levels([&] {
      check_all_passes<Stored>(random, passes, temperature, truth);
      check_pass_by_pass<Stored>(random, passes, temperature, truth);
    });
  });
}

}  // namespace prunefuse::fuzz
