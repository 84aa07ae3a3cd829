"""Small tensors into dense ones, at the indices that were kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prunefuse.ops import loader
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
    if dense or small:
        with torch.no_grad():
            scatter_flat_(list(dense), list(small), *_flat(kept, dense[0].device))


class Scatter:
    """`scatter_` between the same tensors again and again: what does not change between calls is prepared once.

    >>> from prunefuse import ops
    >>> dense, small = torch.zeros(3), torch.ones(2)
    >>> write_back = ops.Scatter([dense], [small], [[torch.tensor([0, 2])]])
    >>> for _ in range(2):
    ...     write_back()
    ...     small += 1
    >>> dense.tolist()
    [2.0, 0.0, 2.0]

    The first call is one of `scatter_`, with its checks. On the CPU, later calls look only whether all tensors still lie
    where they did. If one was moved, as by ``tensor.data = other``, the call is like the first. Shapes and strides must
    stay as they are. Indices are copied, so that they may change.

    Args:
        dense, small, kept: As for `scatter_`.
    """

    def __init__(
        self, dense: Sequence[Tensor], small: Sequence[Tensor], kept: Sequence[Sequence[Tensor | None]]
    ) -> None:
        self._dense, self._small = list(dense), list(small)
        self._tensors = [*self._dense, *self._small]
        device = self._dense[0].device if self._dense else torch.device("cpu")
        indices, self._kept_of_axis = _flat(kept, device)
        self._kept = [axis.clone() for axis in indices]
        self._places: list[int] = []  # of the tensors, as they are prepared
        self._prepared: Any = None

    def __call__(self) -> None:
        """Write every small tensor into its dense one.

        Raises:
            RuntimeError: As `scatter_`.
        """
        if not self._tensors:
            return
        if torch.compiler.is_compiling() or self._dense[0].is_cuda:
            with torch.no_grad():
                scatter_flat_(self._dense, self._small, self._kept, self._kept_of_axis)
            return
        places = [tensor.data_ptr() for tensor in self._tensors]
        if places == self._places:
            self._prepared.run()
            torch.autograd.graph.increment_version(self._dense)
            return
        self._places = []
        with torch.no_grad():
            scatter_flat_(self._dense, self._small, self._kept, self._kept_of_axis)
        # The operator has checked all that what follows relies on.
        if all(tensor.is_contiguous() for tensor in self._small):
            self._prepare()
            self._places = places

    def _prepare(self) -> None:
        self._prepared = loader.native.Scatter()
        at = [0 if which < 0 else self._kept[which].data_ptr() for which in self._kept_of_axis]
        axes = iter(at)
        for to, source in zip(self._dense, self._small, strict=True):
            self._prepared.add(
                to.data_ptr(),
                source.data_ptr(),
                to.element_size(),
                source.shape,
                to.stride(),
                [next(axes) for _ in source.shape],
            )


def _flat(kept: Sequence[Sequence[Tensor | None]], device: torch.device) -> tuple[list[Tensor], list[int]]:
    """The distinct index tensors on the device, and for each axis of each tensor in turn its place among them, or -1."""
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
    return indices, kept_of_axis
