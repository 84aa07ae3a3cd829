"""A random part of a large pool, to score that alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunefuse.ops.arrays import require_count
from prunefuse.selection._rows import NamedRows, on_host


def random_part(
    rows: int,
    count: int,
    *,
    labeled: Any = None,
    exclude: Any = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Indices of a random part of a pool, rising: what a round scores of a pool that is too large to be scored whole.

    >>> part = prunefuse.selection.random_part(1_000_000, 3, labeled=[5])
    >>> len(part), bool((part[1:] > part[:-1]).all())
    (3, True)

    Every part of that size is as likely as any other.

    Args:
        rows: How many rows the pool has.
        count: How many to take; all, where fewer are left.
        labeled: Indices that are labeled already, as any integer sequence or array, or a mask of the rows: not taken.
        exclude: Indices or a mask of the rows, as labeled: never taken.
        generator: The source of randomness, on the CPU. None is one of seed 0.

    Returns:
        Indices (count,) int64, on the CPU.

    Raises:
        TypeError: An argument is not of its type.
        ValueError: rows or count is negative, or an index is out of range.
    """
    rows, count = require_count("rows", rows), require_count("count", count)
    generator = on_host(generator)
    left = torch.ones(rows, dtype=torch.bool)
    for argument, given in (("labeled", labeled), ("exclude", exclude)):
        named = NamedRows(argument, given, rows, left.device, "the pool")
        named.require_now()
        left.index_fill_(0, named.valid, False)
    free = left.nonzero()[:, 0]
    if count >= len(free):
        return free
    return free[torch.randperm(len(free), generator=generator)[:count]].sort().values
