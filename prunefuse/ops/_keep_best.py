"""The best of a stream, in memory of the best alone."""

from __future__ import annotations

import torch
from torch import Tensor

from prunefuse.ops._operator import no_flops, nothing, operator
from prunefuse.ops._top_b import top_b


@operator(fake=nothing, flops=no_flops)
def keep_best_(
    best: Tensor,
    indices: Tensor,
    threshold: Tensor,
    counts: Tensor,
    b: int,
    batch: Tensor,
    batch_indices: Tensor | None,
) -> None:
    """Take a batch (N,) of a stream into the candidates (M,) for its b best, in place (`csrc/library.cpp`).

    >>> from prunefuse import ops
    >>> keeper = prunefuse.StreamingTopB(2, lambda x: x)  # calls the operator for every batch
    >>> keeper.update(torch.tensor([0.1, 0.7, 0.4]))

    The reference forgets all but the b best every time; kernels may keep more.
    """
    count, unselectable, highest = counts.tolist()
    if batch_indices is None:
        batch_indices = torch.arange(highest + 1, highest + 1 + len(batch))  # (N,)
    every, order = torch.cat([indices[:count], batch_indices]).sort(stable=True)  # (count + N,)
    utilities = torch.cat([best[:count], batch])[order]  # (count + N,)
    nan = int(batch.isnan().sum())
    left = min(b, len(utilities) - nan)
    positions, best[:left] = top_b.reference(utilities, left)  # (left,)
    indices[:left] = every[positions]
    counts.copy_(torch.tensor([left, unselectable + nan, max([highest, *batch_indices.tolist()])]))
    if left == b:
        threshold.copy_(best[b - 1])
