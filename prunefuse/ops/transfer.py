"""Between host and device without waiting for the device, and reductions that differ by device in speed alone."""

from __future__ import annotations

import torch
from torch import Tensor


def upload(values: Tensor, device: torch.device) -> Tensor:
    """`values` on `device`. From the CPU to a GPU by way of pinned memory, which the host need not wait for.

    torch's allocator of pinned memory keeps the copy there until the device has read it. Only where memory has to be pinned
    anew, as in the first call of a size, the driver may take its time.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def rows_where(mask: Tensor, count: int) -> Tensor:
    """The ``count`` rows where ``mask`` is true, int64 and rising; that many there must be."""
    if mask.device.type == "cpu":
        return mask.nonzero()[:, 0]  # faster there than the other
    return mask.nonzero_static(size=count)[:, 0]


def row_extents(x: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest value of every row, NaN where there is one; 0 of rows without a value."""
    if x.numel() == 0:
        return x.new_zeros(len(x)), x.new_zeros(len(x))
    if x.device.type == "cpu":
        return x.amin(1), x.amax(1)  # faster there than the other
    least, largest = torch.aminmax(x, dim=1)
    return least, largest
