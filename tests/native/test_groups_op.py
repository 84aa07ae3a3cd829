"""Scores of labels, pixels and boxes against float64 truth (truth.py), reduced by the definition."""

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from truth import DTYPES, NAMES, RAW, eps, of_rows

import prunefuse
from prunefuse import ops

ALL = (*NAMES, *RAW)
REDUCTIONS = ("mean", "max", "sum", "share", "count")
SPECIAL = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40, 6e4, -6e4, 40.0, -90.0)


def label_rows(values, probabilities):
    """Each value of an array as the two logits that it stands for (n, 2), float64."""
    x = values.double().cpu().flatten()
    if not probabilities:
        return torch.stack([x, torch.zeros_like(x)], 1)
    inside = torch.where((x >= 0) & (x <= 1), x, torch.nan)
    return torch.stack([inside.log(), torch.log1p(-inside)], 1)


def reduced(utilities, counts, reduction, threshold, empty):
    """One group's by the definition, in float64."""
    kept = utilities[counts]
    if not len(kept):
        return empty
    if np.isnan(kept).any():
        return math.nan
    if reduction in ("share", "count"):
        return (kept > threshold).mean() if reduction == "share" else float((kept > threshold).sum())
    if reduction == "max":
        return kept.max()
    total = math.fsum(kept) if np.isfinite(kept).all() else kept.sum()
    return total / len(kept) if reduction == "mean" else total


def assert_groups(call, rows, counts, temperature, dtype, empty=math.nan):
    """For all reductions. rows: logits (R, C) of each group, in float64; counts: bool (R,) of each."""
    truths = [of_rows(group, temperature) for group in rows]
    for reduction in REDUCTIONS:
        assert_reduced(call(**options(reduction)), truths, rows, counts, reduction, temperature, dtype, empty)


def assert_reduced(got, truths, rows, counts, reduction, temperature, dtype, empty, threshold=0.3):
    for name in got:
        values = got[name].double().cpu().numpy()
        assert got[name].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert len(values) == len(rows)
        for i, (group, keep) in enumerate(zip(rows, counts, strict=True)):
            truth = truths[i][name]
            largest = float(torch.finfo(got[name].dtype).max)
            truth = np.where(np.abs(truth) > largest, np.copysign(np.inf, truth), truth)
            expected = reduced(truth, keep, reduction, threshold, empty)
            size = np.abs(np.nan_to_num(truth[keep], posinf=0, neginf=0)).max(initial=0)
            each = 8 * eps(dtype) * max(1.0, math.log(group.shape[1])) * max(1.0, size, temperature)
            if reduction in ("share", "count"):
                # A utility may fall on either side of a threshold that it is equal to but for rounding.
                near = int((np.abs(truth[keep] - threshold) <= each).sum())
                allowed = near / max(1, keep.sum()) if reduction == "share" else near
                allowed += 4 * eps(dtype) * max(1.0, 0 if math.isnan(expected) else abs(expected))
            else:
                allowed = each * (max(1, int(keep.sum())) if reduction == "sum" else 1)
            if math.isnan(expected) or math.isinf(expected):
                np.testing.assert_equal(values[i], expected, err_msg=f"{name} of group {i}")
            else:
                assert abs(values[i] - expected) <= allowed, (name, i, values[i], expected)


def options(reduction, threshold=0.3):
    return {"reduction": reduction, "threshold": threshold if reduction in ("share", "count") else None}


def drawn(shape, dtype, seed, probabilities=False, special=SPECIAL):
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    if probabilities:
        x = x.sigmoid()
    if special and x.numel():
        chosen = torch.rand(shape, generator=generator) < 0.02
        which = torch.tensor(special, dtype=torch.float64)
        which = which[torch.randint(len(special), shape, generator=generator)]
        if probabilities:
            which = torch.where(which.isinf() & (which > 0), 1.0, which.clamp(-0.5, 1.5))
        x = torch.where(chosen, which, x)
    return x.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "labels"), [(0, 3), (3, 0), (1, 1), (9, 20), (3, 80), (1, 600)])
def test_labels(isa, device, dtype, n, labels):
    for probabilities in (False, True):
        x = drawn((n, labels), dtype, n + labels, probabilities, SPECIAL if labels < 600 else (math.inf, 0.0))
        mask = torch.rand((n, labels), generator=torch.Generator().manual_seed(1)) < 0.6
        for temperature, counts in ((1.0, mask), (0.7, torch.ones_like(mask))):
            call = functools.partial(
                prunefuse.score_labels, x.to(device), ALL, mask=mask if counts is mask else None,
                probabilities=probabilities, temperature=temperature,
            )  # fmt: skip
            rows = [label_rows(row, probabilities) for row in x]
            assert_groups(call, rows, counts.numpy(), temperature, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 1, 3, 3), (3, 2, 5, 7), (2, 21, 3, 11), (1, 130, 4, 6)])
def test_pixels(isa, device, dtype, shape):
    x = drawn(shape, dtype, sum(shape), special=(math.inf, -math.inf, 0.0, 90.0))
    if shape[1] > 1:
        x[0, :, 0, 0] = math.nan
    counts = torch.rand((shape[0], *shape[2:]), generator=torch.Generator().manual_seed(2)) < 0.6
    counts[0, 0, 0] = False
    layouts = {
        "planes": x,
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "a crop": torch.nn.functional.pad(x, (1, 2, 2, 1), value=math.nan)[..., 2:-1, 1:-2],
    }
    rows = [image.flatten(1).t().double() for image in x]
    every = counts[:, None].expand(shape).flatten(1).numpy()
    for view in layouts.values():
        call = functools.partial(prunefuse.score_pixels, view.to(device), ALL, mask=counts)
        assert_groups(functools.partial(call, temperature=1.3), rows, counts.flatten(1).numpy(), 1.3, dtype)
        labels = [label_rows(image, False) for image in x]
        assert_groups(functools.partial(call, independent=True), labels, every, 1.0, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 3, 33])
def test_boxes(isa, device, dtype, classes):
    sizes = [0, 3, 1, 0, 0, 17, 0]
    x = drawn((sum(sizes), classes), dtype, classes, special=(math.inf, -math.inf, 90.0))
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    parts = list(x.split(sizes))
    every = [np.ones(n, dtype=bool) for n in sizes]
    for given_as in ((x.to(device), offsets), ([part.to(device) for part in parts], None)):
        call = functools.partial(prunefuse.score_boxes, *given_as, ALL, empty=-3.0)
        assert_groups(call, [part.double() for part in parts], every, 1.0, dtype, empty=-3.0)
    call = functools.partial(
        prunefuse.score_boxes, x.t().contiguous().t().to(device), offsets, ALL, independent=True
    )
    every = [np.ones(n * classes, dtype=bool) for n in sizes]
    rows = [label_rows(part, False) for part in parts]
    assert_groups(call, rows, every, 1.0, dtype, empty=0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", [0, 1, 2])
@pytest.mark.parametrize("shape", [(3, 9001, 1), (2, 9001, 5), (300, 7, 1), (1, 700, 200)], ids=str)
def test_long_and_many_groups(isa, device, dtype, reduction, shape):
    """In parts, across the borders of tiles and of groups, and masked; beside the reference in float64."""
    x = drawn(shape, dtype, sum(shape), special=(math.inf, 90.0))
    labels = shape[2] == 1
    mask = torch.rand(shape[:2], generator=torch.Generator().manual_seed(4)) < 0.5
    offsets = torch.tensor([0, 0, 3, 1000 % shape[0] + 3, shape[0] * shape[1]])
    arguments = ([0, 1, 2], reduction, 0.0, -1.0, labels, False, 0.8)
    for view in (
        x,
        x.transpose(1, 2).contiguous().transpose(1, 2),
        x.transpose(0, 1).contiguous().transpose(0, 1),
    ):
        for call in ((view, None, mask), (view, None, None), (x.flatten(0, 1), offsets, None)):
            on_device = [one if one is None else one.to(device) for one in call]
            got = ops.score_groups(*on_device, *arguments).cpu()
            truth = ops.score_groups.reference(call[0].double(), *call[1:], *arguments)
            small = 3e-5 if dtype != torch.float64 else 1e-11
            torch.testing.assert_close(got.double(), truth, rtol=small, atol=small, equal_nan=True)


def test_a_label_is_two_classes(isa, device):
    """By a softmax over (x, 0), to the last bits, sure ones too."""
    x = torch.cat([torch.linspace(-95, 95, 777), torch.tensor([math.inf, -math.inf, 0.0, math.nan])])
    two = prunefuse.score(torch.stack([x, torch.zeros_like(x)], 1).to(device), ALL)
    one = prunefuse.score_labels(x[:, None].to(device), ALL)
    for name in ALL:
        torch.testing.assert_close(one[name], two[name], rtol=4e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("labels", [1, 7, 40, 300])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_of_sure_labels_keep_their_digits(isa, device, dtype, labels):
    """Least confidences down to 1e-30 are told apart, alone and beside one label that is not sure; so are entropies."""
    generator = torch.Generator().manual_seed(labels)
    sure = (60 + 9 * torch.rand(50, labels, generator=generator, dtype=torch.float64)).to(dtype)
    sure = torch.where(torch.rand(sure.shape, generator=generator) < 0.5, sure, -sure)
    beside = sure.clone()
    beside[:, 0] = 0.25
    for x in (sure, beside, -beside):
        got = prunefuse.score_labels(x.to(device), NAMES, reduction="sum")
        truth = [of_rows(label_rows(row, False)) for row in x]
        for name in NAMES:
            expected = [float(math.fsum(one[name])) for one in truth]
            # The exponential of -69 has the error of its rounded argument, 35 units; CUDA's two roundings of it.
            relative = 150 * eps(dtype)
            np.testing.assert_allclose(got[name].double().cpu().numpy(), expected, rtol=relative, atol=0)


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("labels", [5, 200])
def test_maxima_and_shares_are_those_of_the_labels_scored_one_by_one(isa, device, labels, probabilities):
    special = (math.inf, 0.0, 0.5) if probabilities else (math.inf, -math.inf, 0.0, 0.5)
    x = drawn((40, labels), torch.float32, labels, probabilities, special)
    kept = {"strategy": ALL, "probabilities": probabilities, "temperature": 0.6}
    one_by_one = prunefuse.score_labels(x.reshape(-1, 1).to(device), **kept)
    for name, each in one_by_one.items():
        each = each.view(x.shape)
        largest = prunefuse.score_labels(x.to(device), reduction="max", **kept)[name]
        torch.testing.assert_close(largest, each.amax(1), rtol=1e-6, atol=1e-6)
        for threshold in (-1.0, 0.0, 0.123, 0.7, math.inf, -math.inf):
            count = prunefuse.score_labels(x.to(device), reduction="count", threshold=threshold, **kept)[name]
            assert ((each > threshold + 1e-6).sum(1) <= count).all(), (name, threshold)
            assert ((each > threshold - 1e-6).sum(1) >= count).all(), (name, threshold)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    st.integers(1, 9),
    st.integers(1, 90),
    st.sampled_from(DTYPES),
    st.sampled_from(REDUCTIONS),
    st.integers(0, 99),
)
def test_laws(n, labels, dtype, reduction, seed):
    """The order of labels, a label's complement and masked labels change nothing; one group is its parts."""
    x = drawn((n, labels), dtype, seed, special=(math.inf, 0.0))
    generator = torch.Generator().manual_seed(seed)
    kept = {"strategy": NAMES, **options(reduction)}
    same = {
        "rtol": 1e-5 if dtype != torch.float64 else 1e-12,
        "atol": 1e-6 if dtype != torch.float64 else 1e-13,
    }

    def compare(a, b):
        for name in NAMES:
            torch.testing.assert_close(a[name], b[name], equal_nan=True, **same)

    expected = prunefuse.score_labels(x, **kept)
    compare(prunefuse.score_labels(x[:, torch.randperm(labels, generator=generator)], **kept), expected)
    compare(prunefuse.score_labels(-x, **kept), expected)
    junk = torch.cat([x, torch.full((n, 3), math.nan, dtype=dtype)], 1)
    mask = torch.tensor([True] * labels + [False] * 3).expand(n, -1)
    compare(prunefuse.score_labels(junk, mask=mask, **kept), expected)
    offsets = torch.arange(n + 1) * labels
    compare(prunefuse.score_boxes(x.reshape(-1, 1), offsets, independent=True, **kept), expected)


@pytest.mark.parametrize("shape", ["regular", "labels", "ragged"])
def test_opcheck(shape):
    mask = torch.tensor([[True, False, True, True]] * 2)
    calls = {
        "regular": (torch.randn(4, 4, 3), None, mask, [0, 2], 0, 0.0, 0.0, False, False, 1.0),
        "labels": (torch.rand(4, 4, 1), None, None, [1], 3, 0.4, 0.0, True, True, 0.5),
        "ragged": (
            torch.randn(9, 3),
            torch.tensor([0, 4, 4, 9]),
            None,
            [1, 4],
            1,
            0.0,
            7.0,
            False,
            False,
            1.0,
        ),
    }
    torch.library.opcheck(torch.ops.prunefuse.score_groups.default, calls[shape])
    got, truth = (f(*calls[shape]) for f in (ops.score_groups, ops.score_groups.reference))
    torch.testing.assert_close(got, truth)


def test_under_compile():
    x = torch.randn(4, 5, 6, 7)
    for call in (
        lambda y: prunefuse.score_pixels(y, "margin", reduction="max"),
        lambda y: prunefuse.score_labels(y.flatten(1), "entropy"),
        lambda y: prunefuse.score_boxes(y.flatten(0, 2), torch.tensor([0, 20, 120])),
    ):
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), call(x))


def test_what_is_given_is_not_written_and_numpy_gives_numpy():
    x = drawn((3, 4, 5, 6), torch.float32, 1).numpy()
    before = x.copy()
    for got in (
        prunefuse.score_pixels(x),
        prunefuse.score_labels(x[0, 0]),
        prunefuse.score_boxes(x[0, 0], [0, 5]),
        prunefuse.score_boxes([x[0, 0], x[1, 0]]),
    ):
        assert isinstance(got, np.ndarray)
    np.testing.assert_array_equal(x, before)


WRONG = [
    (lambda x: prunefuse.score_labels(x), ValueError, r"logits must have shape \(N, L\), got"),
    (lambda x: prunefuse.score_labels(x[0, 0], "bald"), ValueError, "strategy must be one of"),
    (
        lambda x: prunefuse.score_labels(x[0, 0], reduction="median"),
        ValueError,
        "reduction must be one of mean",
    ),
    (lambda x: prunefuse.score_labels(x[0, 0], reduction="share"), ValueError, "threshold must be a number"),
    (lambda x: prunefuse.score_labels(x[0, 0], threshold=0.5), ValueError, "threshold must be None"),
    (lambda x: prunefuse.score_labels(x[0, 0], mask=x[0, 0]), TypeError, "mask must be bool or integer"),
    (
        lambda x: prunefuse.score_labels(x[0, 0], mask=torch.ones(2) > 0),
        ValueError,
        r"mask must have shape \(5, 6\)",
    ),
    (lambda x: prunefuse.score_labels(x[0, 0], temperature=0), ValueError, "temperature must be positive"),
    (lambda x: prunefuse.score_labels(x[0, 0].int()), TypeError, "logits must be float16, bfloat16"),
    (lambda x: prunefuse.score_pixels(x[0, 0]), ValueError, r"logits must have shape \(N, C, H, W\)"),
    (
        lambda x: prunefuse.score_pixels(x, mask=torch.ones(3, 6, 5) > 0),
        ValueError,
        r"shape \(3, 5, 6\), got",
    ),
    (lambda x: prunefuse.score_pixels(x[:, :0]), RuntimeError, "at least one class"),
    (lambda x: prunefuse.score_pixels(x[:, :0], independent=True), RuntimeError, "at least one class"),
    (lambda x: prunefuse.score_boxes(x[0, 0]), ValueError, "offsets must be given"),
    (
        lambda x: prunefuse.score_boxes([x[0, 0]], [0, 5]),
        ValueError,
        "offsets must be None where logits are a list",
    ),
    (lambda x: prunefuse.score_boxes([]), ValueError, "a tensor for each image"),
    (
        lambda x: prunefuse.score_boxes([x[0, 0], x[0, 0, :, :3]]),
        ValueError,
        r"logits\[1\] must have the classes",
    ),
    (lambda x: prunefuse.score_boxes(x[0, 0], [0.0, 5.0]), TypeError, "offsets must be integers"),
    (
        lambda x: prunefuse.score_boxes(x[0, 0], [0, 4]),
        RuntimeError,
        "offsets must begin with 0 and end with",
    ),
    (lambda x: prunefuse.score_boxes(x[0, 0], [0, 5], empty="no"), TypeError, "empty must be a number"),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_wrong_arguments(number):
    call, error, message = WRONG[number]
    with pytest.raises(error, match=message):
        call(torch.zeros(3, 4, 5, 6))
