"""Axes that are split into factors: whatever else is known, what leaves are whole slices along one factor."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from prunefuse.pruning._graph.couplings import Couplings, Place, fixed

HERE = Place("aten::view", "here")


def test_the_factor_that_may_go_is_chosen_and_the_other_stays():
    couplings = Couplings()
    axis = couplings.fresh(12)
    heads, dims = couplings.split(axis, (4, 3), HERE)
    couplings.link(dims, fixed(3))
    assert couplings.resolve() == []
    labels = couplings.components()
    assert np.array_equal(labels[axis], np.repeat(labels[heads], 3))
    assert len(set(labels[heads]) - {0}) == 4


def test_an_open_choice_follows_another_and_else_the_larger_factor():
    couplings = Couplings()
    query, value, alone = (couplings.fresh(12) for _ in range(3))
    heads, dims = couplings.split(query, (3, 4), HERE)
    couplings.link(dims, fixed(4))
    value_heads, _ = couplings.split(value, (3, 4), HERE)
    couplings.link(value_heads, heads)
    _, columns = couplings.split(alone, (2, 6), HERE)
    assert couplings.resolve() == []
    labels = couplings.components()
    assert np.array_equal(labels[value], labels[query])
    assert np.array_equal(labels[alone], np.tile(labels[columns], 2))


def test_an_axis_none_of_whose_factors_may_go_stays_and_is_reported():
    couplings = Couplings()
    axis = couplings.fresh(6)
    for factor in couplings.split(axis, (2, 3), HERE):
        couplings.link(factor, fixed(len(factor)))
    (stuck,) = couplings.resolve()
    assert stuck.where == HERE
    assert not couplings.components()[axis].any()


def test_splitting_what_was_merged_gives_the_factors_back():
    couplings = Couplings()
    rows, columns = couplings.fresh(2), couplings.fresh(3)
    axis = couplings.merge((rows, columns), HERE)
    assert couplings.merge((rows, columns), "again") is axis
    assert all(map(np.array_equal, couplings.split(axis, (2, 3), "there"), (rows, columns)))


sizes = st.sampled_from([(2, 12), (12, 2), (3, 8), (4, 6), (2, 3, 4), (4, 3, 2), (2, 2, 6)])


@given(
    splits=st.lists(st.tuples(st.integers(0, 2), sizes), min_size=1, max_size=6),
    links=st.lists(st.tuples(st.integers(0, 71), st.integers(0, 71)), max_size=4),
    stays=st.lists(st.integers(0, 71), max_size=2),
)
def test_every_split_ends_in_whole_slices_along_one_factor(splits, links, stays):
    couplings = Couplings()
    axes = [couplings.fresh(24) for _ in range(3)]
    nodes = np.concatenate(axes)
    for one, other in links:
        couplings.link(nodes[[one]], nodes[[other]])
    couplings.link(nodes[stays], fixed(len(stays)))
    for axis, shape in splits:
        couplings.split(axes[axis], shape, HERE)
    found = list(couplings.splits)
    couplings.resolve()
    labels = couplings.components()
    assert not labels[nodes[stays]].any()
    for split in found:
        whole = [k for k in range(len(split.factors)) if (np.ptp(split.lanes(k, labels), axis=1) == 0).all()]
        live = [k for k, ids in enumerate(split.factors) if labels[ids].any()]
        assert whole
        assert len(live) <= 1 or not labels[split.flat].any()


@given(st.data())
def test_components_step_by_step_are_those_of_all_equalities(data):
    steps, once = Couplings(), Couplings()
    nodes = 0
    for size in data.draw(st.lists(st.integers(2, 9), min_size=1, max_size=8)):
        for couplings in (steps, once):
            couplings.fresh(size)
        nodes += size
        pairs = data.draw(st.lists(st.tuples(st.integers(0, nodes), st.integers(0, nodes)), max_size=6))
        left, right = (np.array([pair[side] for pair in pairs], dtype=np.int64) for side in (0, 1))
        for couplings in (steps, once):
            couplings.link(left, right)
        steps.components()
    assert np.array_equal(steps.components(), once.components())
