"""Statistics of a study, against the same by hand or by SciPy."""

import math
import statistics

import numpy as np
import pytest
from scipy import stats

from prunefuse.experiment.study.statistics import area, difference, mean_of


def test_mean_and_deviation_of_a_sample() -> None:
    values = [0.81, 0.79, 0.84]
    found = mean_of(values)
    assert found.mean == pytest.approx(statistics.mean(values))
    assert found.deviation == pytest.approx(statistics.stdev(values))
    assert found.n == 3
    assert mean_of([0.5]).deviation is None


def test_paired_differences_have_students_interval() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(0.8, 0.1, 7), rng.normal(0.7, 0.1, 7)
    found = difference(dict(enumerate(ours)), dict(enumerate(theirs)))
    true = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert found is not None
    assert found.interval == pytest.approx((true.low, true.high))
    assert found.mean == pytest.approx(ours.mean() - theirs.mean())
    assert found.n == 7


def test_pairs_are_of_seeds_that_both_have() -> None:
    found = difference({0: 0.5, 1: 0.75, 2: 0.9}, {1: 0.5, 5: 0.1})
    assert found is not None
    assert (found.mean, found.interval, found.n) == (0.25, None, 1)
    assert not found.told
    assert difference({0: 0.5}, {1: 0.5}) is None
    assert difference({}, {}) is None


def test_an_interval_without_zero_is_told() -> None:
    surely = difference({0: 0.50, 1: 0.51, 2: 0.52}, {0: 0.40, 1: 0.41, 2: 0.421})
    perhaps = difference({0: 0.50, 1: 0.51, 2: 0.52}, {0: 0.40, 1: 0.61, 2: 0.5})
    same = difference({0: 0.5, 1: 0.6}, {0: 0.5, 1: 0.6})
    assert surely is not None
    assert perhaps is not None
    assert same is not None
    assert (surely.told, perhaps.told, same.told) == (True, False, False)


def test_the_area_is_the_mean_height() -> None:
    points = {600: 0.78, 1200: 0.83, 2400: 0.86}
    assert area(points) == pytest.approx(np.trapezoid([0.78, 0.83, 0.86], [600, 1200, 2400]) / 1800)
    assert area({2400: 0.5, 600: 0.5}) == 0.5
    assert area({600: 0.5}) is None
    assert area({}) is None
    assert not math.isnan(mean_of([0.0, 0.0]).mean)
