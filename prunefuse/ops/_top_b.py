"""The best of a pool."""

from __future__ import annotations

import torch
from torch import Tensor

from prunefuse.ops._operator import no_flops, operator


@operator(
    fake=lambda utilities, b: (utilities.new_empty((b,), dtype=torch.int64), utilities.new_empty((b,))),
    flops=no_flops,
)
def top_b(utilities: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """Indices and values (b,) of the b largest utilities (N,), padded with -1 and NaN where fewer can be selected.

    >>> from prunefuse import ops
    >>> ops.top_b(torch.tensor([0.1, 0.9, 0.5]), 2)[0].tolist()
    [1, 2]
    """
    nan = utilities.isnan()  # (N,)
    order = torch.where(nan, -torch.inf, utilities).sort(descending=True, stable=True).indices  # (N,)
    order = order[~nan[order]][:b]  # (n,), n <= b
    indices = torch.full((b,), -1, dtype=torch.int64, device=utilities.device)
    values = utilities.new_full((b,), torch.nan)
    indices[: len(order)] = order
    values[: len(order)] = utilities[order]
    return indices, values
