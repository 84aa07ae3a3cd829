"""Picking the best of a pool by its utilities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunefuse import ops
from prunefuse.errors import TooFewRowsError
from prunefuse.ops.arrays import as_tensor, like, require_count, require_floating
from prunefuse.selection._rows import NamedRows


def top_b(utilities: Any, b: int, *, exclude: Any = None) -> tuple[Any, Any]:
    """Indices and utilities of the b rows of highest utility, best first, equals by lower index.

    >>> indices, utilities = prunefuse.top_b(torch.tensor([0.2, 0.9, float("nan"), 0.9]), 2)
    >>> indices.tolist()
    [1, 3]

    On a GPU it waits for the device once, at the end, to see whether there were b. It waits once more for indices to
    exclude that lie there.

    Args:
        utilities: (N,) of a floating dtype, as a tensor, a NumPy array or anything with DLPack. NaN is never selected.
        b: How many.
        exclude: Row indices never to select, as any integer sequence or array, or a mask of the rows.

    Returns:
        Indices (b,) int64 and their utilities (b,) in the dtype given (float32 for 16-bit input).

    Raises:
        TypeError: utilities is not a floating array, b is not an integer, or exclude is not of integers.
        ValueError: b is negative, or an index to exclude is out of range.
        TooFewRowsError: Fewer than b rows can be selected; the message says how many.
        RuntimeError: utilities is not of rank 1.
    """
    values = as_tensor("utilities", utilities)
    require_floating("utilities", values)
    b = require_count("b", b)
    if exclude is None:
        indices, best = best_first(values, b)
        require_selected(indices, len(values))
    else:
        if values.dim() != 1:
            raise ValueError(
                f"utilities must have shape (N,) where rows are excluded, got {tuple(values.shape)}"
            )
        excluded = NamedRows("exclude", exclude, len(values), values.device, "utilities")
        indices, best = best_first(values.index_fill(0, excluded.valid, torch.nan), b)
        excluded.require_now()
        require_selected(indices, len(values), "NaN or excluded")
    return like(utilities, indices), like(utilities, best)


def best_first(utilities: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """`top_b` without waiting for a device: where fewer than b rows can be selected, -1 and NaN at the end.

    Raises:
        ValueError: b is beyond the number of rows.
    """
    values = utilities.float() if utilities.dtype in (torch.float16, torch.bfloat16) else utilities
    if values.dim() == 1 and b > len(values):
        raise TooFewRowsError(
            f"b must be at most the number of rows, {len(values)}, got {b}", len(values), len(values)
        )
    return ops.top_b(values, b)


def require_selected(indices: Tensor, rows: int, others: str = "NaN") -> None:
    """ValueError where the last of the indices selected among so many rows is -1; waits once for their device."""
    b = len(indices)
    if b > 0 and int(indices[-1]) < 0:
        selectable = int((indices >= 0).sum())
        said = f"b is {b}, but only {selectable} of {rows} rows can be selected (the others are {others})"
        raise TooFewRowsError(said, selectable, rows)
