"""Weights whose rows are standardized before they are applied: what that changes for a part of the rows.

A row is applied less its mean and divided by its deviation. A part of it has others, so no values of it are applied as they
were. Where rows have gains, these change by one factor each, and the part is applied with the norm that it had.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from prunefuse.pruning._graph.copies import cut_tensor

Kept = Mapping[str, Sequence[Tensor | None]]


def _standard(weight: Tensor) -> Tensor:
    """The rows of a weight, standardized, in float64."""
    rows = weight.detach().double().flatten(1)
    rows = rows - rows.mean(1, keepdim=True)
    deviation = rows.square().mean(1, keepdim=True).sqrt()
    return rows / torch.where(deviation == 0, 1, deviation)


def _applied(weight: Tensor, kept: Sequence[Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
    """The part that is kept of what is applied; what of the part is; and the ratio of their norms, row by row."""
    whole = cut_tensor(_standard(weight).view_as(weight), list(kept)).flatten(1)
    part = _standard(cut_tensor(weight.detach(), list(kept)))
    norms = [torch.linalg.vector_norm(rows, dim=1) for rows in (whole, part)]
    return whole, part, torch.where(norms[1] == 0, 1, norms[0] / norms[1])


def loses_columns(kept: Sequence[Tensor | None]) -> bool:
    """Whether rows lose a part."""
    return any(indices is not None for indices in kept[1:])


def change(weight: Tensor, kept: Sequence[Tensor | None], gains: Tensor | None) -> float:
    """By how much of its norm the part of a weight that is kept is applied differently."""
    whole, part, factor = _applied(weight, kept)
    if gains is not None:
        rows = gains.detach().double().flatten()
        rows = (rows if kept[0] is None else rows[kept[0].to(rows.device)])[:, None]
        whole, part = rows * whole, rows * part * factor[:, None]
    norm = float(torch.linalg.vector_norm(whole))
    return float(torch.linalg.vector_norm(part - whole)) / norm if norm else 0.0


def _factors(
    tensors: Mapping[str, Tensor], kept: Kept, gains: Mapping[str, str]
) -> Iterator[tuple[str, Tensor]]:
    """Gain, and what those of the rows that are kept are multiplied by, in the shape of the part of it."""
    for name, gain in gains.items():
        if loses_columns(kept[name]):
            factor = _applied(tensors[name], kept[name])[2]
            shape = [1 if size == 1 else -1 for size in tensors[gain].shape]
            yield gain, factor.view(shape)


def multiply_gains_(
    small: Mapping[str, Tensor], dense: Mapping[str, Tensor], kept: Kept, gains: Mapping[str, str]
) -> None:
    """Multiply the gains of a small model that was cut from a dense one; weight -> its gain."""
    with torch.no_grad():
        for name, factor in _factors(dense, kept, gains):
            small[name].copy_(small[name].double() * factor)


def divide_gains_(dense: Mapping[str, Tensor], kept: Kept, gains: Mapping[str, str]) -> None:
    """Divide the gains that a small model has written to a dense one."""
    with torch.no_grad():
        for name, factor in _factors(dense, kept, gains):
            tensor, axis = dense[name], next((a for a, x in enumerate(kept[name]) if x is not None), None)
            if axis is None:
                tensor.div_(factor)
                continue
            at = kept[name][axis]
            assert at is not None
            at = at.to(tensor.device)
            part = tensor.index_select(axis, at).double() / factor
            tensor.index_copy_(axis, at, part.to(tensor.dtype))
