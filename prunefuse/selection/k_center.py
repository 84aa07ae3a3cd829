"""Greedy k-center: a batch that covers the pool (the core-set strategy)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunefuse import ops
from prunefuse.ops.arrays import as_tensor, like, require_count, require_floating


def k_center_greedy(features: Any, b: int, labeled: Any = None, start: int | None = None) -> Any:
    """Picks b rows, each the one farthest (Euclidean) from everything labeled and picked before it.

    The 2-approximation of k-center by Gonzalez (1985), as used for active learning by Sener and Savarese (2018).

    Args:
        features: (N, d) floating, as a tensor, a NumPy array or anything with DLPack. Rows with a value that is not finite
            are never picked. 16-bit features are widened to float32 once, since every pick reads them all.
        b: how many rows to pick.
        labeled: row indices chosen already (any integer sequence or array); they act as centers and are never picked.
        start: the first pick. By default the row farthest from the labeled ones; where nothing is labeled, the row nearest to
            the mean of the features (ours: deterministic, and no outlier).

    Returns:
        Row indices (b,) int64 in pick order; ties go to the lower index. Extra memory is O(N).

    Raises:
        TypeError: features is not a floating array, or labeled not of integers.
        ValueError: features is not of rank 2, fewer than b rows can be picked (the message says how many), or an index is
            out of range.
    """
    x = as_tensor("features", features)
    require_floating("features", x)
    b = require_count("b", b)
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    if x.dim() != 2:
        raise ValueError(f"features must have shape (N, d), got {tuple(x.shape)}")
    known = _indices(labeled, len(x)).to(x.device)
    if start is not None:
        start = require_count("start", start)
        if start >= len(x):
            raise ValueError(f"start must be a row of features (0 to {len(x) - 1}), got {start}")
        if bool((known == start).any()):
            raise ValueError(f"start is labeled already: {start}")
    if b > len(x):
        raise ValueError(f"b must be at most the number of rows, {len(x)}, got {b}")
    # Per row, so that extra memory stays O(N); NaN and infinities show in one or the other.
    largest, smallest = (x.amax(1), x.amin(1)) if x.numel() else (x.new_zeros(len(x)), x.new_zeros(len(x)))
    finite = largest.isfinite() & smallest.isfinite()
    if start is not None and not bool(finite[start]):
        raise ValueError(f"start must be a row of finite features, got row {start}")
    x = _within_range(x, torch.maximum(largest, -smallest)[finite])
    first = -1 if start is None else start
    if first < 0 and b > 0 and not bool(finite[known].any()):
        # Labeled rows that are not finite are no centers, but must still not be picked.
        finite[known] = False
        first = _nearest_to_mean(x, finite)
    nothing = first < 0 and len(known) == 0
    if b == 0:
        picks = known[:0]
    elif nothing:  # no row is finite
        picks = torch.full((b,), -1, device=x.device)
    else:
        picks = ops.k_center_greedy(x, known, b, first)
    if b > 0 and int(picks[-1]) < 0:
        raise ValueError(
            f"b is {b}, but only {int((picks >= 0).sum())} of {len(x)} rows can be picked "
            "(the others are labeled or not finite)"
        )
    return like(features, picks)


def _within_range(x: Tensor, magnitudes: Tensor) -> Tensor:
    """x, or a copy of it scaled by a power of two where squared distances would leave the dtype's range."""
    largest = float(magnitudes.max()) if magnitudes.numel() else 0.0
    room = 2.0**30 if x.dtype == torch.float32 else 2.0**300
    if largest == 0 or 1 / room < largest < room:
        return x
    return torch.ldexp(x, torch.tensor(-math.frexp(largest)[1], device=x.device))


def _nearest_to_mean(x: Tensor, available: Tensor) -> int:
    """The available row nearest to their mean; -1 if there is none. O(N) memory where all rows are available."""
    if not bool(available.any()):
        return -1
    mean = x.mean(0) if bool(available.all()) else x[available].mean(0)
    # Without the matrix product, whose cached-norm form cancels for features far from the origin.
    distances = torch.cdist(x, mean[None], compute_mode="donot_use_mm_for_euclid_dist").squeeze(1)
    return int(torch.where(available, distances, torch.inf).argmin())


def _indices(labeled: Any, rows: int) -> Tensor:
    if labeled is None:
        return torch.empty(0, dtype=torch.int64)
    array = as_tensor("labeled", labeled if hasattr(labeled, "__dlpack__") else np.asarray(labeled))
    if array.numel() == 0:
        return torch.empty(0, dtype=torch.int64)
    if array.dtype.is_floating_point or array.dtype == torch.bool or array.dim() != 1:
        raise TypeError(
            f"labeled must be a sequence of row indices, got {array.dtype} of shape {tuple(array.shape)}"
        )
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= rows:
        raise ValueError(
            f"labeled must hold rows of features (0 to {rows - 1}), got {low if low < 0 else high}"
        )
    return array.to(torch.int64)
