"""Whether the model's own code can run with the kept channels, and what to give up where it cannot.

An exported graph has sizes as numbers: that a module reshapes to (B, T, 12, 64) does not say which of them it
reads from the shape of a tensor, from an attribute, or has written in its code. So a plan is made as if all
followed the channels, attributes with those numbers are changed along, the small model is exported as well, and
its shapes are compared with the planned ones, call by call. Where they differ, the modules of that type first
keep equally many of all axes that were equally long (an attention whose heads together are as wide as its input);
if that does not help they keep these axes whole, with a note, and if not even that, all axes that are as long as any
number in their calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from prunefuse.pruning.coupling import Ids
from prunefuse.pruning.graph import LAYOUT, CaptureError, call_shapes, export
from prunefuse.pruning.identity import named_tensors
from prunefuse.pruning.modules import sizes_of
from prunefuse.pruning.surgery import cut
from prunefuse.pruning.trace import Trace

ALIKE, WHOLE, ALL_WHOLE = 1, 2, 3

Remedies: TypeAlias = Mapping[type[nn.Module], int]
"""Module type -> what is done about the sizes that its modules give to operators."""


@dataclass(frozen=True)
class Programs:
    """The graphs of a model; that in training mode only where parameters are used there and nowhere else."""

    evaluation: ExportedProgram
    training: ExportedProgram | None


@dataclass
class Decision:
    """What is kept: one flag per node of the trace."""

    found: Trace
    keep: npt.NDArray[np.bool_]

    def kept(self, tensors: dict[str, Tensor]) -> dict[str, dict[int, tuple[int, ...]]]:
        """Tensor -> axis -> kept indices, for axes that lose some."""
        kept: dict[str, dict[int, tuple[int, ...]]] = {}
        for name in tensors:
            for axis, ids in enumerate(self.found.tensors[name].axes):
                if not self.keep[ids].all():
                    kept.setdefault(name, {})[axis] = tuple(np.flatnonzero(self.keep[ids]).tolist())
        return kept

    def count(self, ids: Ids) -> int:
        """How many indices of an axis stay."""
        return int(self.keep[ids].sum())

    @cached_property
    def sizes(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """The planned shapes of the outputs of every call."""
        known: dict[int, int] = {}

        def size(ids: Ids) -> int:
            if id(ids) not in known:
                known[id(ids)] = self.count(ids)
            return known[id(ids)]

        return tuple(
            tuple(tuple(map(size, value.axes)) for value in call.outputs) for call in self.found.calls
        )

    def attributes(self) -> dict[str, dict[str, int | tuple[int, ...]]]:
        """New values of module attributes, where they change."""
        result: dict[str, dict[str, int | tuple[int, ...]]] = {}
        found = self.found
        for path, axes in found.literals.items():
            new = {len(ids): self.count(ids) for ids in axes if not self.keep[ids].all()}
            for name, value in vars(found.modules[path]).items():
                if type(value) is int and value in new:
                    result.setdefault(path, {})[name] = new[value]
        sized = dict(found.sized)
        for path, module in found.modules.items():
            for (tensor, axis), attribute in sizes_of(module).items():
                value = found.tensors.get(f"{path}.{tensor}" if path else tensor)
                if value is not None:
                    held = getattr(module, attribute)
                    sized[path, attribute, axis if isinstance(held, tuple) else None] = value.axes[axis]
        for (path, attribute, position), ids in sized.items():
            if self.keep[ids].all():
                continue
            mine = result.setdefault(path, {})
            if position is None:
                mine[attribute] = self.count(ids)
            else:
                amounts = mine.get(attribute, getattr(found.modules[path], attribute))
                mine[attribute] = (*amounts[:position], self.count(ids), *amounts[position + 1 :])
        return result


def settle_sizes(
    model: nn.Module, inputs: tuple[Tensor, ...], decide: Callable[[Programs, Remedies], Decision]
) -> Decision:
    """Decide what is kept so that the model's own code can run with it."""
    programs = Programs(export(model, inputs), None)
    remedies: dict[type[nn.Module], int] = {}
    decision = decide(programs, remedies)
    if decision.found.unused() and (training := _export_training(model, inputs)) is not None:
        programs = replace(programs, training=training)
        decision = decide(programs, remedies)
    while (call := _first_fault(model, inputs, decision)) is not None:
        open_ = [
            kind for kind in decision.found.types_with_literals(call) if remedies.get(kind, 0) < ALL_WHOLE
        ]
        if not open_:
            break  # extraction will say what is wrong
        remedies[open_[0]] = remedies.get(open_[0], 0) + 1
        decision = decide(programs, remedies)
    return decision


def alike_axes(found: Trace, remedies: Remedies) -> list[list[Ids]]:
    """For every module that shall keep equally long axes equally long, the sets of these."""
    result = []
    for path in found.literals:
        if remedies.get(type(found.modules[path])) == ALIKE:
            axes = found.same_sizes(path, live=True)
            result += [[ids for ids in axes if len(ids) == size] for size in {len(ids) for ids in axes}]
    return result


def _export_training(model: nn.Module, inputs: tuple[Tensor, ...]) -> ExportedProgram | None:
    if inputs[0].ndim and len(inputs[0]) == 1:  # batch norm cannot train on one sample
        inputs = tuple(torch.cat([x, x]) if x.ndim and len(x) == 1 else x for x in inputs)
    try:
        return export(model, inputs, training=True)
    except CaptureError:
        return None


def _first_fault(model: nn.Module, inputs: tuple[Tensor, ...], decision: Decision) -> int | None:
    """The number of the first call in which the small model differs from the plan; None if none can, or does."""
    found = decision.found
    if all(decision.keep[ids].all() for path in found.literals for ids in found.same_sizes(path)):
        return None
    tensors = named_tensors(model)
    kept = decision.kept(tensors)
    indices = {
        name: [torch.tensor(mine[axis]) if axis in mine else None for axis in range(tensor.ndim)]
        for name, tensor in tensors.items()
        for mine in [kept.get(name, {})]
    }
    try:
        got = call_shapes(export(cut(model, indices, decision.attributes()), inputs))
    except CaptureError as error:
        return found.last_call(error.module)
    calls = [number for number, call in enumerate(found.calls) if call.op not in LAYOUT]
    for number, real in zip_longest(calls, got):
        if number is None or (found.calls[number].op, decision.sizes[number]) != real:
            return len(found.calls) - 1 if number is None else number
    return None
