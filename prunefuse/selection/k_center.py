"""Greedy k-center: a batch that covers the pool (the core-set strategy)."""

from __future__ import annotations

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
        ValueError: fewer than b rows can be picked (the message says how many), or an index is out of range.
        RuntimeError: features is not of rank 2.
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
    norms = torch.linalg.vector_norm(x, dim=1)
    finite = norms.square().isfinite()
    if start is not None and not bool(finite[start]):
        raise ValueError(f"start must be a row of finite features, got row {start}")
    centers = known[finite[known]]
    first = -1 if start is None else start
    if first < 0 and len(centers) == 0 and b > 0 and bool(finite.any()):
        # Labeled rows that are not finite are no centers, but must still not be picked.
        available = finite.clone()
        available[known] = False
        first = _nearest_to_mean(x, norms, available)
    picks = ops.k_center_greedy(x, known, b, max(first, -1)) if b > 0 else known[:0]
    if b > 0 and int(picks[-1]) < 0:
        raise ValueError(
            f"b is {b}, but only {int((picks >= 0).sum())} of {len(x)} rows can be picked "
            "(the others are labeled or not finite)"
        )
    return like(features, picks)


def _nearest_to_mean(x: Tensor, norms: Tensor, available: Tensor) -> int:
    """The available row nearest to their mean; -1 if there is none. O(N) memory where all rows are available."""
    if not bool(available.any()):
        return -1
    mean = x.mean(0) if bool(available.all()) else x[available].mean(0)
    distances = norms.square() - 2 * (x @ mean)
    return int(torch.where(available, distances, torch.inf).argmin())


def _indices(labeled: Any, rows: int) -> Tensor:
    if labeled is None:
        return torch.empty(0, dtype=torch.int64)
    array = labeled if isinstance(labeled, Tensor) else torch.as_tensor(np.asarray(labeled))
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
