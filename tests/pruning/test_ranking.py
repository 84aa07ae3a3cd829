"""Ranking on arrays alone, as every reader of models uses it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunefuse.pruning._choose.ranking import Axes, Selection, groups_of, normalized

AXES = st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=12), min_size=1, max_size=6)
SCORES = st.lists(st.floats(0, 1), min_size=12, max_size=12)


@given(axes=AXES)
def test_a_group_is_what_lives_on_the_same_axes(axes):
    groups = groups_of([np.array(axis) for axis in axes], 13)
    lives_on = [tuple(i for i, axis in enumerate(axes) if channel in axis) for channel in range(1, 13)]
    for one in range(1, 13):
        for other in range(1, 13):
            assert (groups[one] == groups[other]) == (lives_on[one - 1] == lives_on[other - 1])


def test_scores_over_those_of_their_group():
    scores = np.array([7.0, 1, 3, -4, 2, np.nan, 0])
    groups = np.array([0, 1, 1, 2, 2, 2, 3])
    for by, expected in {
        "none": [1, 3, -4, 2, np.nan, 0],
        "sum": [1 / 4, 3 / 4, -4 / 6, 2 / 6, np.nan, 0],
        "mean": [1 / 2, 3 / 2, -2, 1, np.nan, 0],
        "max": [1 / 3, 1, -1, 1 / 2, np.nan, 0],
    }.items():
        np.testing.assert_allclose(normalized(scores, groups, by)[1:], expected)


@given(
    scores=SCORES,
    ratio=st.fractions(0, 1).filter(lambda r: r < 1),
    rounding=st.sampled_from(["floor", "ceil"]),
)
def test_globally_the_best_of_all_stay_and_one_on_every_axis(scores, ratio, rounding):
    axes = [np.array(axis) for axis in ([1, 2, 3, 4], [5, 6, 7], [8, 9, 10, 11, 12], [8, 9, 10, 11, 12])]
    values = np.array([0.0, *scores])
    keep = Selection("global", rounding).choose(Axes.of(axes), values, ratio)
    wanted = 12 * (1 - ratio)
    best = sorted(range(1, 13), key=lambda c: (-values[c], c))
    best = best[: max(1, int(wanted) if rounding == "floor" else -int(-wanted // 1))]
    for axis in axes:
        mine = axis.tolist()
        expected = [c for c in best if c in mine] or [min(mine, key=lambda c: (-values[c], c))]
        assert sorted(expected) == [c for c in mine if keep[c]]


@given(axes=AXES, scores=SCORES, ratio=st.sampled_from([Fraction(1, 3), Fraction(1, 2), Fraction(9, 10)]))
def test_locally_it_is_the_count_of_every_width(axes, scores, ratio):
    arrays = [np.array(axis) for axis in axes]
    values = np.array([0.0, *scores])
    expected = Axes.of(arrays).settle(values, lambda axis: max(1, int(axis.width * (1 - ratio))))
    assert np.array_equal(Selection().choose(Axes.of(arrays), values, ratio), expected)


@pytest.mark.parametrize("ranking", ["local", "global"])
@given(axes=AXES, scores=SCORES, round_to=st.integers(1, 4))
def test_alone_on_its_channels_an_axis_keeps_a_multiple_or_all(ranking, axes, scores, round_to):
    arrays = [np.array(axis) for axis in axes]
    keep = Selection(ranking, round_to=round_to).choose(
        Axes.of(arrays), np.array([0.0, *scores]), Fraction(1, 2)
    )
    for i, axis in enumerate(axes):
        others = set().union(*axes[:i], *axes[i + 1 :])
        if 0 not in axis and not set(axis) & others and len(set(axis)) == len(axis):
            assert keep[axis].sum() % round_to == 0 or keep[axis].all()
