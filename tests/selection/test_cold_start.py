"""TypiClust and ProbCover against their definitions, spelled out on all distances in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import prunefuse
from prunefuse.selection import k_means, probcover, typiclust
from prunefuse.selection._cold_start import _pure_radius, _space

NAN, INF = float("nan"), float("inf")
BOTH = pytest.mark.parametrize(
    "pick",
    [typiclust, lambda *given, **more: probcover(*given, **{"delta": 1.5, **more})],
    ids=["typiclust", "probcover"],
)


def clustered(rows, width, k, seed=0, spread=0.3):
    generator = torch.Generator().manual_seed(seed)
    centers = 3 * torch.randn(k, width, generator=generator)
    return centers[torch.randint(k, (rows,), generator=generator)] + spread * torch.randn(
        rows, width, generator=generator
    )


def distances(x):
    return (x.double()[:, None] - x.double()[None]).square().sum(2).sqrt()


def greedy_cover(x, b, labeled, delta):
    """Picks by the definition, as long as there is something to cover."""
    within = distances(x) <= delta
    covered = within[list(labeled)].any(0) if labeled else torch.zeros(len(x), dtype=torch.bool)
    picks = []
    while len(picks) < b:
        gains = (within & ~covered).sum(1)
        gains[[*labeled, *picks]] = 0
        if int(gains.max()) == 0:
            break
        picks.append(min(i for i in range(len(x)) if gains[i] == gains.max()))
        covered |= within[picks[-1]]
    return picks


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40), st.integers(1, 3), st.sampled_from([0.5, 1.0, 2.0, 5.0, 13.0]), st.data())
def test_probcover_is_the_greedy_cover(rows, width, delta, data):
    """Whole numbers: many pairs lie exactly at delta, and many rows are equally good."""
    values = data.draw(st.lists(st.integers(-9, 9), min_size=rows * width, max_size=rows * width))
    x = torch.tensor(values, dtype=torch.float32).reshape(rows, width)
    labeled = data.draw(st.lists(st.integers(0, rows - 1), max_size=rows, unique=True))
    b = data.draw(st.integers(0, rows - len(labeled)))
    picks = probcover(x, b, labeled, delta=delta).tolist()
    expected = greedy_cover(x, b, labeled, delta)
    assert picks[: len(expected)] == expected
    assert len(set(picks) | set(labeled)) == b + len(labeled)
    if expected and len(expected) < b:  # what is left is k-center's
        rest = prunefuse.k_center_greedy(x, b - len(expected), [*labeled, *expected])
        assert picks[len(expected) :] == rest.tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("offset", "scale"), [(0, 1.0), (1000, 1.0), (0, 2.0**-60), (0, 2.0**70)])
def test_probcover_on_random_rows(device, dtype, offset, scale):
    """More rows than a tile, far from the origin, and of magnitudes whose squares leave float32."""
    if dtype in (torch.float16, torch.bfloat16) and (offset or scale != 1):
        return
    x = (clustered(1500, 5, 8, spread=1.0) + offset).to(dtype)
    expected = greedy_cover(x, 40, [3, 4], 1.5)
    picks = probcover((x * scale).to(device), 40, [3, 4], delta=1.5 * scale)
    assert picks.tolist()[: len(expected)] == expected
    assert len(expected) > 30


def test_the_radius_is_the_largest_of_the_purity():
    x = clustered(400, 3, 5, spread=1.0)
    for purity in (0.5, 0.9, 0.95, 0.999):
        radius = _pure_radius(_space(x, 1, None, None), 5, purity, torch.Generator().manual_seed(2))
        clusters = k_means(x, 5, generator=torch.Generator().manual_seed(2)).labels
        apart = clusters[:, None] != clusters[None]

        def share(delta, apart=apart):
            return float((~((distances(x) <= delta) & apart).any(1)).double().mean())

        assert share(radius) >= purity
        assert share(radius * (1 + 1e-6)) < purity
        picks = probcover(x, 20, classes=5, purity=purity, generator=torch.Generator().manual_seed(2))
        assert picks.tolist() == probcover(x, 20, delta=radius).tolist()


def test_typiclust_takes_one_of_each_of_the_largest_clusters_without_a_label():
    x = clustered(600, 4, 8, seed=1)
    labeled = [0, 50, 100]
    seed = torch.Generator().manual_seed(7)
    picks = typiclust(x, 5, labeled, generator=seed)
    clusters = k_means(x, 8, generator=torch.Generator().manual_seed(7)).labels
    assert len(set(clusters[picks].tolist())) == 5
    assert not set(clusters[picks].tolist()) & set(clusters[labeled].tolist())
    sizes = torch.bincount(clusters, minlength=8)
    free = [c for c in range(8) if c not in clusters[labeled].tolist()]
    assert sorted(sizes[clusters[picks]].tolist(), reverse=True) == sizes[clusters[picks]].tolist()
    assert sizes[clusters[picks]].tolist() == sorted(sizes[free].tolist(), reverse=True)[:5]
    # In its cluster, each is the row whose nearest neighbors are nearest on average.
    between = distances(x)
    for pick in picks.tolist():
        mine = (clusters == clusters[pick]).nonzero()[:, 0]
        mine = mine[[int(i) not in labeled for i in mine]]
        k = min(20, len(mine) // 2)
        near = between[mine][:, mine].sort(1).values[:, 1 : k + 1].mean(1)
        assert near[mine == pick] <= near.min() * (1 + 1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 6), st.data())
def test_typiclust_picks_from_clusters_in_turns(rows, width, max_clusters, data):
    """No cluster has a second pick before each of its size and labels has one."""
    values = data.draw(st.lists(st.integers(-9, 9), min_size=rows * width, max_size=rows * width))
    x = torch.tensor(values, dtype=torch.float64).reshape(rows, width)
    labeled = data.draw(st.lists(st.integers(0, rows - 1), max_size=rows - 1, unique=True))
    b = data.draw(st.integers(1, rows - len(labeled)))
    picks = typiclust(x, b, labeled, max_clusters=max_clusters).tolist()
    assert len(set(picks) | set(labeled)) == b + len(labeled)
    clusters = k_means(x, min(b + len(labeled), max_clusters, rows)).labels
    free = torch.bincount(clusters[[i for i in range(rows) if i not in labeled]], minlength=max_clusters)
    taken = torch.bincount(clusters[picks], minlength=max_clusters)
    turns = int(taken.max())
    assert bool((taken >= free.clamp(max=turns - 1)).all())


@BOTH
def test_laws_of_both(pick):
    x = clustered(200, 4, 6)
    x[10, 1], x[60, 0] = NAN, INF
    everything = pick(x, 195, [0, 1, 10], exclude=[5])
    assert sorted(everything.tolist()) == [i for i in range(200) if i not in (0, 1, 5, 10, 60)]
    with pytest.raises(
        prunefuse.errors.TooFewRowsError,
        match=r"b is 196, but only 195 of 200 rows can be picked \(the others are labeled, excluded or not finite\)",
    ) as caught:
        pick(x, 196, [0, 1, 10], exclude=[5])
    assert (caught.value.selectable, caught.value.rows) == (195, 200)
    assert pick(x, 0).tolist() == []
    kept = [i for i in range(200) if i not in (5, 10, 60)]
    fewer = pick(x[kept], 30, [0, 1])
    assert pick(x, 30, [0, 1], exclude=[5]).tolist() == [kept[i] for i in fewer.tolist()]
    mask = torch.zeros(200, dtype=torch.bool)
    mask[[0, 1]] = True
    assert (
        pick(x.numpy(), 30, mask, exclude=np.array([5])).tolist() == pick(x, 30, [0, 1], exclude=[5]).tolist()
    )
    assert isinstance(pick(x.numpy(), 3), np.ndarray)
    assert probcover(torch.zeros(9, 2), 9, classes=3).sort().values.tolist() == list(range(9))
    assert pick(torch.zeros(9, 2), 9).sort().values.tolist() == list(range(9))


@BOTH
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"b": 11}, ValueError, "b must be at most the number of rows, 10, got 11"),
        ({"b": -1}, ValueError, "b must be at least 0"),
        ({"b": "3"}, TypeError, "b must be an integer, got str"),
        ({"labeled": [10]}, ValueError, r"labeled must hold rows of features \(0 to 9\), got 10"),
        ({"labeled": [0.5]}, TypeError, "labeled must be a sequence of row"),
        ({"labeled": [True]}, ValueError, "labeled must be a mask of the 10 rows"),
        ({"exclude": [-1]}, ValueError, r"exclude must hold rows of features \(0 to 9\), got -1"),
        ({"features": torch.zeros(10)}, ValueError, r"features must have shape \(N, d\)"),
        ({"features": torch.zeros(10, 2).long()}, TypeError, "features must be float16"),
        ({"features": [[0.0]]}, TypeError, "features must be a torch tensor"),
        ({"generator": 5}, TypeError, "generator must be a torch.Generator"),
    ],
)
def test_what_both_refuse(pick, change, error, message):
    with pytest.raises(error, match=message):
        pick(**{"features": torch.randn(10, 3), "b": 3, **change})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({}, ValueError, "classes must be given where delta is not"),
        ({"delta": 0.0}, ValueError, "delta must be a positive number"),
        ({"delta": NAN}, ValueError, "delta must be a positive number"),
        ({"delta": "1"}, TypeError, "delta must be a number, got str"),
        ({"classes": 1}, ValueError, "classes must be at least 2, got 1"),
        ({"classes": 2, "purity": 1.0}, ValueError, r"purity must be in \(0, 1\)"),
    ],
)
def test_what_probcover_refuses(change, error, message):
    with pytest.raises(error, match=message):
        probcover(**{"features": torch.randn(10, 3), "b": 3, **change})


def test_what_typiclust_refuses():
    for name in ("max_clusters", "neighbors"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            typiclust(torch.randn(9, 2), 2, **{name: 0})


@BOTH
def test_the_same_on_a_device(count_waits, pick):
    x = torch.randint(-9, 10, (80, 3), generator=torch.Generator().manual_seed(1)).float()
    x[3, 1] = NAN
    picks, _ = count_waits(lambda rows, known: pick(rows, 12, known), x, torch.tensor([5, 6]))
    assert picks.tolist() == pick(x, 12, [5, 6]).tolist()
