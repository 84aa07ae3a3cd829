"""Weights that are divided by a norm of their own: a part of one must be applied with the values that it had in the whole.

A weight norm applies ``g v / |v|``. With some columns of ``v`` gone, ``|v|`` is smaller, and every weight that is kept would
grow. So ``g`` changes by the same factor. A spectral norm applies ``W / (uᵀ W v)`` in evaluation mode, and there it is ``u``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunefuse.pruning._graph.copies import all_names, cut_tensor, named_tensors

Kept = Mapping[str, Sequence[Tensor | None]]


@dataclass(frozen=True)
class Normed:
    """One such weight, by the first names of its tensors.

    Attributes:
        owner: Path of the module that applies it.
        gain: What is multiplied: the lengths of a weight norm, or the left vector of a spectral norm.
        matrix: What is divided by its norm.
        right: The right vector of a spectral norm; empty for a weight norm.
        dim: The axis of the outputs; -1: none.
    """

    owner: str
    gain: str
    matrix: str
    right: str
    dim: int

    def size(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """What the matrix is divided by: one number for each output, or one in all."""
        matrix = tensors[self.matrix].detach().double()
        if not self.right:
            return torch.norm_except_dim(matrix, 2, self.dim)
        rows = matrix.movedim(self.dim, 0).flatten(1)
        return tensors[self.gain].detach().double() @ rows @ tensors[self.right].detach().double()


def normed_weights(model: nn.Module) -> Iterator[Normed]:
    """Those of a model, of both kinds, as parametrizations and as hooks."""
    names = {name: first for name, (first, _) in all_names(model).items()}
    for path, module in model.named_modules():
        for held in _tensors_of(module):
            gain, matrix, right, dim = held
            full = [
                names.get(f"{path}.{name}" if path else name, "") for name in (gain, matrix, right) if name
            ]
            if all(full):
                yield Normed(path, full[0], full[1], full[2] if right else "", dim)


def _tensors_of(module: nn.Module) -> Iterator[tuple[str, str, str, int]]:
    held: Any = getattr(module, "parametrizations", {})
    for name, chain in held.items():
        inside = f"parametrizations.{name}"
        kinds = [type(part).__name__ for part in chain]
        if kinds[0] == "_WeightNorm":
            yield f"{inside}.original0", f"{inside}.original1", "", chain[0].dim
        elif kinds == ["_SpectralNorm"] and hasattr(chain[0], "_u"):
            yield f"{inside}.0._u", f"{inside}.original", f"{inside}.0._v", chain[0].dim
    for kind, hook in _hooks(module):
        if kind == "WeightNorm":
            yield f"{hook.name}_g", f"{hook.name}_v", "", -1 if hook.dim is None else hook.dim
        elif kind == "SpectralNorm":
            yield f"{hook.name}_u", f"{hook.name}_orig", f"{hook.name}_v", hook.dim


def _hooks(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What makes weights of a module anew in each forward, in the older form: the name of its type, and itself."""
    for hook in module._forward_pre_hooks.values():
        if type(hook).__module__.startswith("torch.nn.utils."):
            yield type(hook).__name__, hook


def gains_of_part(model: nn.Module, kept: Kept) -> dict[str, Tensor]:
    """Name of a gain -> what it must be in the small model, so that the weights that are kept are applied as before."""
    tensors, gains = named_tensors(model), {}
    for normed in normed_weights(model):
        part = {name: cut_tensor(tensors[name], kept[name]) for name in _names(normed)}
        if not _loses(normed, kept):
            continue
        factor = _ratio(normed, normed.size(part), normed.size(tensors), kept)
        gains[normed.gain] = (part[normed.gain].detach().double() * factor).to(part[normed.gain].dtype)
    return gains


def set_gains_(small: nn.Module, gains: Mapping[str, Tensor]) -> None:
    """Write gains into a small model, and the weights that hooks make of them."""
    tensors = named_tensors(small)
    with torch.no_grad():
        for name, values in gains.items():
            tensors[name].copy_(values)
    for module in small.modules():
        for kind, hook in _hooks(module):
            if kind == "WeightNorm" and gains:
                setattr(module, hook.name, hook.compute_weight(module).detach())


def restore_gains_(dense: nn.Module, small: nn.Module, kept: Kept) -> None:
    """After the tensors of a small model were written into the dense one: let the dense one apply the same weights there."""
    tensors, part = named_tensors(dense), named_tensors(small)
    with torch.no_grad():
        for normed in normed_weights(dense):
            if not _loses(normed, kept):
                continue
            gain = tensors[normed.gain]
            if normed.right:
                gain.mul_(normed.size(part) / normed.size(tensors))
                continue
            empty = normed.size(tensors) == 0  # rows of zeros have no direction
            tensors[normed.matrix].masked_fill_(empty, 1)
            gain.masked_fill_(empty, 0)
            values = part[normed.gain].double() / _ratio(
                normed, normed.size(part), normed.size(tensors), kept
            )
            at = kept[normed.gain][normed.dim] if gain.ndim else None
            if at is None:
                gain.copy_(values)
            else:
                gain.index_copy_(normed.dim, at.to(gain.device), values.to(gain.dtype))


def _names(normed: Normed) -> list[str]:
    return [name for name in (normed.gain, normed.matrix, normed.right) if name]


def _loses(normed: Normed, kept: Kept) -> bool:
    """Whether the norm is of fewer numbers in the small model."""
    alone = None if normed.right else normed.dim  # whole rows of a weight norm are as they were
    return any(indices is not None and axis != alone for axis, indices in enumerate(kept[normed.matrix]))


def _ratio(normed: Normed, small: Tensor, dense: Tensor, kept: Kept) -> Tensor:
    """What a gain of the small model must be multiplied by."""
    if normed.right:
        return torch.where(small == 0, 1, dense / small)
    rows = kept[normed.matrix][normed.dim] if normed.dim >= 0 else None
    if rows is not None:
        dense = dense.index_select(normed.dim, rows.to(dense.device))
    return torch.where(dense == 0, 1, small / dense)
