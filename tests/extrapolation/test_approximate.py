"""Nearest neighbors by an index of faiss, beside the exact search."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peer_packages import skip_without

skip_without("faiss")
from prunefuse.extrapolation import KNN, nearest_neighbors

X = torch.randn(900, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_an_index_that_searches_all_is_exact(metric, dtype):
    queries, references = X[:200].to(dtype), X[100:].to(dtype)
    for index in ("Flat", "IVF8,Flat;nprobe=8"):
        expected = nearest_neighbors(queries, references, 7, metric=metric)
        found = nearest_neighbors(queries, references, 7, metric=metric, index=index)
        assert torch.equal(found[1], expected[1])
        torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=0)


def test_an_index_finds_most_and_gives_their_true_distances():
    expected, nearest = nearest_neighbors(X, X, 10)
    distances, rows = nearest_neighbors(X, X, 10, index="IVF16,SQ8;nprobe=8")
    hits = [len(set(a) & set(b)) for a, b in zip(rows.tolist(), nearest.tolist(), strict=True)]
    assert 0.7 < np.mean(hits) / 10 < 1  # it may miss some: else this shows nothing
    true = torch.cdist(X.double(), X.double(), compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(distances.double(), true.gather(1, rows), rtol=1e-6, atol=0)
    assert (distances.diff(dim=1) >= 0).all()
    assert (distances >= expected * (1 - 1e-6)).all()
    assert (distances[:, 0] == 0).all()


@settings(max_examples=30, deadline=None)
@given(st.data(), st.integers(1, 30), st.integers(1, 3))
def test_equals_by_lower_index_and_rows_of_zeros(data, count, width):
    values = st.lists(st.integers(-2, 2), min_size=count * width, max_size=count * width)
    x = torch.tensor(data.draw(values), dtype=torch.float32).reshape(count, width)
    for metric in ("euclidean", "cosine"):
        expected = nearest_neighbors(x, x, count, metric=metric)
        found = nearest_neighbors(x, x, count, metric=metric, index="Flat")
        torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=1e-12)
        if metric == "euclidean":  # whole numbers: ties are exact
            assert torch.equal(found[1], expected[1])


def test_equals_by_lower_index_where_the_index_does_not_know_that_they_are():
    x = torch.randint(4, (300, 2), generator=torch.Generator().manual_seed(0)).float()
    expected = nearest_neighbors(x, x, 300)
    found = nearest_neighbors(x, x, 300, index="IVF4,SQ4;nprobe=4")
    assert torch.equal(found[1], expected[1])


def test_kinds_of_arrays():
    distances, rows = nearest_neighbors(X.numpy()[::2], X.T.contiguous().T.numpy(), 3, index="Flat")
    assert isinstance(distances, np.ndarray)
    assert rows.dtype == np.int64
    assert (rows[:, 0] == np.arange(0, 900, 2)).all()


def test_neighbors_by_an_index_give_scores():
    scores = X[:, 0].clone()
    scores[450:] = float("nan")
    exact, indexed = (KNN(5, index=index).fit(X, scores).predict(X) for index in (None, "IVF4,Flat;nprobe=4"))
    torch.testing.assert_close(indexed, exact)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ("Nonsense", "could not parse"),
        ("IVF2000,Flat", "as large as number of clusters"),
        ("IVF4,Flat;probes=3", "could not set parameter"),
        ("IVF64,Flat;nprobe=1", "find k = 300 neighbors, got "),
    ],
)
def test_an_index_that_cannot_be_is_refused(index, expected):
    with pytest.raises(ValueError, match=rf"^index must .*{expected}"):
        nearest_neighbors(X, X, 300, index=index)


def test_an_index_is_text():
    with pytest.raises(TypeError, match="index"):
        nearest_neighbors(X, X, 3, index=4)


def test_without_faiss_the_extra_is_named():
    code = (
        "import sys; sys.modules['faiss'] = None; sys.modules['torch_geometric.nn'] = None\n"
        "import torch\n"
        "from prunefuse.extrapolation import GNN, nearest_neighbors\n"
        "x = torch.randn(20, 2)\n"
        "for call in (lambda: nearest_neighbors(x, x, 1, index='Flat'), lambda: GNN(2).fit(x, x[:, 0])):\n"
        "    try: call()\n"
        "    except ImportError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ)
    )
    assert result.returncode == 0, result.stderr
    by_index, by_graph = result.stdout.splitlines()
    assert by_index.startswith("index needs faiss")
    assert 'pip install "prunefuse[faiss]"' in by_index
    assert by_graph.startswith("GNN needs torch-geometric")
    assert 'pip install "prunefuse[gnn]"' in by_graph
