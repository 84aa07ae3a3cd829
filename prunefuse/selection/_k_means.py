"""k-means: points in clusters about their means, by k-means++ and Lloyd's iterations on exact nearest neighbors."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prunefuse import ops
from prunefuse._options import not_negative
from prunefuse.errors import TooFewRowsError
from prunefuse.extrapolation._neighbors import Finder
from prunefuse.ops.arrays import like, require_count, require_number
from prunefuse.ops.transfer import row_extents, rows_where, upload
from prunefuse.selection._rows import floating_rows, on_host, weights_of

# Rows that are widened to float64 at a time.
_BLOCK = 1024


class Clusters(NamedTuple):
    """What `k_means` found; its fields are arrays of the points' kind and numbers.

    >>> prunefuse.selection.k_means(torch.tensor([[0.0], [1.0], [9.0]]), 2).objective
    0.5

    Attributes:
        centers: (k, d), float32 or float64 as the points.
        labels: (N,) int64, the nearest center of every point, of equals the lower; -1 for points that were set aside.
        objective: The sum of all points' squared distances to their centers, times their weights.
        iterations: How often all points were assigned.
    """

    centers: Any
    labels: Any
    objective: float
    iterations: int


def k_means(
    points: Any,
    k: int,
    *,
    generator: torch.Generator | None = None,
    weights: Any = None,
    start: Any = None,
    iterations: int = 100,
    tolerance: float = 1e-4,
) -> Clusters:
    """`Clusters` of points: k centers, each the mean of the points that are nearest to it.

    >>> points = torch.tensor([[0.0], [1.0], [9.0], [10.0]])
    >>> prunefuse.selection.k_means(points, 2).centers.sort(0).values.tolist()
    [[0.5], [9.5]]

    The start is drawn by k-means++. Each of Lloyd's iterations assigns all points, by the exact neighbors of
    `prunefuse.extrapolation.nearest_neighbors`, and moves the centers to their means, summed in float64. A center without a
    point moves to the point that is farthest from its own. So the objective never rises, and one seed gives one result.

    On a GPU it waits for the device once, and once in each iteration.

    Args:
        points: (N, d) floating, as a tensor, a NumPy array or anything with DLPack. Points with a value that is not finite
            are set aside. 16-bit points are widened to float32.
        k: How many clusters, 1 to the number of points. Where fewer points differ, some have no point.
        generator: Draws the start, on the CPU. None is one of seed 0.
        weights: (N,) floating, finite and at least 0: how much each point counts. Points whose weight is NaN are set
            aside.
        start: (k, d), centers to start from instead, of the dtype and device of the points.
        iterations: How often points are assigned at most. It ends before where no label changes.
        tolerance: It ends, too, where the objective falls by less than this part of itself.

    Raises:
        TypeError: points, weights or start is not a floating array, or an argument is not of its type.
        ValueError: Shapes do not go together, or a value is out of range.
        TooFewRowsError: Fewer than k points are finite and have a weight.

    References:
        Arthur and Vassilvitskii 2007, *k-means++: The Advantages of Careful Seeding*. Lloyd 1982, *Least Squares
        Quantization in PCM*.
    """
    x = floating_rows("points", points)
    k = require_count("k", k, 1)
    iterations = require_count("iterations", iterations, 1)
    not_negative()("tolerance", require_number("tolerance", tolerance))
    generator = on_host(generator)
    w = weights_of(weights, len(x), "points", x.device)
    first = None if start is None else _centers(start, k, x)
    usable, (count, largest, lowest, highest) = _facts(x, w, first)
    if lowest < 0 or math.isinf(highest):
        raise ValueError(f"weights must be finite and at least 0, got {lowest if lowest < 0 else highest}")
    if k > count:
        said = f"k is {k}, but only {count} of {len(x)} points are finite" + " and have a weight" * (
            w is not None
        )
        raise TooFewRowsError(said, count, len(x))
    rows = None if count == len(x) else rows_where(usable, count)
    if rows is not None:
        x, w = x[rows], None if w is None else w[rows]
    if first is None:
        first = _seeded(x, k, w, largest, generator)
    centers, labels, objective, passes = _lloyd(x, w, first, largest, iterations, tolerance)
    if rows is not None:
        labels = torch.full((len(usable),), -1, device=x.device).index_copy_(0, rows, labels)
    return Clusters(like(points, centers), like(points, labels), objective, passes)


def _centers(start: Any, k: int, x: Tensor) -> Tensor:
    """Centers as given, of the points' shape, dtype and device."""
    centers = floating_rows("start", start)
    if centers.shape != (k, x.shape[1]):
        raise ValueError(f"start must have shape {(k, x.shape[1])}, got {tuple(centers.shape)}")
    if (centers.dtype, centers.device) != (x.dtype, x.device):
        raise ValueError(
            f"start must have the dtype and device of points, {x.dtype} on {x.device}, got {centers.dtype} on "
            f"{centers.device}"
        )
    return centers


def _facts(
    x: Tensor, w: Tensor | None, start: Tensor | None
) -> tuple[Tensor, tuple[int, float, float, float]]:
    """Which points can be used; how many these are, the largest magnitude, the least and the largest weight."""
    least, most = row_extents(x)
    usable = least.isfinite() & most.isfinite()
    nothing = x.new_zeros((), dtype=torch.float64)
    weighed = [nothing, nothing]
    if w is not None:
        usable &= ~w.isnan()
        weighed = [w.where(usable, torch.inf).amin(), w.where(usable, 0).amax()] if len(w) else weighed
    magnitudes = torch.maximum(most, -least).where(usable, 0)
    largest = magnitudes.amax() if len(x) else nothing
    of_start = nothing if start is None else start.abs().amax()
    told = torch.stack([fact.double() for fact in (usable.sum(), largest, of_start, *weighed)])
    count, found, given, lowest, highest = told.tolist()
    if not math.isfinite(given):
        raise ValueError("start must be finite")
    return usable, (int(count), max(found, given), lowest, highest)


def _seeded(x: Tensor, k: int, w: Tensor | None, largest: float, generator: torch.Generator) -> Tensor:
    """Centers by k-means++."""
    draws = upload(torch.rand(k, dtype=torch.float64, generator=generator), x.device)
    each = x.new_ones(len(x), dtype=torch.float64) if w is None else w.double()
    ones = x.new_ones(len(x), 1)
    # A power of two, by which the largest magnitude is near 1: draws do not depend on it.
    exponent = max(-126, min(126, -math.frexp(largest)[1])) if largest else 0
    scaled = x if -30 < exponent < 30 else x * 2.0**exponent
    return x[ops.k_means_plus_plus(ones, scaled, draws, each)]


def _lloyd(
    x: Tensor, w: Tensor | None, centers: Tensor, largest: float, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, float, int]:
    """Centers, the label of each point by these, the objective, and how often points were assigned."""
    k, before, last = len(centers), None, math.inf
    for passes in range(1, iterations + 1):
        distances, nearest = Finder(centers, "euclidean", None, largest).find(x, 1, largest)
        labels = nearest[:, 0]
        costs = distances[:, 0].double().square()
        costs = costs if w is None else costs * w.double()
        counts = torch.zeros(k, dtype=torch.int64, device=x.device).index_add_(
            0, labels, torch.ones_like(labels)
        )
        same = costs.new_zeros(()) if before is None else labels.eq(before).all()
        told = torch.stack([costs.sum(), same.double(), counts.eq(0).sum().double()])
        objective, unchanged, empty = told.tolist()
        if unchanged or last - objective < tolerance * last or passes == iterations:
            break
        before, last = (_filled(labels, costs, counts, int(empty)) if empty else labels), objective
        centers = _means(x, w, before, centers)
    return centers, labels, objective, passes


def _filled(labels: Tensor, costs: Tensor, counts: Tensor, empty: int) -> Tensor:
    """Labels where centers without a point have those that cost most; as many as cost anything."""
    rows, cost = ops.top_b(costs, min(empty, len(costs)))
    rows = rows[: int((cost > 0).sum())]
    return labels.index_copy(0, rows, rows_where(counts == 0, empty)[: len(rows)])


def _means(x: Tensor, w: Tensor | None, labels: Tensor, centers: Tensor) -> Tensor:
    """The mean of each center's points; of one without points, or without weight, itself. Results do not depend on threads."""
    k, width = centers.shape
    sums, totals = (x.new_zeros(k, columns, dtype=torch.float64) for columns in (width, 1))
    for begin in range(0, len(x), _BLOCK):
        mine = labels[begin : begin + _BLOCK]
        part = x[begin : begin + _BLOCK].double()
        each = part.new_ones(len(part), 1) if w is None else w[begin : begin + _BLOCK, None].double()
        for to, values in ((sums, part if w is None else part * each), (totals, each)):
            if x.device.type == "cpu":
                to.index_add_(0, mine, values)
            else:  # in a fixed order, unlike index_add_ there
                to.index_put_((mine,), values, accumulate=True)
    return torch.where(totals > 0, (sums / totals).to(x.dtype), centers)
