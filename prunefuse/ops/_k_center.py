"""Picks that cover a pool: greedy k-center."""

from __future__ import annotations

import torch
from torch import Tensor

from prunefuse.ops._operator import operator


def k_center_flops(rows: int, width: int, centers: int) -> int:
    """A multiply-add per feature, row and center, as the full matrix of distances takes by a matrix product.

    The operator itself leaves out the distances that cannot matter; how many depends on the data.
    """
    return 2 * rows * width * centers


@operator(
    fake=lambda features, labeled, b, *_, **__: features.new_empty((b,), dtype=torch.int64),
    flops=lambda features, labeled, b, *_, **__: k_center_flops(features[0], features[1], labeled[0] + b),
)
def k_center_greedy(
    features: Tensor,
    labeled: Tensor,
    b: int,
    start: int,
    weights: Tensor | None = None,
    least: float = 0.0,
) -> Tensor:
    """Rows (b,) of features (N, d) in pick order, padded with -1. labeled is (L,); start is -1 where something is labeled.

    >>> from prunefuse import ops
    >>> ops.k_center_greedy(torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([0]), 2, -1).tolist()
    [2, 1]

    Squared distances are multiplied by weights (N,) before rows are compared. Rows whose squared distance without them is
    below ``least`` are not picked (`csrc/library.cpp`).

    A labeled index out of range is an error on the CPU. On CUDA, where to look would wait for the device, it is left out.
    The reference looks at no value either.
    """
    factors = features.new_ones(len(features)) if weights is None else weights  # (N,)
    usable = features.square().sum(1).isfinite() & factors.isfinite() & (factors >= 0)  # (N,)
    # Squared distance of each row from the nearest center so far; -1 where the row cannot be picked.
    nearest = torch.where(usable, torch.inf, -1.0).to(features.dtype)  # (N,)
    nearest[labeled] = -1

    def add(center: Tensor) -> None:
        """Takes one center (a (1,) index) out of the pool and shortens the distances to it."""
        nearest[center] = -1
        distances = (features - features[center]).square().sum(1)  # (N,)
        reachable = (nearest >= 0) & usable[center]  # (N,)
        shorter = torch.minimum(nearest, distances * factors).masked_fill(distances < least, -1)  # (N,)
        nearest.copy_(torch.where(reachable, shorter, nearest))

    for i in range(len(labeled)):
        add(labeled[i : i + 1])
    picks = torch.full((b,), -1, dtype=torch.int64, device=features.device)
    for i in range(b):
        best, pick = nearest.max(0, keepdim=True)  # (1,)
        if i == 0 and start >= 0:
            best, pick = torch.full_like(best, torch.inf), torch.full_like(pick, start)
        # Past the last selectable row: record -1; adding that row again changes nothing.
        picks[i : i + 1] = torch.where(best >= 0, pick, -1)
        add(pick)
    return picks  # (b,)
