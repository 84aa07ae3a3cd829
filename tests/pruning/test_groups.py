"""Settling which coupled channels stay, on axes given as arrays of channel numbers."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from prunefuse.pruning._choose.ranking import Axes


def half(width: int) -> int:
    return max(1, width // 2)


def settled(axes, scores, alike=()):
    """Which channels stay where every axis is to keep half of its places."""
    return Axes.of(axes, alike).settle(scores, lambda axis: half(axis.width))


def kept(axes, scores) -> list[int]:
    flags = settled([np.array(axis) for axis in axes], np.array([0.0, *scores]))
    assert flags[0]
    return [int(i) for i in np.flatnonzero(flags) if i]


def test_the_best_stay_and_of_equals_the_first_on_the_axis():
    assert kept([[1, 2, 3, 4]], [1, 4, 2, 3]) == [2, 4]
    assert kept([[4, 2, 1, 3]], [5, 5, 5, 5]) == [2, 4]
    assert kept([[1, 1, 2, 2, 3, 3]], [1, 2, 3]) == [3]


def test_the_narrow_axis_is_settled_first_whatever_the_order():
    narrow, wide = [1, 2], [3, 1, 2, 4]
    for axes in ([narrow, wide], [wide, narrow]):
        # Alone, the wide axis would keep 1 and 2; it keeps the one that the narrow one keeps and its own best.
        assert kept(axes, [9, 8, 1, 2]) == [1, 4]


def test_counts_that_cannot_be_had_are_clamped():
    # Concatenated axes of 3 keep 1 each; the axis of 6 may not take a third.
    assert kept([[1, 2, 3], [4, 5, 6], [1, 2, 3, 4, 5, 6]], [3, 2, 1, 1, 2, 3]) == [1, 6]
    # Places that must stay count, and may be all that is wanted.
    assert kept([[0, 0, 0, 1, 2, 3]], [1, 2, 3]) == []
    assert kept([[0, 0, 0, 1, 2, 3, 4, 5]], [1, 2, 3, 4, 5]) == [5]
    assert kept([[0, 0, 1, 1, 2, 2, 3, 3]], [1, 2, 3]) == [3]


def test_no_axis_loses_all_its_channels():
    # The first two axes drop 2 and 4, which together are the third.
    assert kept([[1, 2], [3, 4], [2, 4]], [9, 5, 9, 6]) == [1, 3, 4]


def test_axes_that_shall_keep_the_same_number():
    # Heads of three channels, on one axis; the other one would keep four of its nine, and keeps three.
    heads, wide = [1, 1, 1, 2, 2, 2, 3, 3, 3], list(range(4, 13))
    both = [np.array(wide), np.array(heads)]
    flags = settled(both, np.arange(13.0), [both])
    assert list(np.flatnonzero(flags)) == [0, 3, 10, 11, 12]
    # Sets that overlap are one.
    more = list(range(13, 22))
    axes = [np.array(axis) for axis in (wide, heads, more)]
    flags = settled(axes, np.arange(22.0), [[axes[0], axes[2]], [axes[1], axes[2]]])
    assert list(np.flatnonzero(flags)) == [0, 3, 10, 11, 12, 19, 20, 21]


@given(
    axes=st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=12), min_size=1, max_size=6),
    scores=st.lists(st.floats(0, 1), min_size=12, max_size=12),
)
def test_every_axis_keeps_something_and_the_narrowest_its_count(axes, scores):
    staying = set(kept(axes, scores))
    for axis in axes:
        assert not set(axis) or 0 in axis or staying & set(axis)
    alone = [
        axis
        for i, axis in enumerate(axes)
        if 0 not in axis and not set(axis) & set().union(*axes[:i], *axes[i + 1 :])
    ]
    for axis in alone:
        unit = math.gcd(*(axis.count(i) for i in axis))
        room = half(len(axis) // unit) * unit - sum(i in staying for i in axis)
        gone = [i for i in axis if i not in staying]
        if len(staying & set(axis)) > 1 or room > 0:
            assert room >= 0
            assert room < axis.count(max(gone, key=lambda i: (scores[i - 1], -axis.index(i))))
        dropped = [scores[i - 1] for i in axis if i not in staying]
        assert max(dropped, default=0) <= min(scores[i - 1] for i in axis if i in staying)
