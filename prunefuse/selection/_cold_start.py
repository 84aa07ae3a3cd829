"""Batches by features alone, for when nothing is labeled yet: TypiClust and ProbCover."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import cycle
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prunefuse import ops
from prunefuse._options import positive
from prunefuse.errors import TooFewRowsError
from prunefuse.extrapolation._neighbors import Finder, _input_roundoff
from prunefuse.ops.arrays import like, require_count, require_fraction, require_number
from prunefuse.ops.transfer import row_extents, rows_where, upload
from prunefuse.selection._k_center import k_center_on_host
from prunefuse.selection._k_means import k_means
from prunefuse.selection._rows import NamedRows, floating_rows, on_host

# Clusters of at most so many rows are picked from last, as in the authors' code.
_SMALL = 5
# Rows of a tile of distances, and its columns: on the CPU a tile stays in a cache.
_ROWS, _COLUMNS_CPU, _COLUMNS_GPU = 255, 1024, 1 << 16
# Pairs whose distances are computed again at a time, in values of float64.
_PAIR_VALUES = 1 << 22


def typiclust(
    features: Any,
    b: int,
    labeled: Any = None,
    *,
    generator: torch.Generator | None = None,
    exclude: Any = None,
    max_clusters: int = 500,
    neighbors: int = 20,
) -> Any:
    """Indices of b rows in pick order: the most typical row of each of the largest clusters without a label (TypiClust).

    >>> features = torch.tensor([[0.0], [0.1], [0.3], [5.0], [5.1], [9.0]])
    >>> prunefuse.selection.typiclust(features, 2, labeled=[3]).tolist()
    [0, 5]

    All rows are clustered by `k_means` into as many clusters as there will be labels. So some clusters are without one, and
    the picks are from the largest of these. A row is the more typical, the nearer its neighbors in the cluster are on
    average. Where there are more picks than clusters, those with the fewest labels have another turn. Clusters of at most
    five rows come last. What is not the paper's is in docs/paper.md.

    On a GPU it waits for the device several times, for each pick among them.

    Args:
        features: (N, d) floating, as a tensor, a NumPy array or anything with DLPack: of a network trained without labels,
            at best. Rows with a value that is not finite are never picked.
        b: How many rows to pick.
        labeled: Row indices that are labeled already, as any integer sequence or array, or a mask of the rows.
        generator: Draws where the clustering starts, on the CPU. None is one of seed 0.
        exclude: Row indices or a mask, as labeled: left out altogether.
        max_clusters: How many clusters at most.
        neighbors: How many neighbors say how typical a row is; of a small cluster, half of its rows.

    Returns:
        Row indices (b,) int64 in pick order.

    Raises:
        TypeError: features is not a floating array, or an argument is not of its type.
        ValueError: features is not of rank 2, an index is out of range, or a number is not positive.
        TooFewRowsError: Fewer than b rows can be picked; the message says how many.

    References:
        Hacohen, Dekel and Weinshall 2022, *Active Learning on a Budget: Opposite Strategies Suit High and Low Budgets*.
    """
    max_clusters = require_count("max_clusters", max_clusters, 1)
    neighbors = require_count("neighbors", neighbors, 1)
    space = _space(features, b, labeled, exclude)
    return like(features, space.rows[_typical(space, on_host(generator), max_clusters, neighbors)])


def probcover(
    features: Any,
    b: int,
    labeled: Any = None,
    *,
    delta: float | None = None,
    classes: int | None = None,
    purity: float = 0.95,
    generator: torch.Generator | None = None,
    exclude: Any = None,
) -> Any:
    """Indices of b rows in pick order, each the one whose ball covers the most rows that no ball covers yet (ProbCover).

    >>> features = torch.tensor([[0.0], [1.0], [2.0], [7.0], [8.0], [20.0]])
    >>> prunefuse.selection.probcover(features, 3, delta=1.0).tolist()
    [1, 3, 5]

    A ball holds all rows within ``delta``, labeled rows have one, too. Where every row is covered, the picks that are left
    are those of `k_center_greedy`.

    Without ``delta`` it is the largest at which a part ``purity`` of all balls is pure. `k_means` into ``classes`` clusters
    stands in for labels. A ball is pure where all its rows are of one cluster. That is a matter of each row's
    nearest row of another cluster, which is found exactly. Where all rows are of one, every radius is pure.

    A distance is by a matrix product, and from differences in float64 where the product cannot tell. Memory is O(N) and
    tiles of some megabytes, as no graph of neighbors is kept. Time is that of two matrix products of all rows. On a GPU it
    waits for the device in every tile.

    Args:
        features: (N, d) floating, as a tensor, a NumPy array or anything with DLPack: of a network trained without labels,
            at best. Rows with a value that is not finite are never picked.
        b: How many rows to pick.
        labeled: Row indices that are labeled already, as any integer sequence or array, or a mask of the rows.
        delta: The radius of a ball, positive.
        classes: How many classes there are, at least 2; needed without delta.
        purity: The part of pure balls, in (0, 1).
        generator: Draws where the clustering starts, on the CPU. None is one of seed 0.
        exclude: Row indices or a mask, as labeled: left out altogether.

    Returns:
        Row indices (b,) int64 in pick order; ties go to the lower index.

    Raises:
        TypeError: features is not a floating array, or an argument is not of its type.
        ValueError: features is not of rank 2, an index is out of range, or a number has no meaning.
        TooFewRowsError: Fewer than b rows can be picked; the message says how many.

    References:
        Yehuda, Dekel, Hacohen and Weinshall 2022, *Active Learning Through a Covering Lens*.
    """
    if delta is not None:
        delta = require_number("delta", delta)
        positive()("delta", delta)
    elif classes is None:
        raise ValueError("classes must be given where delta is not")
    if classes is not None:
        classes = require_count("classes", classes, 2)
    purity = require_fraction("purity", purity)
    generator = on_host(generator)
    space = _space(features, b, labeled, exclude)
    if space.b == 0:
        return like(features, space.rows[:0])
    if delta is None:
        assert classes is not None
        delta = _pure_radius(space, classes, purity, generator)
    return like(features, space.rows[_covering(space, delta)])


class _Space(NamedTuple):
    """Rows that have a place, of which some are labeled."""

    x: Tensor
    rows: Tensor  # of the features
    labeled: Tensor  # of x, a mask
    largest: float  # magnitude of a value
    b: int


def _space(features: Any, b: int, labeled: Any, exclude: Any) -> _Space:
    """The rows that are finite and not excluded; ValueError where fewer than b of these are not labeled. Waits once."""
    x = floating_rows("features", features)
    b, count = require_count("b", b), len(x)
    if b > count:
        raise TooFewRowsError(f"b must be at most the number of rows, {count}, got {b}", count, count)
    known = NamedRows("labeled", labeled, count, x.device, "features")
    excluded = NamedRows("exclude", exclude, count, x.device, "features")
    least, most = row_extents(x)
    kept = (least.isfinite() & most.isfinite()).index_fill_(0, excluded.valid, False)
    is_known = torch.zeros_like(kept).index_fill_(0, known.valid, True)
    magnitudes = torch.maximum(most, -least).where(kept, 0)
    told = (
        *known.extent(),
        *excluded.extent(),
        kept.sum(),
        (kept & ~is_known).sum(),
        magnitudes.amax() if count else kept.sum(),
    )
    low, high, low_excluded, high_excluded, usable, selectable, largest = torch.stack(
        [number.double() for number in told]
    ).tolist()
    known.require(low, high)
    excluded.require(low_excluded, high_excluded)
    if b > selectable:
        others = "labeled, excluded or not finite" if len(excluded) else "labeled or not finite"
        said = f"b is {b}, but only {int(selectable)} of {count} rows can be picked (the others are {others})"
        raise TooFewRowsError(said, int(selectable), count)
    rows = rows_where(kept, int(usable))
    # A power of two that keeps squares in range; what is picked does not depend on it.
    return _Space(x if usable == count else x[rows], rows, is_known[rows], largest, b)


def _typical(space: _Space, generator: torch.Generator, max_clusters: int, neighbors: int) -> Tensor:
    """The picks of `typiclust`."""
    x, labeled, b = space.x, space.labeled.cpu(), space.b
    if b == 0:
        return space.rows[:0]
    k = min(int(labeled.sum()) + b, max_clusters, len(x))
    clusters = k_means(x, k, generator=generator).labels.cpu()
    sizes, known = (torch.bincount(part, minlength=k).tolist() for part in (clusters, clusters[labeled]))
    order = sorted(range(k), key=lambda c: (sizes[c] <= _SMALL, known[c], -sizes[c], c))
    grouped = clusters.masked_fill(labeled, k).sort(stable=True).indices
    left = [size - labels for size, labels in zip(sizes, known, strict=True)]
    members = list(grouped[: sum(left)].split(left))
    picks: list[int] = []
    for cluster in cycle(order):
        if len(picks) == b:
            break
        if len(members[cluster]):
            at = _most_typical(x, members[cluster], neighbors, space.largest)
            picks.append(int(members[cluster][at]))
            members[cluster] = torch.cat((members[cluster][:at], members[cluster][at + 1 :]))
    return upload(torch.tensor(picks), x.device)


def _most_typical(x: Tensor, members: Tensor, neighbors: int, largest: float) -> int:
    """The place of the member whose neighbors among the members are nearest on average, of equals the lowest."""
    if len(members) <= 2:
        return 0
    own = x[upload(members, x.device)]
    # A row finds itself, at distance 0.
    k = min(neighbors, len(members) // 2) + 1
    distances, _ = Finder(own, "euclidean", None, largest).find(own, k, largest)
    return int(ops.top_b(-distances.double().sum(1), 1)[0])


def _pure_radius(space: _Space, classes: int, purity: float, generator: torch.Generator) -> float:
    """The largest radius at which a part ``purity`` of all balls holds rows of one cluster only."""
    x, largest = space.x, space.largest
    clusters = k_means(x, min(classes, len(x)), generator=generator).labels
    sizes = torch.bincount(clusters, minlength=classes).tolist()
    if max(sizes) == len(x):
        return math.inf
    away = x.new_empty(len(x))
    for cluster, size in enumerate(sizes):
        if not size:
            continue
        inside = clusters == cluster
        mine, others = rows_where(inside, size), rows_where(~inside, len(x) - size)
        distances, _ = Finder(x[others], "euclidean", None, largest).find(x[mine], 1, largest)
        away[mine] = distances[:, 0]
    # So many balls may hold a row of another cluster; one more is too many, so it stays just below.
    impure = min(math.floor(round((1 - purity) * len(x), 9)), len(x) - 1)
    bound = away.sort().values[impure]
    return float(torch.nextafter(bound, torch.zeros_like(bound)))


def _covering(space: _Space, delta: float) -> Tensor:
    """The picks of `probcover`, b of them at least 1."""
    balls = _Balls(space.x, delta, space.largest)
    covered = balls.counts(rows_where(space.labeled, int(space.labeled.sum()))) > 0
    # How many uncovered rows each row's ball holds; a row is covered once, and only then its neighbors lose one.
    gains = balls.counts((~covered).nonzero()[:, 0])
    place = torch.arange(len(gains), device=gains.device)
    gains.masked_fill_(space.labeled, -1)
    picks: list[int] = []
    while len(picks) < space.b:
        # Of equals the lowest row.
        pick = int((gains * len(gains) - place).argmax())
        if int(gains[pick]) <= 0:
            break
        picks.append(pick)
        new = (balls.counts(place[pick : pick + 1]) > 0) & ~covered
        covered |= new
        gains -= balls.counts(new.nonzero()[:, 0])
        gains[pick] = -len(gains)
    if len(picks) < space.b:
        known = torch.cat((space.labeled.nonzero()[:, 0], place[picks]))
        picks += k_center_on_host(space.x, space.b - len(picks), known)[0].tolist()
    return upload(torch.tensor(picks), space.x.device)


class _Balls:
    """Which rows lie within ``delta`` of which, a tile of pairs at a time."""

    def __init__(self, x: Tensor, delta: float, largest: float) -> None:
        # A power of two, so that distances stay exact and squares in range.
        exponent = -math.frexp(largest)[1] if largest and not 2.0**-30 < largest < 2.0**30 else 0
        limit = 120 if x.dtype == torch.float32 else 1000
        scale = 2.0 ** max(-limit, min(limit, exponent))
        self._x, self._delta = x * scale if scale != 1 else x, delta * scale
        self._about = self._x - self._x.mean(0)
        self._norms = self._about.square().sum(1)
        # The product may be wrong by so much of (|x| + |y|)^2: by its sum, the norms, and the rounding of its inputs.
        unit = torch.finfo(x.dtype).eps
        rounding = _input_roundoff(x)
        if x.is_cuda and x.dtype == torch.float32:
            # Whatever torch's settings say, the environment may let a product round to TF32.
            rounding = max(rounding, 2.0**-11)
        self._slack = (x.shape[1] + 32) * unit + 2.02 * rounding

    def counts(self, rows: Tensor) -> Tensor:
        """(n,) int64: in how many balls of the rows it is."""
        found = torch.zeros(len(self._x), dtype=torch.int64, device=self._x.device)
        for begin, inside in self._tiles(rows):
            # A tile has no more rows than a byte can count.
            found[begin : begin + inside.shape[1]] += inside.view(torch.uint8).sum(0, dtype=torch.uint8)
        return found

    def _tiles(self, rows: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The first column, and which pairs of the rows and the columns from there on are within delta."""
        columns = _COLUMNS_CPU if self._x.device.type == "cpu" else _COLUMNS_GPU
        for some in rows.split(_ROWS):
            mine, norms = self._about[some], self._norms[some]
            for begin in range(0, len(self._x), columns):
                others = self._about[begin : begin + columns]
                of_others = self._norms[begin : begin + columns]
                keys = torch.addmm(
                    of_others, mine, others.t(), alpha=-2
                )  # squared distances less the norms of `mine`
                slack = self._slack * (norms.sqrt() + of_others.max().sqrt()).square()
                bar = self._delta * self._delta - norms
                inside = keys <= (bar - slack)[:, None]
                doubtful = (keys <= (bar + slack)[:, None]) & ~inside
                if int(doubtful.count_nonzero()):
                    i, j = doubtful.nonzero(as_tuple=True)
                    inside[i, j] = self._exactly(some[i], j + begin)
                yield begin, inside

    def _exactly(self, i: Tensor, j: Tensor) -> Tensor:
        """Whether pairs of rows are within delta, from differences in float64."""
        step = max(1, _PAIR_VALUES // self._x.shape[1])
        parts = []
        for a, b in zip(i.split(step), j.split(step), strict=True):
            differences = self._x[a].double() - self._x[b].double()
            parts.append(torch.linalg.vector_norm(differences, dim=1) <= self._delta)
        return torch.cat(parts)
