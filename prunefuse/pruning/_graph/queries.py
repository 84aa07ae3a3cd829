"""Queries of heads that lose channels, where PyTorch scales scores by the length of the queries.

With e of E channels, PyTorch divides scores by √e in place of √E. So the small model has what makes its queries times
√(e / E), and the dense model gets it back divided by that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Scaled: TypeAlias = Mapping[str, Mapping[int, tuple[int, ...]]]
"""Tensor -> axis -> its indices that make queries."""
Kept: TypeAlias = Mapping[str, Sequence[Tensor | None]]


def factors(kept: Kept, scaled: Scaled) -> Iterator[tuple[str, int, Tensor]]:
    """Tensor, axis, and what each index that is kept there is multiplied by, in float64."""
    for name, axes in scaled.items():
        for axis, rows in axes.items():
            if (indices := kept[name][axis]) is None:
                continue
            mine = torch.isin(indices, torch.tensor(rows))
            by = torch.ones(len(indices), dtype=torch.float64)
            yield name, axis, by.masked_fill_(mine, (int(mine.sum()) / len(rows)) ** 0.5)


def scale_(small: Mapping[str, Tensor], kept: Kept, scaled: Scaled) -> None:
    """Multiply what makes queries in a small model."""
    for name, axis, by in factors(kept, scaled):
        tensor = small[name]
        with torch.no_grad():
            tensor.copy_(tensor.double() * _along(by, axis, tensor))


def unscaled(small: Mapping[str, Tensor], kept: Kept, scaled: Scaled) -> dict[str, Tensor]:
    """The tensors of a small model, those that make queries divided again."""
    tensors = dict(small)
    for name, axis, by in factors(kept, scaled):
        tensor = tensors[name].detach()
        tensors[name] = (tensor.double() / _along(by, axis, tensor)).to(tensor.dtype)
    return tensors


def _along(by: Tensor, axis: int, tensor: Tensor) -> Tensor:
    return by.to(tensor.device).view([-1 if a == axis else 1 for a in range(tensor.ndim)])
