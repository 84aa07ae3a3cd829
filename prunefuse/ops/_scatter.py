"""Small tensors into dense ones, at the indices that were kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunefuse.ops._operator import no_flops, nothing, operator
from prunefuse.ops.transfer import upload


@operator(fake=nothing, flops=no_flops, name="scatter_")
def scatter_flat_(
    dense: Sequence[Tensor], small: Sequence[Tensor], kept: Sequence[Tensor], kept_of_axis: Sequence[int]
) -> None:
    """`scatter_` as the kernel takes it: for each axis of each tensor in turn its index tensor's place in kept, or -1."""
    axes = iter(kept_of_axis)
    for to, source in zip(dense, small, strict=True):
        rows = [torch.arange(n, device=to.device) if (k := next(axes)) < 0 else kept[k] for n in to.shape]
        if not rows:
            to.copy_(source)
            continue
        to[torch.meshgrid(*rows, indexing="ij")] = source


def scatter_(
    dense: Sequence[Tensor], small: Sequence[Tensor], kept: Sequence[Sequence[Tensor | None]]
) -> None:
    """Write every small tensor into its dense one, in place, all in one call (on CUDA, a launch for some 500 tensors).

    >>> from prunefuse import ops
    >>> dense = torch.zeros(3, 2)
    >>> ops.scatter_([dense], [torch.ones(2, 2)], [[torch.tensor([0, 2]), None]])
    >>> dense[:, 0].tolist()
    [1.0, 0.0, 1.0]

    Args:
        dense: Tensors of any rank (at most 8), strides and dtype, all on one device; written in place.
        small: As many tensors; small[i] has dense[i]'s dtype, rank and device.
        kept: For each pair, one entry per axis. An entry is None for the whole axis, or sorted int64 indices (n,) into
            dense's axis, with n the small tensor's size there. `dense[i][numpy.ix_(*kept[i])] = small[i]` is what happens.
            Indices on another device than the tensors are copied, all at once. Where a CUDA graph is captured they must be
            on it.

    Raises:
        RuntimeError: A pair's ranks, sizes, dtypes or devices do not fit, or an index is out of range. Nothing is written
            then.
            Indices are checked on the CPU only: on CUDA that would wait for the device.
    """
    if not dense and not small:
        return
    device = dense[0].device
    # Layers share their kept sets; each distinct tensor goes over once.
    numbers: dict[int, int] = {}
    indices: list[Tensor] = []
    kept_of_axis: list[int] = []
    for axes in kept:
        for axis in axes:
            if axis is None:
                kept_of_axis.append(-1)
                continue
            if id(axis) not in numbers:
                numbers[id(axis)] = len(indices)
                indices.append(axis.contiguous())
            kept_of_axis.append(numbers[id(axis)])
    elsewhere = [i for i, axis in enumerate(indices) if axis.device != device]
    if elsewhere:
        sizes = [len(indices[i]) for i in elsewhere]
        together = upload(torch.cat([indices[i].cpu() for i in elsewhere]), device)
        for i, axis in zip(elsewhere, together.split(sizes), strict=True):
            indices[i] = axis
    with torch.no_grad():
        scatter_flat_(list(dense), list(small), indices, kept_of_axis)
