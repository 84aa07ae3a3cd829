// The scorer's row loop: any dtype, layout, part of the rows, outputs and order of utilities; rows that come in pieces;
// and the row states that CPU and CUDA share, with a row dealt out to lanes.
#include "../cpu/kernels/scores.h"

#include <algorithm>

#include "../cpu/isa.h"
#include "../math/row_tile.h"
#include "truth.h"

namespace prunefuse::fuzz {
namespace {

template <class Acc>
void check_utilities(const RowSummary<Acc>& got, const RowTruth& truth, double temperature, int64_t row) {
  const long double tolerance = tolerance_of<Acc>(truth);
  for (int64_t k = 0; k < kUtilityCount; ++k) {
    const long double expected = truth.utilities[k];
    const bool in_logits = k >= 3;  // their error is relative to the logits' size
    const long double allowed = in_logits ? tolerance * std::fmax(1.0L, temperature) +
                                                8 * std::numeric_limits<Acc>::epsilon() * std::fabs(expected)
                                          : tolerance;
    expect(near(utility(got, static_cast<Utility>(k)), expected, allowed), "utility ", k, " of row ", row, " of ",
           truth.logits.size(), " classes: ", utility(got, static_cast<Utility>(k)), ", not ", expected);
  }
}

template <class Acc>
struct Results {
  Results(int64_t count, int64_t rows, bool with_statistics)
      : utilities(static_cast<size_t>(count * rows), Acc(-9)),
        argmax(with_statistics ? static_cast<size_t>(rows) : 0, -9) {
    logsumexp = p1 = p2 = std::vector<Acc>(argmax.size(), Acc(-9));
  }
  bool same_bits(const Results& other) const {
    const auto same = [](const auto& a, const auto& b) {
      return a.empty() || memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0;
    };
    return same(utilities, other.utilities) && same(argmax, other.argmax) && same(logsumexp, other.logsumexp) &&
           same(p1, other.p1) && same(p2, other.p2);
  }
  std::vector<Acc> utilities;
  std::vector<int64_t> argmax;
  std::vector<Acc> logsumexp, p1, p2;
};

template <class Acc>
void check_statistics(const Results<Acc>& got, size_t row, const RowTruth& truth) {
  const long double tolerance = tolerance_of<Acc>(truth);
  const int64_t argmax = got.argmax[row];
  expect(argmax == truth.argmax || (truth.tied && argmax >= 0), "arg-max of row ", row, ": ", argmax, ", not ",
         truth.argmax);
  expect(near(got.logsumexp[row], truth.logsumexp, tolerance * std::fmax(1.0L, std::fabs(truth.logsumexp))),
         "log-sum-exp of row ", row, ": ", got.logsumexp[row], ", not ", truth.logsumexp);
  expect(near(got.p1[row], truth.p1, tolerance), "p1 of row ", row, ": ", got.p1[row], ", not ", truth.p1);
  expect(near(got.p2[row], truth.p2, tolerance), "p2 of row ", row, ": ", got.p2[row], ", not ", truth.p2);
}

// The whole pool at once and in parts, as threads would take it: the same bits, and near the truth.
template <class Stored>
void check_rows(Random& random, const Pool& pool, double temperature, const std::vector<RowTruth>& truth) {
  using Acc = accumulate_t<Stored>;
  const auto kernel = [&] {
    using namespace cpu;
    return PRUNEFUSE_CHOOSE(score_rows<Stored>);
  }();
  const auto inverse = static_cast<Acc>(1 / temperature);
  RowOutputs<Acc> out;
  out.count = static_cast<int>(random.below(kUtilityCount + 1));
  int64_t order[kUtilityCount] = {0, 1, 2, 3, 4};
  std::shuffle(std::begin(order), std::end(order), std::mt19937_64(random.bits()));
  for (int k = 0; k < out.count; ++k) out.which[k] = static_cast<Utility>(order[k]);
  out.rows = pool.rows;
  const bool with_statistics = out.count == 0 || random.once_in(2);
  Results<Acc> whole(out.count, pool.rows, with_statistics), parts = whole;
  const auto into = [&](Results<Acc>& results) {
    out.utilities = results.utilities.data();
    out.argmax = with_statistics ? results.argmax.data() : nullptr;
    out.logsumexp = results.logsumexp.data();
    out.p1 = results.p1.data();
    out.p2 = results.p2.data();
  };
  into(whole);
  kernel(pool, out, inverse, 0, pool.rows);
  into(parts);
  const std::vector<int64_t> cuts = random.cuts(pool.rows);
  for (size_t i = cuts.size() - 1; i > 0; --i) kernel(pool, out, inverse, cuts[i - 1], cuts[i]);
  expect(whole.same_bits(parts), "results depend on how the rows are shared out");

  for (size_t i = 0; i < truth.size(); ++i) {
    RowSummary<Acc> got = {};
    const auto number = static_cast<int64_t>(i);
    Acc* const fields[] = {&got.least_confidence, &got.margin, &got.entropy, &got.energy, &got.logit_margin};
    // What was not asked for counts as right.
    for (int k = 0; k < kUtilityCount; ++k) *fields[k] = static_cast<Acc>(truth[i].utilities[k]);
    for (int k = 0; k < out.count; ++k)
      *fields[order[k]] = whole.utilities[static_cast<size_t>(k * pool.rows + number)];
    check_utilities(got, truth[i], temperature, number);
    if (with_statistics) check_statistics(whole, i, truth[i]);
  }
}

template <class Stored>
void check_pieces(Random& random, const Pool& pool, double temperature, const std::vector<RowTruth>& truth) {
  using Acc = accumulate_t<Stored>;
  const auto kernel = [&] {
    using namespace cpu;
    return PRUNEFUSE_CHOOSE(score_rows<Stored>);
  }();
  const auto inverse = static_cast<Acc>(1 / temperature);
  const auto rows = static_cast<size_t>(pool.rows);
  std::vector<Acc> state(rows * kStateValues, Acc(0));
  std::fill_n(state.begin(), 2 * rows, -std::numeric_limits<Acc>::infinity());
  RowOutputs<Acc> out;
  out.state = state.data();
  out.rows = pool.rows;
  const std::vector<int64_t> cuts = random.cuts(pool.classes);
  for (size_t piece = 1; piece < cuts.size(); ++piece) {
    Pool part = pool;
    part.data = static_cast<const Stored*>(pool.data) + cuts[piece - 1] * pool.class_stride;
    part.classes = cuts[piece] - cuts[piece - 1];
    kernel(part, out, inverse, 0, pool.rows);
  }
  for (size_t i = 0; i < rows; ++i) {
    RowState<Acc> row;
    row.max = state[i];
    row.second = state[rows + i];
    row.ties = state[2 * rows + i];
    row.tail = state[3 * rows + i];
    row.dot = state[4 * rows + i];
    row.has_nan = state[5 * rows + i] != 0;
    check_utilities(summarize(row, inverse), truth[i], temperature, static_cast<int64_t>(i));
  }
}

// As a warp does it: every lane takes four values at a time, then the lanes' states are merged.
template <class Stored>
void check_lanes(Random& random, const Array<Stored>& array, double temperature, const std::vector<RowTruth>& truth) {
  using Acc = accumulate_t<Stored>;
  const auto inverse = static_cast<Acc>(1 / temperature);
  const int64_t classes = array.layout.sizes[2];
  const int64_t lanes = random.one_of<int64_t>({8, 32});
  for (size_t i = 0; i < truth.size(); ++i) {
    std::vector<RowState<Acc>> states(static_cast<size_t>(lanes));
    for (int64_t first = 0; first < classes; first += 4 * lanes) {
      for (int64_t lane = 0; lane < lanes; ++lane) {
        Acc values[4];
        for (int64_t k = 0; k < 4; ++k) {
          const int64_t c = first + lane + k * lanes;
          values[k] = c < classes ? static_cast<Acc>(widen(array.memory[array.position(0, static_cast<int64_t>(i), c)]))
                                  : -std::numeric_limits<Acc>::infinity();
        }
        absorb(states[static_cast<size_t>(lane)], values, first + lane, lanes, inverse);
      }
    }
    for (; states.size() > 1; states.pop_back()) {
      RowState<Acc>& target = states[static_cast<size_t>(random.below(static_cast<int64_t>(states.size()) - 1))];
      target = merge(target, states.back(), inverse);
    }
    const RowSummary<Acc> summary = summarize(states[0], inverse);
    check_utilities(summary, truth[i], temperature, static_cast<int64_t>(i));
    if (summary.p1 == summary.p1) {
      expect(states[0].argmax == truth[i].argmax, "merged arg-max ", states[0].argmax, ", not ", truth[i].argmax);
    }
  }
}

template <class Acc>
void check_row(const RowState<Acc>& row, Acc inverse, const RowTruth& truth, double temperature, int64_t number) {
  const RowSummary<Acc> summary = summarize(row, inverse);
  check_utilities(summary, truth, temperature, number);
  if (summary.p1 == summary.p1 && !truth.tied) {
    expect(row.argmax == truth.argmax, "arg-max of tiles ", row.argmax, ", not ", truth.argmax);
  }
}

// As a GPU does it: groups of lanes take tiles of chunks against a maximum that they share, each group a part of the
// row, and the parts' states are merged.
template <class Stored, bool Probabilities>
void check_tiles(Random& random, const Array<Stored>& array, double temperature, const std::vector<RowTruth>& truth) {
  using Acc = accumulate_t<Stored>;
  constexpr int count = 2, width = Chunk<Stored>::kWidth;
  struct Tile {
    Chunk<Stored> chunks[count];
  };
  const auto inverse = static_cast<Acc>(1 / temperature);
  const Acc scale = exponent_scale(inverse);
  const int64_t classes = array.layout.sizes[2], lanes = random.one_of<int64_t>({1, 2, 16, 32});
  for (size_t i = 0; i < truth.size(); ++i) {
    const auto stored = [&](int64_t column) {
      return column < classes ? array.memory[array.position(0, static_cast<int64_t>(i), column)]
                              : masked<Stored, Probabilities>();
    };
    RowState<Acc> row;
    const std::vector<int64_t> cuts = random.cuts((classes + width - 1) / width);
    for (size_t piece = 1; piece < cuts.size(); ++piece) {
      std::vector<TileState<Acc>> states(static_cast<size_t>(lanes), no_tiles<Acc, Probabilities>());
      for (int64_t first = cuts[piece - 1]; first < cuts[piece]; first += lanes * count) {
        std::vector<Tile> tiles(states.size());
        const auto chunk_of = [&](size_t lane, int l) { return first + static_cast<int64_t>(lane) + l * lanes; };
        Acc max = states[0].max;
        for (size_t lane = 0; lane < states.size(); ++lane) {
          for (int l = 0; l < count; ++l) {
            Chunk<Stored>& chunk = tiles[lane].chunks[l] = masked_chunk<Stored, Probabilities>();
            const int64_t number = chunk_of(lane, l);
            for (int k = 0; number < cuts[piece] && k < width; ++k) put(chunk, k, stored(number * width + k));
            max = larger(max, top_of(chunk));
          }
        }
        for (size_t lane = 0; lane < states.size(); ++lane) {
          raise<Probabilities>(states[lane], max, scale);
          for (int l = 0; l < count; ++l) {
            Chunk<Stored>& chunk = tiles[lane].chunks[l];
            if (top_of(chunk) == max) {
              take_out<Probabilities>(states[lane], chunk, static_cast<uint32_t>(chunk_of(lane, l) * width), true);
            }
            states[lane].second = larger(states[lane].second, top_of(chunk));
          }
          add<Probabilities>(states[lane], tiles[lane].chunks, scale);
        }
      }
      TileState<Acc> total = states[0];
      for (size_t lane = 1; lane < states.size(); ++lane) {
        total.ties += states[lane].ties;
        total.tail += states[lane].tail;
        total.dot += states[lane].dot;
        total.second = larger(total.second, states[lane].second);
        total.argmax = std::min(total.argmax, states[lane].argmax);
      }
      row = merge(row, row_state_of<Probabilities>(total), inverse);
    }
    check_row(row, inverse, truth[i], temperature, static_cast<int64_t>(i));

    constexpr int most = 32;
    if (classes > most) continue;
    Acc values[most];
    for (int c = 0; c < most; ++c) values[c] = static_cast<Acc>(widen(stored(c)));
    row = row_state_of<Probabilities>(state_of_values<Probabilities>(values, scale, true));
    check_row(row, inverse, truth[i], temperature, static_cast<int64_t>(i));
  }
}

}  // namespace

void score_case(Random& random) {
  for_any_dtype(random, [&](auto stored) {
    using Stored = decltype(stored);
    const bool probabilities = random.once_in(4);
    const double temperature = random_temperature(random);
    const Array<Stored> array(random, Numbers(random, probabilities), 1, random_rows(random), random_classes(random));
    std::vector<RowTruth> truth;
    for (int64_t i = 0; i < array.layout.sizes[1]; ++i) {
      truth.push_back(truth_of(array, 0, i, probabilities, temperature));
    }
    const Pool pool = {
        array.data(), array.layout.sizes[1], array.layout.sizes[2], array.layout.strides[1], array.layout.strides[2],
        probabilities};
    for_levels([&] {
      check_rows<Stored>(random, pool, temperature, truth);
      if (!probabilities) check_pieces<Stored>(random, pool, temperature, truth);
    });
    if (probabilities) {
      check_tiles<Stored, true>(random, array, temperature, truth);
    } else {
      check_lanes(random, array, temperature, truth);
      check_tiles<Stored, false>(random, array, temperature, truth);
    }
  });
}

}  // namespace prunefuse::fuzz
