"""Exact nearest neighbors against all distances in float64."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from truth import DTYPES, of_neighbors

from prunefuse.extrapolation import nearest_neighbors
from prunefuse.ops import reference

METRICS = ("euclidean", "cosine")


def assert_nearest(queries, references, k, metric="euclidean", device="cpu"):
    """The distances are the truth's, rounded; the references are those, but for such as are equally far in float64."""
    distances, indices = nearest_neighbors(queries.to(device), references.to(device), k, metric=metric)
    expected, order = of_neighbors(queries, references, k, metric)
    eps = 1e-13 if queries.dtype == torch.float64 else 1.3e-7
    # What normalizing in float64 may do to the distance of rows that point the same way.
    floor = 1e-30 if metric == "cosine" else 2e-45  # the smallest subnormal
    distances, indices = distances.cpu().double().numpy(), indices.cpu().numpy()
    assert (np.diff(distances, axis=1) >= 0).all()
    assert (distances >= 0).all()
    np.testing.assert_allclose(distances, expected, rtol=eps, atol=floor)
    for i, j in np.argwhere(indices != order):
        assert math.isclose(
            expected[i, j], of_one(queries[i], references[indices[i, j]], metric), rel_tol=1e-12
        )
    assert all(len(set(row)) == k for row in indices.tolist())


def of_one(query, one, metric):
    return of_neighbors(query[None], one[None], 1, metric)[0][0, 0]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "count", "width", "k"), [(1, 1, 1, 1), (70, 2300, 33, 9), (9, 1300, 200, 1300)]
)
def test_the_nearest_by_definition(isa, dtype, rows, count, width, k, metric):
    generator = torch.Generator().manual_seed(count)
    queries = torch.randn(rows, width, generator=generator).to(dtype)
    references = torch.randn(count, width, generator=generator).to(dtype)
    assert_nearest(queries, references, k, metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "kind",
    ["offset", "clusters", "duplicates", "one far reference", "huge norms", "near ties", "zeros", "parallel"],
)
def test_where_a_matrix_product_cancels(isa, device, kind, metric):
    generator = torch.Generator().manual_seed(1)
    queries, references = (torch.randn(n, 24, generator=generator) for n in (60, 2600))
    if kind == "offset":
        queries, references = queries + 1e4, references + 1e4
    elif kind == "clusters":
        centers = torch.randn(3, 24, generator=generator)
        queries = centers[torch.arange(60) % 3] + 1e-5 * queries
        references = centers[torch.arange(2600) % 3] + 1e-5 * references
    elif kind == "duplicates":
        references = references[torch.arange(2600) % 5]
        queries = references[:60].clone()
    elif kind == "one far reference":
        references[1000] = 1e12
    elif kind == "huge norms":
        references[::3] *= 1e4
        queries[::7] *= 1e4
    elif kind == "near ties":
        # On a sphere around the query, but for the last bits of float32.
        queries = queries[:1].expand(60, -1).clone()
        away = torch.nn.functional.normalize(references)
        references = queries[:1] + away * (1 + 1e-6 * torch.rand(2600, 1, generator=generator))
    elif kind == "zeros":
        queries[::10] = 0
        references[::10] = 0
    else:
        references = references[torch.arange(2600) % 40] * torch.arange(1, 2601)[:, None]
    for k in (1, 30, 300):
        assert_nearest(queries, references, k, metric, device)


def test_a_row_finds_itself_first_and_equals_by_lower_index(isa, device):
    x = torch.randn(1500, 40, generator=torch.Generator().manual_seed(0))
    x[7] = x[900] = x[1400]
    for metric in METRICS:
        distances, indices = nearest_neighbors(x.to(device), x.to(device), 3, metric=metric)
        own = torch.arange(1500)
        own[[900, 1400]] = 7
        assert torch.equal(indices[:, 0].cpu(), own)
        assert indices[7].tolist() == indices[900].tolist() == [7, 900, 1400]
        assert (distances[:, 0] == 0).all()


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e15, 1e30])
def test_values_of_any_magnitude(scale):
    generator = torch.Generator().manual_seed(2)
    queries, references = (torch.randn(n, 5, generator=generator) * scale for n in (20, 1200))
    for metric in METRICS:
        assert_nearest(queries, references, 6, metric)
    references[0] = 1e36
    assert_nearest(queries, references, 6)
    wide = torch.tensor([[1e300], [3e300], [-2e-300]], dtype=torch.float64)
    assert nearest_neighbors(wide, wide, 2)[1].tolist() == [[0, 2], [1, 0], [2, 0]]


@settings(max_examples=80, deadline=None)
@given(st.data(), st.integers(1, 12), st.integers(1, 60), st.integers(1, 4))
def test_whole_numbers_have_exact_ties(data, rows, count, width):
    values = st.lists(st.integers(-3, 3), min_size=(rows + count) * width, max_size=(rows + count) * width)
    x = torch.tensor(data.draw(values), dtype=torch.float32).reshape(rows + count, width)
    k = data.draw(st.integers(1, count))
    distances, indices = nearest_neighbors(x[:rows], x[rows:], k)
    expected, _ = of_neighbors(x[:rows], x[rows:], k)
    squared = (
        torch.cdist(x[:rows].double(), x[rows:].double(), compute_mode="donot_use_mm_for_euclid_dist")
        .square()
        .round()
    )
    assert torch.equal(indices, squared.sort(dim=1, stable=True).indices[:, :k])
    np.testing.assert_allclose(distances.double(), expected, rtol=1e-6)


def test_many_neighbors_have_exact_ties(isa, device):
    """Whole numbers in few places, also with one reference so far that it alone is far."""
    generator = torch.Generator().manual_seed(7)
    queries, references = (torch.randint(-4, 5, (n, 3), generator=generator).float() for n in (7, 3000))
    for far in (None, 1e5):
        if far is not None:
            references[17] = far
        squared = (queries[:, None].double() - references).square().sum(2)
        for k in (63, 64, 700, 3000):
            _, indices = nearest_neighbors(queries.to(device), references.to(device), k)
            assert torch.equal(indices.cpu(), squared.sort(dim=1, stable=True).indices[:, :k])


def test_layouts_and_empty_queries():
    x = torch.randn(40, 1300, generator=torch.Generator().manual_seed(4))
    expected = nearest_neighbors(x.T.contiguous(), x.T.contiguous()[::2].contiguous(), 4)
    got = nearest_neighbors(x.T, x.T[::2], 4)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert nearest_neighbors(x[:0], x, 2)[1].shape == (0, 2)


@pytest.mark.parametrize(
    "setting",
    [
        "torch.set_float32_matmul_precision('high')",
        "torch.set_float32_matmul_precision('medium')",
        "torch.backends.cuda.matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = 'tf32'",
        "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
        "torch.backends.fp32_precision = 'tf32'",
    ],
)
def test_products_that_torch_may_round_change_nothing(device, setting):
    """TF32 and bfloat16 products miss the order by far; the margin knows that. In a process of its own: settings stay."""
    code = f"""
import torch
from prunefuse.extrapolation import nearest_neighbors
generator = torch.Generator().manual_seed(6)
queries, references = (torch.randn(n, 64, generator=generator).to("{device}") for n in (300, 2000))
expected = nearest_neighbors(queries, references, 10)
{setting}
got = nearest_neighbors(queries, references, 10)
assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_reference_agrees(device):
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(5)).to(device)
    for cosine in (False, True):
        expected = reference.nearest_neighbors(x[:50], x, 4, cosine, 1.0, 0.0)
        got = torch.ops.prunefuse.nearest_neighbors(x[:50], x, 4, cosine, 1.0, 0.0)
        torch.testing.assert_close(got[0], expected[0], rtol=1e-6, atol=1e-12)
        assert torch.equal(got[1], expected[1])


def test_opcheck_and_flops(device):
    x = torch.randn(30, 8).to(device)
    torch.library.opcheck(torch.ops.prunefuse.nearest_neighbors.default, (x, x, 3, False, 1.0, 0.0))
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        nearest_neighbors(x, x, 3)
    assert counter.get_total_flops() == 2 * 30 * 30 * 9


def test_numpy_in_numpy_out():
    x = np.random.default_rng(0).normal(size=(50, 3))
    distances, indices = nearest_neighbors(x[:5], x, 2)
    assert isinstance(distances, np.ndarray)
    assert distances.dtype == np.float64
    assert indices[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_equal_to_scikit_learn():
    from sklearn.neighbors import NearestNeighbors

    x = np.random.default_rng(1).normal(size=(3000, 30)).astype(np.float32)
    for metric in METRICS:
        brute = NearestNeighbors(n_neighbors=20, algorithm="brute", metric=metric).fit(x[500:])
        expected, order = brute.kneighbors(x[:500].astype(np.float64))
        distances, indices = nearest_neighbors(x[:500], x[500:], 20, metric=metric)
        np.testing.assert_array_equal(indices, order)
        np.testing.assert_allclose(distances, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([[1.0]], torch.zeros(3, 1), 1), {}, TypeError, "queries must be a torch tensor"),
        ((torch.zeros(3, 1).int(), torch.zeros(3, 1), 1), {}, TypeError, "queries must be float16"),
        ((torch.zeros(3), torch.zeros(3, 1), 1), {}, ValueError, r"queries must have shape \(rows, features\)"),
        ((torch.zeros(3, 2), torch.zeros(3, 1), 1), {}, ValueError, "references must have the 2 features of queries, got 1"),
        ((torch.zeros(3, 1), torch.zeros(3, 1).half(), 1), {}, ValueError, "references must have the dtype and device"),
        ((torch.zeros(3, 1), torch.zeros(3, 1), 4), {}, ValueError, "k must be at most the number of references, 3, got 4"),
        ((torch.zeros(3, 1), torch.zeros(3, 1), 0), {}, ValueError, "k must be at least 1, got 0"),
        ((torch.zeros(3, 1), torch.zeros(3, 1), 1.0), {}, TypeError, "k must be an integer"),
        ((torch.zeros(3, 1), torch.zeros(3, 1), 1), {"metric": "dot"}, ValueError, "metric must be one of euclidean, cosine"),
        ((torch.zeros(3, 1), torch.tensor([[0.0], [math.nan]]), 1), {}, ValueError, "references must be finite, but row 1"),
        ((torch.tensor([[0.0], [math.inf]]), torch.zeros(3, 1), 1), {}, ValueError, "queries must be finite, but row 1"),
    ],
)  # fmt: skip
def test_wrong_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        nearest_neighbors(*arguments, **options)
