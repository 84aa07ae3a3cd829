"""k-means against the definition in float64: assignments, means, the objective that never rises, and the start's draws."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import prunefuse
from prunefuse.selection import k_means

NAN, INF = float("nan"), float("inf")
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def clustered(rows, width, k, seed=0, spread=0.3):
    generator = torch.Generator().manual_seed(seed)
    centers = 3 * torch.randn(k, width, generator=generator)
    return centers[torch.randint(k, (rows,), generator=generator)] + spread * torch.randn(
        rows, width, generator=generator
    )


def squared(x, centers):
    return (x.double()[:, None] - centers.double()[None]).square().sum(2)


def assert_clusters(x, found, weights=None, slack=1e-6):
    """Labels are of the nearest centers, the objective is that of the labels, and no two truths disagree."""
    distances = squared(x, found.centers)
    kept = found.labels >= 0
    own = distances[kept].gather(1, found.labels[kept, None])[:, 0]
    nearest = distances[kept].amin(1)
    assert bool((own <= nearest * (1 + slack) + 1e-300).all())
    w = torch.ones(len(x), dtype=torch.float64) if weights is None else weights.double()
    assert found.objective == pytest.approx(float((own * w[kept]).sum()), rel=1e-5, abs=1e-30)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "width", "k"), [(1, 1, 1), (7, 3, 7), (400, 2, 5), (1500, 17, 12), (300, 64, 40)]
)
def test_a_fixed_point_of_the_definition(device, dtype, rows, width, k):
    x = clustered(rows, width, k).to(dtype)
    found = k_means(x.to(device), k, tolerance=0, iterations=500)
    found = found._replace(centers=found.centers.cpu(), labels=found.labels.cpu())
    assert found.iterations < 500
    assert found.centers.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.labels.dtype == torch.int64
    assert_clusters(x, found)
    for cluster in range(k):
        mine = x[found.labels == cluster].double()
        assert len(mine)
        torch.testing.assert_close(found.centers[cluster].double(), mine.mean(0), rtol=1e-6, atol=1e-6)


def test_clusters_that_lie_apart_are_found_as_scikit_learn_finds_them():
    cluster = pytest.importorskip("sklearn.cluster")
    x = clustered(2000, 8, 6, seed=3)
    start = x[:6].clone()
    found = k_means(x.numpy(), 6, start=start.numpy(), tolerance=0)
    theirs = cluster.KMeans(6, init=start.numpy(), n_init=1, tol=0, algorithm="lloyd").fit(x.numpy())
    assert isinstance(found.labels, np.ndarray)
    assert found.labels.tolist() == theirs.labels_.tolist()
    np.testing.assert_allclose(found.centers, theirs.cluster_centers_, rtol=1e-4, atol=1e-5)
    assert found.objective == pytest.approx(theirs.inertia_, rel=1e-5)


matrices = st.tuples(st.integers(1, 40), st.integers(1, 4)).flatmap(
    lambda shape: st.lists(
        st.integers(-6, 6), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]
    ).map(lambda values: torch.tensor(values, dtype=torch.float64).reshape(shape))
)


@settings(max_examples=150, deadline=None)
@given(matrices, st.integers(0, 2**31), st.booleans(), st.data())
def test_the_objective_never_rises(x, seed, weighted, data):
    """Ties and equal points abound: centers without a point move, and every iteration is as good as the one before."""
    k = data.draw(st.integers(1, len(x)))
    weights = None
    if weighted:
        weights = torch.tensor(
            data.draw(st.lists(st.integers(0, 3), min_size=len(x), max_size=len(x)))
        ).double()
    last = INF
    for iterations in range(1, 12):
        generator = torch.Generator().manual_seed(seed)
        found = k_means(x, k, generator=generator, weights=weights, iterations=iterations, tolerance=0)
        assert_clusters(x, found, weights)
        assert found.objective <= last + 1e-9
        last = found.objective
        if found.iterations < iterations:
            break
    if k >= len(torch.unique(x, dim=0)) and weights is None:
        assert last == 0


def test_the_same_seed_gives_the_same_result_whatever_the_number_of_threads():
    x = clustered(6000, 20, 30, spread=2.0)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            results.append(k_means(x, 30, generator=torch.Generator().manual_seed(5)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert torch.equal(other.centers, results[0].centers)
        assert torch.equal(other.labels, results[0].labels)
        assert other.objective == results[0].objective
    assert not torch.equal(
        k_means(x, 30, generator=torch.Generator().manual_seed(6)).centers, results[0].centers
    )
    assert torch.equal(
        k_means(x, 30).centers, k_means(x, 30, generator=torch.Generator().manual_seed(0)).centers
    )


def test_random_generators_and_what_is_given_are_left_as_they_were():
    x, weights = clustered(200, 3, 4), torch.rand(200)
    copies = x.clone(), weights.clone()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    k_means(x, 9, weights=weights)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(x, copies[0])
    assert torch.equal(weights, copies[1])


def test_points_that_are_not_finite_or_without_a_weight_are_set_aside():
    x = clustered(60, 3, 4)
    x[5, 1], x[9, 0], x[30, 2] = NAN, INF, -INF
    weights = torch.ones(60)
    weights[40] = NAN
    found = k_means(x, 4, weights=weights)
    aside = [5, 9, 30, 40]
    assert (found.labels == -1).nonzero()[:, 0].tolist() == aside
    kept = [i for i in range(60) if i not in aside]
    same = k_means(x[kept], 4, weights=weights[kept])
    assert torch.equal(found.labels[kept], same.labels)
    assert torch.equal(found.centers, same.centers)
    with pytest.raises(
        prunefuse.errors.TooFewRowsError, match="k is 57, but only 56 of 60 points are finite and have"
    ) as caught:
        k_means(x, 57, weights=weights)
    assert caught.value.selectable == 56


def test_a_weight_counts_as_so_many_points():
    x = torch.randint(-5, 6, (40, 2), generator=torch.Generator().manual_seed(1)).double()
    weights = torch.randint(0, 4, (40,), generator=torch.Generator().manual_seed(2))
    start = x[:5] + 0.1
    found = k_means(x, 5, weights=weights.double(), start=start, tolerance=0)
    repeated = k_means(x.repeat_interleave(weights, 0), 5, start=start, tolerance=0)
    torch.testing.assert_close(found.centers, repeated.centers)
    assert found.objective == pytest.approx(repeated.objective)


def test_fewer_different_points_than_clusters():
    x = torch.tensor([[1.0], [1.0], [4.0], [4.0], [4.0]])
    found = k_means(x, 4)
    assert found.objective == 0
    assert found.centers.isfinite().all()
    assert k_means(torch.zeros(6, 2), 3).objective == 0


def test_a_center_without_points_takes_the_farthest_point():
    x = torch.tensor([[0.0], [1.0], [2.0], [30.0]])
    found = k_means(x, 2, start=torch.tensor([[1.0], [-500.0]]), tolerance=0)
    assert sorted(found.centers[:, 0].tolist()) == [1, 30]


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_points_of_any_magnitude_and_far_from_the_origin(scale, offset):
    """Squares leave float32's range; far from the origin a product alone would cancel."""
    x = (clustered(300, 4, 3, spread=0.1) + offset).float()
    labels = k_means(x, 3, start=x[:3]).labels
    scaled = k_means(x * scale, 3, start=x[:3] * scale).labels
    assert torch.equal(labels, scaled)
    assert_clusters(x, k_means(x, 3, start=x[:3]))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: k_means(x, 0), ValueError, "k must be at least 1, got 0"),
        (lambda x: k_means(x, 2.0), TypeError, "k must be an integer"),
        (lambda x: k_means(x, 11), ValueError, "k is 11, but only 10 of 10 points are finite"),
        (lambda x: k_means(x[0], 1), ValueError, r"points must have shape \(N, d\)"),
        (lambda x: k_means(x[:, :0], 1), ValueError, r"points must have shape \(N, d\), d at least 1"),
        (lambda x: k_means(x.int(), 1), TypeError, "points must be float16"),
        (lambda x: k_means(x.tolist(), 1), TypeError, "points must be a torch tensor"),
        (
            lambda x: k_means(np.ma.masked_array(x.numpy(), x.numpy() > 0), 1),
            TypeError,
            "without masked values",
        ),
        (lambda x: k_means(x[:0], 1), ValueError, "k is 1, but only 0 of 0"),
        (lambda x: k_means(x, 2, generator=3), TypeError, "generator must be a torch.Generator, got int"),
        (lambda x: k_means(x, 2, weights=x), ValueError, r"weights must have shape \(10,\)"),
        (
            lambda x: k_means(x, 2, weights=-torch.ones(10)),
            ValueError,
            "weights must be finite and at least 0, got -1.0",
        ),
        (
            lambda x: k_means(x, 2, weights=torch.full((10,), INF)),
            ValueError,
            "weights must be finite and at least 0, got inf",
        ),
        (lambda x: k_means(x, 2, start=x), ValueError, r"start must have shape \(2, 3\), got \(10, 3\)"),
        (
            lambda x: k_means(x, 2, start=x[:2].double()),
            ValueError,
            "start must have the dtype and device of points",
        ),
        (lambda x: k_means(x, 2, start=x[:2] / 0), ValueError, "start must be finite"),
        (lambda x: k_means(x, 2, iterations=0), ValueError, "iterations must be at least 1"),
        (lambda x: k_means(x, 2, tolerance=-1), ValueError, "tolerance must be a finite number"),
        (lambda x: k_means(x, 2, tolerance=NAN), ValueError, "tolerance must be a finite number"),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.randn(10, 3))


def test_waits_once_and_once_in_each_iteration(count_waits):
    x = torch.randint(-9, 10, (80, 3), generator=torch.Generator().manual_seed(1)).float()
    weights = torch.randint(1, 3, (80,), generator=torch.Generator().manual_seed(1)).float()

    def run(points, w):
        found = k_means(points, 4, weights=w)
        return found.centers, found.labels, found.iterations

    (centers, labels, iterations), waits = count_waits(run, x, weights)
    expected = run(x, weights)
    assert waits == 1 + iterations
    assert torch.equal(labels, expected[1])
    torch.testing.assert_close(centers, expected[0])
