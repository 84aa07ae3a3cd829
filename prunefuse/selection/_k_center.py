"""Greedy k-center: a batch that covers the pool (the core-set strategy)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prunefuse import ops
from prunefuse.errors import TooFewRowsError
from prunefuse.ops.arrays import as_tensor, like, require_count, require_floating
from prunefuse.ops.integers import as_integers, rows_of_mask
from prunefuse.ops.transfer import row_extents, rows_where, upload


def k_center_greedy(features: Any, b: int, labeled: Any = None, start: int | None = None) -> Any:
    """Indices of b rows in pick order, each the one farthest from everything labeled and picked before it.

    >>> features = torch.tensor([[0.0], [1.0], [5.0], [9.0]])
    >>> prunefuse.k_center_greedy(features, 2, labeled=[0]).tolist()
    [3, 2]

    Distances are Euclidean. This is Gonzalez' 2-approximation of k-center, as Sener and Savarese use it for active
    learning.

    On a GPU it waits for the device once, before it picks, to check the values. What it returns is not waited for.

    Args:
        features: (N, d) floating, as a tensor, a NumPy array or anything with DLPack. Rows with a value that is not finite
            are never picked. 16-bit features are widened to float32 once, since every pick reads them all.
        b: How many rows to pick.
        labeled: Row indices chosen already, as any integer sequence or array, or a mask of the rows. They act as centers
            and are never picked. A mask on a GPU is waited for.
        start: The first pick. By default the row farthest from the labeled ones. Where nothing is labeled, it is the row
            nearest to the mean of the features, which is deterministic and no outlier.

    Returns:
        Row indices (b,) int64 in pick order; ties go to the lower index. Extra memory is O(N).

    Raises:
        TypeError: features is not a floating array, or labeled is not of integers.
        ValueError: features is not of rank 2, fewer than b rows can be picked (the message says how many), or an index is
            out of range.

    References:
        Gonzalez 1985, *Clustering to Minimize the Maximum Intercluster Distance*. Sener and Savarese 2018, *Active Learning
        for
        Convolutional Neural Networks: A Core-Set Approach*.
    """
    search = _Search(features, b, labeled, start)
    return like(features, search.pick(search.plan(search.facts.tolist())))


def k_center_on_host(features: Tensor, b: int, labeled: Tensor) -> tuple[Tensor, int]:
    """`k_center_greedy` with the picks on the CPU, and how many rows are neither labeled nor finite.

    On a GPU it waits for the device once, at the end, for both: it picks as if nothing were unusual about the values, and
    again only where something is: values that must be scaled, no finite row among the labeled ones, or none labeled and
    some not finite.
    """
    search = _Search(features, b, labeled, None)
    if not search.x.is_cuda:
        facts = search.facts.tolist()
        picks = search.pick(search.plan(facts))
    else:
        usual = _Plan(0, 0 if len(search.known) else len(search.x))
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
    start_labeled: float  # whether it is
    start_finite: float
    selectable: float  # rows that are finite and not labeled
    not_finite: float  # rows that are neither
    centers: float  # finite rows among the labeled ones
    largest: float  # magnitude of a value in a finite row


class _Plan(NamedTuple):
    """How to pick, which depends on the values."""

    exponent: int  # of the power of two that features are multiplied by
    mean_of: int  # rows whose mean the first pick is nearest to; 0: it is the start, or the farthest from the labeled ones


class _Search:
    """Arguments of `k_center_greedy`, checked as far as that takes no look at values on a device."""

    def __init__(self, features: Any, b: int, labeled: Any, start: int | None) -> None:
        x = as_tensor("features", features)
        require_floating("features", x)
        self.b = require_count("b", b)
        if x.dtype in (torch.float16, torch.bfloat16):
            x = x.float()
        if x.dim() != 2:
            raise ValueError(f"features must have shape (N, d), got {tuple(x.shape)}")
        self.x, rows = x, len(x)
        self._labeled = _indices(labeled, rows, x.device)
        # Where an index is out of range there will be an error, but not before the others have been used.
        self.known = self._labeled.clamp(0, rows - 1) if rows else self._labeled[:0]
        if start is not None:
            start = require_count("start", start)
            if start >= rows:
                raise ValueError(f"start must be a row of features (0 to {rows - 1}), got {start}")
        if self.b > rows:
            raise TooFewRowsError(f"b must be at most the number of rows, {rows}, got {self.b}", rows, rows)
        self.start = start
        # Per row, so that extra memory stays O(N); NaN and infinities show in one or the other.
        least, most = row_extents(x)
        finite = most.isfinite() & least.isfinite()
        self._available = finite.index_fill(0, self.known, False)
        magnitudes = torch.maximum(most, -least).where(finite, 0)
        nothing = x.new_zeros((), dtype=torch.float64)
        several = len(self._labeled) > 0
        facts = (  # in the order of _Facts
            self._labeled.min() if several else nothing,
            self._labeled.max() if several else nothing,
            (self.known == start).any() if start is not None else nothing,
            finite[start] if start is not None else nothing,
            self._available.sum(),
            (~finite).index_fill(0, self.known, False).sum(),
            finite[self.known].sum(),
            magnitudes.max() if rows else nothing,
        )
        self.facts = torch.stack([fact.double() for fact in facts])

    def plan(self, numbers: list[float]) -> _Plan:
        """How to pick where `facts` are these; ValueError where they forbid it."""
        facts, rows = _Facts(*numbers), len(self.x)
        if len(self._labeled) and not 0 <= facts.lowest <= facts.highest < rows:
            wrong = int(self._labeled.min() if facts.lowest < 0 else self._labeled.max())
            raise ValueError(_not_a_row(rows, wrong))
        if facts.start_labeled:
            raise ValueError(f"start is labeled already: {self.start}")
        if self.start is not None and not facts.start_finite:
            raise ValueError(f"start must be a row of finite features, got row {self.start}")
        if self.b > facts.selectable:
            raise TooFewRowsError(
                f"b is {self.b}, but only {int(facts.selectable)} of {rows} rows can be picked "
                "(the others are labeled or not finite)",
                int(facts.selectable),
                rows,
            )
        alone = self.start is None and not facts.centers
        return _Plan(_exponent(facts.largest, self.x.dtype), int(facts.selectable) if alone else 0)

    def pick(self, plan: _Plan) -> Tensor:
        """(b,) on the features' device."""
        if self.b == 0:
            return self.known[:0]
        x = self.x * 2.0**plan.exponent if plan.exponent else self.x
        if not plan.mean_of:
            return ops.k_center_greedy(x, self.known, self.b, -1 if self.start is None else self.start)
        first = _nearest_to_mean(x, self._available, plan.mean_of)
        # A center like any other, so that its number need not be known here.
        others = ops.k_center_greedy(x, torch.cat((self.known, first)), self.b - 1, -1)
        return torch.cat((first, others))


def _exponent(largest: float, dtype: torch.dtype) -> int:
    """Of the power of two that brings squared distances into the dtype's range; 0 where they are in it."""
    # How far from 1 magnitudes may be, and what the dtype can hold as a factor.
    room, limit = (2.0**30, 120) if dtype == torch.float32 else (2.0**300, 1000)
    if largest == 0 or 1 / room < largest < room:
        return 0
    return max(-limit, min(limit, -math.frexp(largest)[1]))


def _nearest_to_mean(x: Tensor, available: Tensor, count: int) -> Tensor:
    """The row (1,) nearest to the mean of the ``count`` available ones, one of them. O(N) memory where that is all."""
    mean = x.mean(0) if count == len(x) else x[rows_where(available, count)].mean(0)
    # Without the matrix product, whose cached-norm form cancels for features far from the origin.
    distances = torch.cdist(x, mean[None], compute_mode="donot_use_mm_for_euclid_dist").squeeze(1)
    return torch.where(available, distances, torch.inf).argmin(0, keepdim=True)


def _indices(labeled: Any, rows: int, device: torch.device) -> Tensor:
    """On `device`; the range of indices is checked where that waits for no device."""
    if labeled is None:
        return torch.empty(0, dtype=torch.int64, device=device)
    array = as_integers("labeled", labeled)
    if array.dtype == torch.bool:
        array = rows_of_mask("labeled", array, rows, "features")
    elif array.device.type == "cpu" and array.numel():
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= rows:
            raise ValueError(_not_a_row(rows, low if low < 0 else high))
    return upload(array, device)


def _not_a_row(rows: int, got: int) -> str:
    return f"labeled must hold rows of features (0 to {rows - 1}), got {got}"
