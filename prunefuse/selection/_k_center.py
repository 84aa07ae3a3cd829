"""Greedy k-center: a batch that covers the pool (the core-set strategy)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prunefuse import ops
from prunefuse._options import not_negative
from prunefuse.errors import TooFewRowsError
from prunefuse.ops.arrays import as_tensor, like, require_count, require_floating, require_number
from prunefuse.ops.transfer import row_extents, rows_where
from prunefuse.selection._rows import NamedRows, weights_of


def k_center_greedy(
    features: Any,
    b: int,
    labeled: Any = None,
    start: int | None = None,
    *,
    weights: Any = None,
    min_distance: float = 0.0,
    exclude: Any = None,
) -> Any:
    """Indices of b rows in pick order, each the one farthest from everything labeled and picked before it.

    >>> features = torch.tensor([[0.0], [1.0], [5.0], [9.0]])
    >>> prunefuse.k_center_greedy(features, 2, labeled=[0]).tolist()
    [3, 2]

    Distances are Euclidean. This is Gonzalez' 2-approximation of k-center, as Sener and Savarese use it for active
    learning.

    On a GPU it waits for the device once, before it picks, to check the values. What it returns is not waited for, but
    with ``min_distance``, to see whether there were b.

    Args:
        features: (N, d) floating, as a tensor, a NumPy array or anything with DLPack. Rows with a value that is not finite
            are never picked. 16-bit features are widened to float32 once, since every pick reads them all.
        b: How many rows to pick.
        labeled: Row indices chosen already, as any integer sequence or array, or a mask of the rows. They act as centers
            and are never picked. A mask on a GPU is waited for.
        start: The first pick. By default the row farthest from the labeled ones. Where nothing is labeled, it is the row
            nearest to the mean of the features, which is deterministic and no outlier. With weights it is that of the
            rows of largest weight.
        weights: (N,) floating, finite and at least 0: what distances of a row are multiplied by. So of two rows equally
            far, the one of larger weight comes first, such as the more uncertain. Rows whose weight is NaN are never
            picked. Weights of labeled rows are not looked at.
        min_distance: Rows nearer than this to a labeled or picked one are not picked, whatever their weight.
        exclude: Row indices or a mask of the rows, as labeled: never picked, and no centers.

    Returns:
        Row indices (b,) int64 in pick order; ties go to the lower index. Extra memory is O(N).

    Raises:
        TypeError: features or weights is not a floating array, or labeled or exclude is not of integers.
        ValueError: features is not of rank 2, an index or a weight is out of range, or min_distance is negative.
        TooFewRowsError: Fewer than b rows can be picked; the message says how many.

    References:
        Gonzalez 1985, *Clustering to Minimize the Maximum Intercluster Distance*. Sener and Savarese 2018, *Active Learning
        for Convolutional Neural Networks: A Core-Set Approach*.
    """
    search = _Search(features, b, labeled, start, weights, min_distance, exclude)
    picks = search.pick(search.plan(search.facts.tolist()))
    search.require_all(picks)
    return like(features, picks)


def k_center_on_host(
    features: Tensor, b: int, labeled: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, int]:
    """`k_center_greedy` with the picks on the CPU, and how many rows are neither labeled nor finite.

    On a GPU it waits for the device once, at the end, for both: it picks as if nothing were unusual about the values, and
    again only where something is: values that must be scaled, no finite row among the labeled ones, or none labeled and
    some not finite.
    """
    search = _Search(features, b, labeled, None, weights)
    if not search.x.is_cuda:
        facts = search.facts.tolist()
        picks = search.pick(search.plan(facts))
    else:
        usual = _Plan(0, 0 if len(search.known) else len(search.x), 0, None if weights is None else 1.0)
        guessed = search.pick(usual)
        both = torch.cat((search.facts, guessed.double())).cpu()
        facts, picks = both[: len(search.facts)].tolist(), both[len(search.facts) :].long()
        plan = search.plan(facts)
        if plan != usual:
            picks = search.pick(plan).cpu()
    return picks, int(_Facts(*facts).not_finite)


class _Facts(NamedTuple):
    """What the host has to know of the values, as numbers of a float64 tensor."""

    lowest: float  # of labeled
    highest: float
    lowest_excluded: float
    highest_excluded: float
    start_labeled: float  # whether it is
    start_excluded: float
    start_finite: float
    start_weighted: float  # whether its weight is not NaN
    start_nearest: float  # the squared distance to the nearest labeled row
    selectable: float  # rows that are finite, with a weight, and neither labeled nor excluded
    not_finite: float  # rows that are not finite or without a weight, and neither labeled nor excluded
    centers: float  # finite rows among the labeled ones
    largest: float  # magnitude of a value in a finite row
    lowest_weight: float  # of rows that are selectable
    largest_weight: float


class _Plan(NamedTuple):
    """How to pick, which depends on the values."""

    exponent: int  # of the power of two that features are multiplied by
    mean_of: int  # rows whose mean the first pick is nearest to; 0: it is the start, or the farthest from the labeled ones
    weight_exponent: int = 0  # of the power of two that weights are multiplied by
    largest_weight: float | None = None


class _Search:
    """Arguments of `k_center_greedy`, checked as far as that takes no look at values on a device."""

    def __init__(
        self,
        features: Any,
        b: int,
        labeled: Any,
        start: int | None,
        weights: Any = None,
        min_distance: float = 0.0,
        exclude: Any = None,
    ) -> None:
        x = as_tensor("features", features)
        require_floating("features", x)
        self.b = require_count("b", b)
        if x.dtype in (torch.float16, torch.bfloat16):
            x = x.float()
        if x.dim() != 2:
            raise ValueError(f"features must have shape (N, d), got {tuple(x.shape)}")
        self.x, rows = x, len(x)
        self._labeled = NamedRows("labeled", labeled, rows, x.device, "features")
        self._excluded = NamedRows("exclude", exclude, rows, x.device, "features")
        self.known = self._labeled.valid
        if start is not None:
            start = require_count("start", start)
            if start >= rows:
                raise ValueError(f"start must be a row of features (0 to {rows - 1}), got {start}")
        self.least = require_number("min_distance", min_distance)
        not_negative()("min_distance", self.least)
        if self.b > rows:
            raise TooFewRowsError(f"b must be at most the number of rows, {rows}, got {self.b}", rows, rows)
        self.start = start
        # Per row, so that extra memory stays O(N); NaN and infinities show in one or the other.
        least, most = row_extents(x)
        finite = most.isfinite() & least.isfinite()
        self._weights = weights_of(weights, rows, "features", x.device)
        weighted = None if self._weights is None else ~self._weights.isnan()
        usable = finite if weighted is None else finite & weighted
        asked = torch.ones_like(finite).index_fill_(0, self.known, False)
        if len(self._excluded):
            asked.index_fill_(0, self._excluded.valid, False)
        self._available = usable & asked
        magnitudes = torch.maximum(most, -least).where(finite, 0)
        nothing = x.new_zeros((), dtype=torch.float64)
        of_start = [nothing, nothing, nothing, nothing + 1]
        if start is not None:
            of_start = [
                self.known.eq(start).any(),
                self._excluded.valid.eq(start).any(),
                finite[start],
                nothing + 1 if weighted is None else weighted[start],
            ]
        of_weights = [nothing, nothing + 1]
        if self._weights is not None and rows:
            of_weights = [
                self._weights.where(self._available, torch.inf).min(),
                self._weights.where(self._available, 0).max(),
            ]
        facts = (  # in the order of _Facts
            *self._labeled.extent(),
            *self._excluded.extent(),
            *of_start,
            self._from_start(finite),
            self._available.sum(),
            (~usable & asked).sum(),
            finite[self.known].sum(),
            magnitudes.max() if rows else nothing,
            *of_weights,
        )
        self.facts = torch.stack([fact.double() for fact in facts])

    def _from_start(self, finite: Tensor) -> Tensor:
        """The distance from the start to the nearest labeled row, where that has to be known."""
        nothing = self.x.new_full((), torch.inf, dtype=torch.float64)
        if self.start is None or not self.least or not len(self._labeled):
            return nothing
        known = self.x[self.known].double() - self.x[self.start].double()
        distances: Tensor = torch.linalg.vector_norm(known, dim=1)
        return distances.where(finite[self.known], torch.inf).amin()

    def plan(self, numbers: list[float]) -> _Plan:
        """How to pick where `facts` are these; ValueError where they forbid it."""
        facts = _Facts(*numbers)
        self._labeled.require(facts.lowest, facts.highest)
        self._excluded.require(facts.lowest_excluded, facts.highest_excluded)
        if facts.lowest_weight < 0 or math.isinf(facts.largest_weight):
            got = facts.lowest_weight if facts.lowest_weight < 0 else facts.largest_weight
            raise ValueError(f"weights must be finite and at least 0, got {got}")
        if facts.start_labeled:
            raise ValueError(f"start is labeled already: {self.start}")
        if facts.start_excluded:
            raise ValueError(f"start is excluded: {self.start}")
        if self.start is not None and not facts.start_finite:
            raise ValueError(f"start must be a row of finite features, got row {self.start}")
        if not facts.start_weighted:
            raise ValueError(f"start must be a row with a weight, got row {self.start}, of weight NaN")
        if facts.start_nearest < self.least:
            raise ValueError(
                f"start must be at least min_distance, {self.least}, from every labeled row, got row {self.start}, at "
                f"{facts.start_nearest:.6g}"
            )
        self._require(int(facts.selectable))
        alone = self.start is None and not facts.centers
        largest = None if self._weights is None else facts.largest_weight
        return _Plan(
            _exponent(facts.largest, *_RANGES[self.x.dtype]),
            int(facts.selectable) if alone else 0,
            0 if largest is None else _exponent(largest, *_OF_WEIGHTS),
            largest,
        )

    def pick(self, plan: _Plan) -> Tensor:
        """(b,) on the features' device; with a least distance -1 at the end where fewer rows can be picked."""
        if self.b == 0:
            return self.known[:0]
        x = self.x * 2.0**plan.exponent if plan.exponent else self.x
        factors, least = self._factors(plan.weight_exponent), self.least * 2.0**plan.exponent
        least = least * least
        if not plan.mean_of:
            start = -1 if self.start is None else self.start
            return ops.k_center_greedy(x, self.known, self.b, start, factors, least)
        first = _nearest_to_mean(x, self._available, plan.mean_of, self._heaviest(plan.largest_weight))
        # A center like any other, so that its number need not be known here.
        known = torch.cat((self.known, first))
        if factors is not None:
            factors.index_fill_(0, first, 1)
        return torch.cat((first, ops.k_center_greedy(x, known, self.b - 1, -1, factors, least)))

    def require_all(self, picks: Tensor) -> None:
        """TooFewRowsError where a least distance left fewer than b; waits for the device."""
        if self.least and self.b:
            self._require(int((picks >= 0).sum()), f", or nearer than {self.least} to a picked one")

    def _require(self, selectable: int, too_near: str = "") -> None:
        if self.b <= selectable:
            return
        why = [
            "labeled",
            *["excluded"] * (len(self._excluded) > 0),
            "not finite" if self._weights is None else "not finite in features or weight",
        ]
        others = f"{', '.join(why[:-1])} or {why[-1]}{too_near}"
        said = f"b is {self.b}, but only {selectable} of {len(self.x)} rows can be picked (the others are {others})"
        raise TooFewRowsError(said, selectable, len(self.x))

    def _factors(self, exponent: int) -> Tensor | None:
        """What the operator multiplies squared distances by: NaN for rows that are not to be picked."""
        if self._weights is None and not len(self._excluded):
            return None
        if self._weights is None:
            factors = self.x.new_ones(len(self.x))
        else:
            factors = (self._weights.double() * 2.0**exponent).square().to(self.x.dtype)
        # Labeled rows are centers whatever their weights. Those of other rows are in range, by `plan`.
        return factors.index_fill_(0, self._excluded.valid, torch.nan).index_fill_(0, self.known, 1)

    def _heaviest(self, largest: float | None) -> Tensor:
        """The rows that may be picked first."""
        if self._weights is None or largest is None:
            return self._available
        return self._available & (self._weights >= largest)


# How far from 1 magnitudes may be so that squares stay in range, and the largest exponent of a factor that can be held.
_RANGES = {torch.float32: (2.0**30, 120), torch.float64: (2.0**300, 1000)}
_OF_WEIGHTS = (2.0**30, 1000)  # scaled in float64, squared in either


def _exponent(largest: float, room: float, limit: int) -> int:
    """Of the power of two that brings squares into range; 0 where they are in it."""
    if largest == 0 or 1 / room < largest < room:
        return 0
    return max(-limit, min(limit, -math.frexp(largest)[1]))


def _nearest_to_mean(x: Tensor, available: Tensor, count: int, among: Tensor) -> Tensor:
    """Of the rows ``among``, that (1,) nearest to the mean of the ``count`` available ones. O(N) memory where these are all."""
    mean = x.mean(0) if count == len(x) else x[rows_where(available, count)].mean(0)
    # Without the matrix product, whose cached-norm form cancels for features far from the origin.
    distances = torch.cdist(x, mean[None], compute_mode="donot_use_mm_for_euclid_dist").squeeze(1)
    return torch.where(among, distances, torch.inf).argmin(0, keepdim=True)
