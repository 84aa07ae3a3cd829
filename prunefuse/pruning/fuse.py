"""Writing a trained small network back into its dense one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from prunefuse import ops
from prunefuse._options import require, require_type
from prunefuse._seeds import isolated
from prunefuse.pruning._graph.copies import named_tensors
from prunefuse.pruning._graph.normed import normed_weights, restore_gains_
from prunefuse.pruning._graph.queries import Scaled, unscaled
from prunefuse.pruning._graph.standardized import divide_gains_

_COMPLEMENTS = ("keep", "reinit", "zero", "preserve")
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Rewrite:
    """What keeps a fused network from computing the small one's function, and what is put in its place.

    Attributes:
        zeros: Tensor name -> the kept indices of each of its axes, None for a whole one: what is zero there that the small
            network does not say. A name may be there several times.
        copies: Tensor name, axis, its indices that are written, those that they are copies of.
    """

    zeros: tuple[tuple[str, list[Tensor | None]], ...]
    copies: tuple[tuple[str, int, Tensor, Tensor], ...]


def rewrite(
    dense: Mapping[str, Tensor],
    kept: Mapping[str, Sequence[Tensor | None]],
    reads: Mapping[str, tuple[tuple[int, ...], ...]],
    copies: Mapping[str, Mapping[int, tuple[int, ...]]],
) -> Rewrite:
    """See :class:`Rewrite`; the arguments are a plan's.

    Raises:
        ValueError: the plan is damaged.
    """
    zeros: list[tuple[str, list[Tensor | None]]] = []
    written: list[tuple[str, int, Tensor, Tensor]] = []
    devices = {name: tensor.device for name, tensor in dense.items()}
    for name, uses in reads.items():
        for axes in uses:
            _check_axes(name, axes, kept, "reads")
            there = [None if axis in axes else at for axis, at in enumerate(kept[name])]
            zeros.append((name, [None if at is None else at.to(devices[name]) for at in there]))
    for name, sources in copies.items():
        _check_axes(name, tuple(sources), kept, "copies")
        for axis, indices in sources.items():
            left = torch.ones(dense[name].shape[axis], dtype=torch.bool)
            left[kept[name][axis]] = False
            to = left.nonzero().flatten()
            if len(to) != len(indices) or not all(0 <= index < len(left) for index in indices):
                raise ValueError(
                    f"copies must name an index of {name!r} for each that is not kept: the plan is damaged"
                )
            source = torch.tensor(indices)
            changed = to != source
            if changed.any():
                device = devices[name]
                written.append((name, axis, to[changed].to(device), source[changed].to(device)))
    return Rewrite(tuple(zeros), tuple(written))


def _check_axes(
    name: str, axes: Sequence[int], kept: Mapping[str, Sequence[Tensor | None]], what: str
) -> None:
    held = kept.get(name, ())
    if not all(axis < len(held) and held[axis] is not None for axis in axes):
        raise ValueError(
            f"{what} must be of axes that lose channels, got {name!r} {axes}: the plan is damaged"
        )


def check_arguments(
    dense: nn.Module, small: nn.Module, complement: str | nn.Module, generator: torch.Generator | None
) -> None:
    """Raise ``TypeError`` or ``ValueError`` for what can be wrong with the arguments of :func:`write_back` by themselves."""
    for name, module in (("dense", dense), ("small", small)):
        require_type(module, nn.Module, name, "an nn.Module")
    require_type(complement, (str, nn.Module), "complement", "a string or a module")
    if isinstance(complement, str):
        require(
            complement in _COMPLEMENTS,
            "complement",
            f"one of {', '.join(_COMPLEMENTS)} or a module",
            complement,
        )
    require_type(generator, (torch.Generator, type(None)), "generator", "a torch.Generator or None")


def write_back(
    dense: nn.Module,
    small: nn.Module,
    kept: dict[str, list[Tensor | None]],
    complement: str | nn.Module,
    generator: torch.Generator | None,
    scaled: Scaled,
    standardized: Mapping[str, str],
    rewrite: Rewrite | None = None,
) -> None:
    """See :meth:`PruningPlan.fuse_`; a module as complement must be one that the plan is for.

    Args:
        kept: For each tensor of ``dense`` the kept indices of every axis; None = all.
        scaled: What the small model has multiplied, as a plan has it.
        standardized: Weights whose gains it has multiplied, as a plan has them.
        rewrite: What ``complement="preserve"`` changes beside these.

    Raises:
        ValueError: ``small`` does not fit, or a module with pruned parameters has no ``reset_parameters``. Nothing is
            written then.
    """
    target = named_tensors(dense)
    source = unscaled(_fitting(small, target, kept), kept, scaled)
    pruned = {name for name, axes in kept.items() if any(axis is not None for axis in axes)}
    with torch.no_grad():
        if isinstance(complement, nn.Module):
            values = named_tensors(complement)
            for name in pruned:
                target[name].copy_(values[name])
        elif complement == "reinit":
            _reset(dense, pruned, generator)
        elif complement == "zero":
            _clear(dense, target, pruned)
        for name, there in rewrite.zeros if rewrite else ():
            _zero(target[name], there)
        names = list(target)
        ops.scatter_([target[n] for n in names], [source[n] for n in names], [kept[n] for n in names])
        if rewrite:
            _copy(target, rewrite)
    restore_gains_(dense, small, kept)
    divide_gains_(target, kept, standardized)
    if rewrite:  # also gains, which were written only now
        gains = {normed.gain for normed in normed_weights(dense)} | set(standardized.values())
        _copy(target, rewrite, gains)


def _fitting(
    small: nn.Module, dense: dict[str, Tensor], kept: dict[str, list[Tensor | None]]
) -> dict[str, Tensor]:
    """The tensors of ``small``, checked to fit the kept positions of ``dense``."""
    tensors = named_tensors(small)
    if odd := sorted(dense.keys() ^ tensors.keys()):
        raise ValueError(
            f"small must have the tensors of the dense model, got one of a model where {', '.join(odd[:5])} differ"
        )
    device = next((tensor.device for tensor in dense.values()), None)
    for name, tensor in tensors.items():
        to = dense[name]
        shape = [n if axis is None else axis.numel() for axis, n in zip(kept[name], to.shape, strict=True)]
        expected, got = (shape, to.dtype, device), (list(tensor.shape), tensor.dtype, tensor.device)
        if got != expected:
            raise ValueError(
                f"small must fit the plan: {name} must be {_described(expected)}, got {_described(got)}"
            )
        if to.device != device:
            raise ValueError(f"dense must have all its tensors on {device}, got {name} on {to.device}")
    return tensors


def _described(kind: tuple[list[int], torch.dtype, torch.device | None]) -> str:
    shape, dtype, device = kind
    return f"{shape} {dtype} on {device}"


def _reset(dense: nn.Module, pruned: set[str], generator: torch.Generator | None) -> None:
    owners = {name.rpartition(".")[0]: None for name in named_tensors(dense) if name in pruned}
    resets: dict[str, Any] = {}
    without: list[str] = []
    for path in owners:
        module = dense.get_submodule(path)
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if reset is None:
            without.append(f"{path!r} ({type(module).__name__})")
        resets[path] = reset
    if without:
        more = f" and {len(without) - 3} more" if len(without) > 3 else ""
        raise ValueError(
            f'complement must not be "reinit" for modules without reset_parameters, got {", ".join(without[:3])}{more}. '
            "Give a freshly built model, whose values are taken there: plan.fuse_(dense, small, build())"
        )
    # reset_parameters draws from the global generators: seed them from ours inside, restore them afterwards.
    device = generator.device if generator is not None else "cpu"
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device=device))
    with isolated(seed, next(iter(named_tensors(dense).values())).device):
        for reset in resets.values():
            reset()


def _clear(dense: nn.Module, target: dict[str, Tensor], pruned: set[str]) -> None:
    for name in pruned:
        path, _, tensor = name.rpartition(".")
        one = isinstance(dense.get_submodule(path), _NORMS) and tensor in ("weight", "running_var")
        target[name].fill_(1 if one else 0)


def _zero(tensor: Tensor, kept: Sequence[Tensor | None]) -> None:
    """Zero where all axes are kept; the small tensor is written over a part of that."""
    pruned = [(axis, indices) for axis, indices in enumerate(kept) if indices is not None]
    if not pruned:
        tensor.zero_()
    elif len(pruned) == 1:
        tensor.index_fill_(*pruned[0], 0)
    else:
        rows = (
            torch.arange(n, device=tensor.device) if indices is None else indices
            for indices, n in zip(kept, tensor.shape, strict=True)
        )
        tensor[torch.meshgrid(*rows, indexing="ij")] = 0


def _copy(tensors: Mapping[str, Tensor], rewrite: Rewrite, names: Collection[str] | None = None) -> None:
    with torch.no_grad():
        for name, axis, to, source in rewrite.copies:
            if names is None or name in names:
                tensors[name].index_copy_(axis, to, tensors[name].index_select(axis, source))
