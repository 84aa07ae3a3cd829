"""Any shape, layout, dtype and value for every operator, against float64: 2,800 examples, the same in every run."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_groups_op import REDUCTIONS, assert_reduced, label_rows
from truth import (
    DTYPES,
    NAMES,
    SCATTER_DTYPES,
    assert_ensembles,
    assert_scores,
    assert_seeding,
    eps,
    of_k_center,
    of_passes,
    of_rows,
    of_scatter,
    of_top_b,
    scatter_pair,
)

import prunefuse
from prunefuse import ops

EXAMPLES = {
    "scores": 750,
    "ensembles": 350,
    "absorb": 350,
    "groups": 250,
    "top_b": 350,
    "k_center": 250,
    "k_means": 200,
    "scatter": 300,
}
assert sum(EXAMPLES.values()) >= 2000


def examples(operator):
    return settings(max_examples=EXAMPLES[operator], deadline=None, derandomize=True, database=None)


rows = st.sampled_from([0, 1, 2, 3, 5, 7, 8, 13, 16, 17, 31, 33])
classes = st.sampled_from(
    [1, 2, 3, 4, 5, 7, 8, 10, 13, 16, 17, 31, 61, 64, 127, 128, 129, 257, 511, 513, 1031]
)
dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 2**31)
temperatures = st.sampled_from([1.0, 1.0, 0.25, 3.0, 0.37, 1e-3, 1e4])
layouts = st.sampled_from(["contiguous", "transposed", "offset", "sliced", "one_row", "one_class"])
specials = st.lists(
    st.sampled_from([math.nan, math.inf, -math.inf, -math.inf, 0.0, -0.0, 1e-40, 6e4, -6e4, 3e38, -3e38]),
    max_size=3,
)


def numbers(seed, shape, spread, special, dtype=torch.float64):
    """Normal numbers, whole ones in some cases, with special values strewn in: sometimes few, sometimes many."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64) * spread
    if seed % 4 == 0:
        values = values.round()
    if special:
        which = torch.randint(len(special), shape, generator=generator)
        share = (0.5, 0.1, 0.01)[seed % 3]
        chosen = torch.rand(shape, generator=generator) < share
        values = torch.where(chosen, torch.tensor(special, dtype=torch.float64)[which], values)
    return values.to(dtype)


def laid_out(values, layout):
    """The same numbers (or, for one_row and one_class, the first one's) with other strides; NaN fills what lies between."""
    if layout == "one_row":
        return values[..., :1, :].expand(values.shape)
    if layout == "one_class":
        return values[..., :1].expand(values.shape)
    if layout == "transposed":
        return values.transpose(-1, 0).contiguous().transpose(-1, 0)
    if layout == "offset":
        return torch.cat([values.new_full((7,), 2).div(0), values.flatten()])[7:].view(values.shape)
    if layout == "sliced":
        room = values.new_full([2 * n + 3 for n in values.shape], 2).div(0)
        view = room[tuple(slice(1, 2 * n + 1, 2) for n in values.shape)]
        return view.copy_(values)
    return values


def slack_of(p, temperature):
    """In units of what logits allow: the logarithm of a row's maximum is rounded, and the temperature divides that."""
    largest = p.double().nan_to_num(1.0, posinf=1.0).amax(1).clamp(min=1e-300)
    return (largest.log().abs() / min(1.0, temperature)).clamp(min=1.0).numpy()


@examples("scores")
@given(rows, classes, dtypes, layouts, specials, st.sampled_from([0.01, 1, 3, 30, 1e4]), temperatures, seeds)
def test_scores(n, c, dtype, layout, special, spread, temperature, seed):
    logits = laid_out(numbers(seed, (n, c), spread, special, dtype), layout)
    assert_scores(logits, temperature, slack=8)
    p = laid_out(numbers(seed, (n, c), 1, special, dtype).abs().clamp(max=1e4), layout)
    if seed % 5 == 0 and n > 0:
        p = p.clone()
        p[seed % n, seed % c] = -0.5
    expected = of_rows(p.double().log(), temperature)
    for name, got in prunefuse.score(
        p, probabilities=True, temperature=temperature, strategy=("margin", "entropy")
    ).items():
        wrong = np.abs(got.double().numpy() - expected[name]) > (
            8 * eps(dtype) * max(1.0, math.log(c)) * slack_of(p, temperature)
        )
        assert not wrong.any(), name
        np.testing.assert_array_equal(got.isnan(), np.isnan(expected[name]))


@examples("ensembles")
@given(
    st.sampled_from([1, 2, 3, 5]), rows, classes, dtypes, layouts, specials,
    st.sampled_from([0.01, 3, 30]), temperatures, seeds,
)  # fmt: skip
def test_ensembles(passes, n, c, dtype, layout, special, spread, temperature, seed):
    logits = laid_out(numbers(seed, (passes, n, c), spread, special, dtype), layout)
    assert_ensembles(logits, of_passes(logits, temperature), temperature=temperature)


@examples("absorb")
@given(rows, classes, dtypes, layouts, specials, st.sampled_from([0.01, 3, 1e4]), temperatures, seeds)
def test_absorb(n, c, dtype, layout, special, spread, temperature, seed):
    logits = laid_out(numbers(seed, (n, c), spread, special, dtype), layout)
    state = torch.zeros(6, n, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    state[:2] = -math.inf
    generator = np.random.default_rng(seed)
    cuts = np.unique(generator.integers(0, c, generator.integers(0, 4)))
    for piece in logits.tensor_split(cuts[cuts > 0].tolist(), 1):
        ops.absorb_(state, piece, temperature)
    x, (top, second, ties, tail, dot, nan) = logits.double().numpy(), state.double().numpy()
    np.testing.assert_array_equal(nan, np.isnan(x).any(1))
    for i in np.flatnonzero((nan == 0) & (x > -np.inf).any(1)):
        order = np.sort(x[i])[::-1]
        assert (top[i], second[i], ties[i]) == (
            order[0],
            order[1] if c > 1 else -np.inf,
            (order == order[0]).sum(),
        )
        with np.errstate(over="ignore"):
            z = (order[(order < order[0]) & (order > -np.inf)] - order[0]) / temperature
        e = np.exp(z)
        tolerance = 16 * eps(dtype) * max(1.0, math.log(c)) * (1 + math.fsum(e))
        assert abs(tail[i] - math.fsum(e)) <= tolerance
        assert abs(dot[i] - math.fsum(np.where(e > 0, e * np.maximum(z, -1e300), 0.0))) <= tolerance


@examples("groups")
@given(
    st.integers(0, 5), st.sampled_from([0, 1, 2, 5, 16, 33, 129, 530]), st.sampled_from([1, 2, 3, 7, 21, 130]),
    st.sampled_from(["rows", "labels", "label probabilities"]), st.sampled_from(REDUCTIONS), dtypes, layouts, specials,
    st.sampled_from([0.01, 3, 30]), temperatures, st.sampled_from([-1.0, 0.0, 0.3, 0.9]),
    st.sampled_from(["all", "mask", "offsets"]), seeds,
)  # fmt: skip
def test_groups(
    n, parts, c, kind, reduction, dtype, layout, special, spread, temperature, threshold, which, seed
):
    labels, probabilities = kind != "rows", kind == "label probabilities"
    values = numbers(seed, (n, parts, 1 if labels else c), spread, special)
    if probabilities:
        # Logarithms are rounded, which a low temperature would multiply.
        values, temperature = values.abs() if seed % 3 == 0 else values.sigmoid(), max(temperature, 0.25)
    x = laid_out(values.to(dtype), layout)
    generator = np.random.default_rng(seed)
    counts, offsets, mask = np.ones((n, parts), dtype=bool), None, None
    if which == "mask":
        counts = generator.random((n, parts)) < 0.6
        mask = torch.from_numpy(counts)
    groups = list(x.unbind(0))
    if which == "offsets":
        x = x.flatten(0, 1)
        borders = np.sort(generator.integers(0, len(x) + 1, n)).tolist()
        offsets = torch.tensor([0, *borders, len(x)])
        groups = [x[begin:end] for begin, end in itertools.pairwise(offsets.tolist())]
        counts = [np.ones(len(group), dtype=bool) for group in groups]
    got = ops.score_groups(
        x, offsets, mask, [0, 1, 2], REDUCTIONS.index(reduction), threshold, -5.0, labels, probabilities, temperature
    )  # fmt: skip
    rows = [label_rows(group, probabilities) if labels else group.double() for group in groups]
    truths = [of_rows(group, temperature) for group in rows]
    named = dict(zip(NAMES, got, strict=True))
    assert_reduced(named, truths, rows, counts, reduction, temperature, dtype, -5.0, threshold)


@examples("top_b")
@given(
    st.integers(0, 700), st.integers(0, 700), dtypes, specials, st.integers(1, 3), st.integers(0, 5), seeds
)
def test_top_b(n, b, dtype, special, step, offset, seed):
    room = torch.full((offset + n * step,), math.nan, dtype=dtype)
    utilities = room[offset::step]
    utilities.copy_(numbers(seed, (n,), 3, special, dtype))
    b = min(b, int((~utilities.isnan()).sum()))
    indices, values = prunefuse.top_b(utilities, b)
    assert indices.tolist() == of_top_b(utilities.tolist(), b)
    assert torch.equal(values, utilities[indices].to(values.dtype))


@examples("k_center")
@given(
    st.integers(1, 60), st.sampled_from([1, 2, 3, 5, 8, 13, 17]), dtypes, st.sampled_from([-130, -20, 0, 10, 100]),
    st.sampled_from(["contiguous", "transposed", "offset", "sliced"]), st.integers(0, 60),
    st.sampled_from([0, 0, 1, 3, 20]), st.booleans(), st.data(), seeds,
)  # fmt: skip
def test_k_center(n, d, dtype, exponent, layout, b, least, weighted, data, seed):
    """Small whole numbers times a power of two: their distances are exact, so that ties go to the lower index."""
    whole = numbers(seed, (n, d), 4, []).round().clamp(-9, 9)
    x = whole * 2.0 ** (exponent if dtype in (torch.float32, torch.float64) else exponent % 8)
    special = data.draw(st.lists(st.sampled_from([math.nan, math.inf, -math.inf]), max_size=min(3, n - 1)))
    for row, value in enumerate(special):
        x[row, seed % d] = value
    start = data.draw(st.integers(len(special), n - 1))
    features = laid_out(x.to(dtype), layout)
    labeled = data.draw(st.lists(st.integers(0, n - 1), max_size=5, unique=True))
    labeled = [i for i in labeled if i != start]
    exclude = data.draw(st.lists(st.integers(0, n - 1), max_size=3))
    exclude = [i for i in exclude if i != start]
    weights = None
    if weighted:
        weights = numbers(seed + 1, (n,), 2, []).round().abs()
        weights[
            torch.tensor(
                [i for i in data.draw(st.lists(st.integers(0, n - 1), max_size=3)) if i != start]
            ).long()
        ] = math.nan
    free = set(range(len(special), n)) - set(labeled) - set(exclude)
    if weights is not None:
        free -= set(weights.isnan().nonzero()[:, 0].tolist())
    b = min(b, len(free))
    usable = [i for i in labeled if i >= len(special)]
    values = torch.where(x.isfinite(), whole, x)
    if usable and (values[usable] - values[start]).square().sum(1).amin() < least**2:
        least = 0  # the start may not be so near
    expected = of_k_center(values, b, usable, start, weights, least, exclude)
    unit = 2.0 ** (exponent if dtype in (torch.float32, torch.float64) else exponent % 8)
    options = {"start": start, "weights": weights, "min_distance": least * unit, "exclude": exclude}
    if -1 in expected:
        with pytest.raises(prunefuse.errors.TooFewRowsError) as caught:
            prunefuse.k_center_greedy(features, b, labeled, **options)
        assert caught.value.selectable == expected.index(-1)
        b = caught.value.selectable
    picks = prunefuse.k_center_greedy(features, b, labeled, **options)
    assert picks.tolist() == expected[:b]


@examples("k_means")
@given(
    st.integers(1, 300), st.sampled_from([1, 2, 3, 5, 8, 17]), st.sampled_from([1, 2, 4, 7, 16, 19]),
    st.sampled_from(DTYPES[:2]), st.sampled_from([-20, 0, 10]), st.integers(1, 300),
    st.sampled_from(["contiguous", "transposed", "offset", "sliced", "one_row"]), specials, st.booleans(), seeds,
)  # fmt: skip
def test_k_means(n, c, d, dtype, exponent, b, layout, special, weighted, seed):
    """Whole numbers times a power of two: sums of distances are exact, so that a draw can fall on one row alone."""
    whole = [numbers(seed + i, (n, width), 1, []).round().clamp(-4, 4) for i, width in enumerate((c, d))]
    broken = [value for value in special if not math.isfinite(value)][:n]
    for row, value in enumerate(broken):
        whole[row % 2][row, 0] = value
    factors = [laid_out(x.mul(2.0**exponent).to(dtype), layout) for x in whole]
    draws = torch.rand(min(b, n), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    weights = None
    if weighted:
        weights = numbers(seed + 2, (n,), 2, special).round().abs()
    assert_seeding(*factors, draws, ops.k_means_plus_plus(*factors, draws, weights), 0, weights)


shapes = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), max_size=5)


@examples("scatter")
@given(
    st.lists(st.tuples(shapes, st.sampled_from(SCATTER_DTYPES), st.sampled_from(["as_is", "permuted", "sliced"])), max_size=4),
    seeds,
)  # fmt: skip
def test_scatter(tensors, seed):
    generator = np.random.default_rng(seed)
    dense, small, kept, rooms = [], [], [], []
    for shape, dtype, layout in tensors:
        to, source, axes = scatter_pair(
            generator, [n for n, _ in shape], [min(n, k) for n, k in shape], dtype
        )
        room = to
        if layout == "permuted":
            order = generator.permutation(to.dim()).tolist()
            back = np.argsort(order).tolist()
            to, source = (t.permute(order).contiguous().permute(back) for t in (to, source))
            room = to
        elif layout == "sliced":
            room = torch.zeros([2 * n + 3 for n in to.shape], dtype=dtype)
            view = room[tuple(slice(1, 2 * n + 1, 2) for n in to.shape)]
            to = view.copy_(to)
        dense.append(to)
        small.append(source)
        kept.append(axes)
        rooms.append(room)
    truth = [of_scatter(*each) for each in zip(dense, small, kept, strict=True)]
    beside = [room.clone() for room in rooms]
    for room, to, result in zip(beside, dense, truth, strict=True):
        # The same places in a copy of the memory around: whatever else lies there must stay.
        room.as_strided(to.shape, to.stride(), to.storage_offset()).copy_(result)
    ops.scatter_(dense, small, kept)
    for room, expected in zip(rooms, beside, strict=True):
        assert torch.equal(room, expected)
