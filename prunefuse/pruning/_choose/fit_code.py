"""Whether the model's own code can run with the kept channels, and what to give up where it cannot.

An exported graph has sizes as numbers: that a module reshapes to (B, T, 12, 64) does not say which of them it
reads from the shape of a tensor, from an attribute, or has written in its code. So a plan is made as if all
followed the channels, attributes with those numbers are changed along, the small model is exported as well, and
its shapes are compared with the planned ones, call by call. Where they differ, the modules of that type go one step
further in :data:`STEPS`: some attributes stay; axes that were equally long keep equally many channels (an attention
whose heads together are as wide as its input); numbers in objects that modules share, as a configuration, change in a
copy for each; in the end such axes stay whole, with a note.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from prunefuse.pruning._graph.attributes import sizes_of
from prunefuse.pruning._graph.copies import named_tensors
from prunefuse.pruning._graph.couplings import Ids
from prunefuse.pruning._graph.export import CaptureError, Exporter
from prunefuse.pruning._graph.trace import Kind, Size, Trace, kind_of
from prunefuse.pruning._walk import LAYOUT, call_shapes


class Remedy(NamedTuple):
    """What is done about the sizes that the modules of one type give to operators.

    Attributes:
        doubtful: Attributes with the number of an axis that loses channels change, also where an axis that stays
            whole is as long.
        alike: Axes that were equally long keep equally many indices.
        objects: Numbers change too that are attributes of an object that a module holds, as of a configuration; each
            module gets a copy of its own.
        whole: "live": axes as long as one of theirs that may be pruned stay whole; "all": all axes inside.
    """

    doubtful: bool = True
    alike: bool = False
    objects: bool = False
    whole: str = ""


STEPS = (
    Remedy(),
    Remedy(doubtful=False),
    Remedy(alike=True),
    Remedy(doubtful=False, alike=True),
    Remedy(objects=True),
    Remedy(alike=True, objects=True),
    Remedy(whole="live"),
    Remedy(whole="all"),
)
Remedies: TypeAlias = Mapping[Kind, int]
"""Modules -> which of :data:`STEPS`; the first where they are not there. Only modules whose parameters have the same
shapes as well stay whole together: an attention of one head cannot lose any, the others of its type can."""


@dataclass(frozen=True)
class Programs:
    """The graphs of a model; that in training mode only where parameters are used there and nowhere else."""

    evaluation: ExportedProgram
    training: ExportedProgram | None


class Attribute(NamedTuple):
    """An attribute by its name, in all modules of a type."""

    type: type[nn.Module]
    name: str


@dataclass
class Decision:
    """What is kept: one flag per node of the trace; attributes in ``staying`` are no sizes, whatever their number."""

    found: Trace
    keep: npt.NDArray[np.bool_]
    remedies: Remedies
    staying: frozenset[Attribute] = frozenset()

    def kept(self, tensors: dict[str, Tensor]) -> dict[str, dict[int, tuple[int, ...]]]:
        """Tensor -> axis -> kept indices, for axes that lose some."""
        kept: dict[str, dict[int, tuple[int, ...]]] = {}
        for name in tensors:
            for axis, ids in enumerate(self.found.tensors[name].axes):
                if not self.keep[ids].all():
                    kept.setdefault(name, {})[axis] = tuple(np.flatnonzero(self.keep[ids]).tolist())
        return kept

    def indices(self, tensors: dict[str, Tensor]) -> dict[str, list[Tensor | None]]:
        """For every tensor the kept indices of each axis, None = all."""
        kept = self.kept(tensors)
        return {
            name: [torch.tensor(mine[axis]) if axis in mine else None for axis in range(tensor.ndim)]
            for name, tensor in tensors.items()
            for mine in [kept.get(name, {})]
        }

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

    @cached_property
    def changing(self) -> dict[Size, tuple[int, bool]]:
        """Attribute with the number of an axis that loses channels -> (how many stay, is it certain).

        It is not where another axis is as long and stays whole, unless an attribute of this name in a module of
        the same type tells: one with the number of axes of one kind only. In tuples only the certain ones change.
        """
        found: dict[Size, tuple[int, bool]] = {}
        seen: dict[tuple[object, ...], set[bool]] = {}  # -> has it been seen to change, to stay
        for path, axes in self.found.literals.items():
            new = {len(ids): self.count(ids) for ids in axes if not self.keep[ids].all()}
            whole = {len(ids) for ids in axes if self.keep[ids].all()}
            for holder in self._holders.get(path, ()):
                module = self.found.modules[holder]
                for name, position, x in _numbers(module):
                    if Attribute(type(module), name) in self.staying:
                        continue
                    if x > 1 and (x in new) != (x in whole):
                        seen.setdefault((type(module), name, position), set()).add(x in new)
                    if x in new:
                        found[holder, name, position] = (new[x], x not in whole)
        for (path, name, position), (value, certain) in list(found.items()):
            known = seen.get((type(self.found.modules[path]), name, position))
            if not certain and known == {True}:
                found[path, name, position] = (value, True)
            elif not certain and (known == {False} or position is not None):
                del found[path, name, position]
        return found

    @cached_property
    def _holders(self) -> dict[str, list[str]]:
        """Module that makes calls -> it and those next inside it that make none: it may use what they hold."""
        callers = {call.module for call in self.found.calls}
        found: dict[str, list[str]] = {}
        for path in self.found.modules:
            caller = path
            while caller and caller not in callers:
                caller = caller.rpartition(".")[0]
            found.setdefault(caller, []).append(path)
        return found

    def step(self, module: nn.Module) -> int:
        """Which of :data:`STEPS` is taken for a module."""
        return self.remedies.get(kind_of(module), self.remedies.get(type(module), 0))

    def next_step(self, module: nn.Module) -> int | None:
        """Which of :data:`STEPS` could be tried for such modules after the one that failed; None if none."""
        mine = [
            ("." in name, certain)
            for (path, name, _), (_, certain) in self.changing.items()
            if type(self.found.modules[path]) is type(module)
        ]
        doubtful = any(not certain for inner, certain in mine if not inner)
        objects = any(inner for inner, _ in mine)
        later = range(self.step(module) + 1, len(STEPS))
        useful = (
            step
            for step in later
            if (STEPS[step].doubtful or doubtful) and (objects or not STEPS[step].objects)
        )
        return next(useful, None)

    def attributes(self) -> dict[str, dict[str, int | tuple[int, ...]]]:
        """New values of module attributes, where they change; none if the graph is cut and not the module."""
        found = self.found
        if found.free:
            return {}
        new = {}
        for size, (value, certain) in self.changing.items():
            remedy = STEPS[self.step(found.modules[size[0]])]
            if (certain or remedy.doubtful) and (remedy.objects or "." not in size[1]):
                new[size] = value
        sized = dict(found.sized)
        for path, module in found.modules.items():
            for (tensor, axis), attribute in sizes_of(module).items():
                tied = found.tensors.get(f"{path}.{tensor}" if path else tensor)
                if tied is not None:
                    is_tuple = isinstance(getattr(module, attribute), tuple)
                    sized.setdefault((path, attribute, axis if is_tuple else None), tied.axes[axis])
        new.update((size, self.count(ids)) for size, ids in sized.items() if not self.keep[ids].all())
        result: dict[str, dict[str, int | tuple[int, ...]]] = {}
        for (path, attribute, position), value in new.items():
            held = result.setdefault(path, {})
            if position is None:
                held[attribute] = value
            else:
                amounts = held.get(attribute, getattr(found.modules[path], attribute))
                held[attribute] = (*amounts[:position], value, *amounts[position + 1 :])
        return result


def _numbers(module: nn.Module) -> Iterator[tuple[str, int | None, int]]:
    """The numbers that the attributes of a module hold: name, position in a tuple or list, number.

    The name of an attribute of an object that it holds, such as a configuration, has a dot.
    """
    for name, value in vars(module).items():
        if type(value) is int:
            yield name, None, value
        elif isinstance(value, tuple | list) and all(type(x) is int for x in value):
            yield from ((name, position, x) for position, x in enumerate(value))
        elif hasattr(value, "__dict__") and not callable(value) and not isinstance(value, Tensor):
            numbers = ((inner, x) for inner, x in vars(value).items() if type(x) is int)
            yield from ((f"{name}.{inner}", None, x) for inner, x in numbers if not inner.startswith("_"))


def settle_sizes(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    decide: Callable[[Programs, Remedies], Decision],
    exporter: Exporter,
) -> Decision:
    """Decide what is kept so that the model's own code can run with it."""
    programs = Programs(exporter.dense(model, inputs), None)
    remedies: Remedies = {}
    decision = decide(programs, remedies)
    if decision.found.unused() and (training := _export_training(model, inputs, exporter)) is not None:
        programs = replace(programs, training=training)
        decision = decide(programs, remedies)
    staying: frozenset[Attribute] = frozenset()
    while not decision.found.free and (fault := _first_fault(model, inputs, decision, exporter)) is not None:
        if fault.number_alone and (no_size := _no_size(model, inputs, decision, exporter, fault)) is not None:
            staying |= {no_size}
            decision = replace(decision, staying=staying)
            continue
        steps = ((m, decision.next_step(m)) for m in decision.found.modules_with_literals(fault.call))
        module, step = next(((m, step) for m, step in steps if step is not None), (None, None))
        if module is None or step is None:
            break  # extraction will say what is wrong
        if STEPS[step].whole:  # the others of the type start again
            remedies = {kind: n for kind, n in remedies.items() if kind is not type(module)}
        remedies = {**remedies, kind_of(module) if STEPS[step].whole else type(module): step}
        decision = replace(decide(programs, remedies), staying=staying)
    return decision


def _no_size(
    model: nn.Module, inputs: tuple[Tensor, ...], decision: Decision, exporter: Exporter, fault: Fault
) -> Attribute | None:
    """The attribute that must not change for a call to get its number, which is no size: by trying them in turn."""
    found = decision.found
    names = dict.fromkeys(
        Attribute(type(module), name)
        for module in found.modules_with_literals(fault.call)
        for path, name, _ in decision.changing
        if type(found.modules[path]) is type(module)
    )
    for attribute in names:
        tried = replace(decision, staying=decision.staying | {attribute})
        next_fault = _first_fault(model, inputs, tried, exporter)
        if next_fault is None or next_fault.call > fault.call:
            return attribute
    return None


def alike_axes(found: Trace, remedies: Remedies) -> list[list[Ids]]:
    """For every module that shall keep equally long axes equally long, the sets of these."""
    result = []
    for path in found.literals:
        module = found.modules[path]
        if STEPS[remedies.get(kind_of(module), remedies.get(type(module), 0))].alike:
            axes = found.same_sizes(path, live=True)
            result += [[ids for ids in axes if len(ids) == size] for size in {len(ids) for ids in axes}]
    return result


def _export_training(
    model: nn.Module, inputs: tuple[Tensor, ...], exporter: Exporter
) -> ExportedProgram | None:
    if inputs[0].ndim and len(inputs[0]) == 1:  # batch norm cannot train on one sample
        inputs = tuple(torch.cat([x, x]) if x.ndim and len(x) == 1 else x for x in inputs)
    try:
        return exporter.dense(model, inputs, training=True)
    except CaptureError:
        return None


class Fault(NamedTuple):
    """A call in which the small model differs from the plan; maybe in nothing but a number given to the operator."""

    call: int
    number_alone: bool = False


def _first_fault(
    model: nn.Module, inputs: tuple[Tensor, ...], decision: Decision, exporter: Exporter
) -> Fault | None:
    """The first fault of the small model; None if there can be none, or is none."""
    found = decision.found
    if all(decision.keep[ids].all() for path in found.literals for ids in found.same_sizes(path)):
        return None
    indices = decision.indices(named_tensors(model))
    try:
        got = call_shapes(exporter.small(model, inputs, indices, decision.attributes()))
    except CaptureError as error:
        return Fault(found.last_call(error.module))
    calls = [number for number, call in enumerate(found.calls) if call.op not in LAYOUT]
    for number, real in zip_longest(calls, got):
        if number is None or real is None:
            return Fault(len(found.calls) - 1 if number is None else number)
        planned = found.calls[number].op, decision.sizes[number]
        if (*planned, found.calls[number].numbers) != real:
            return Fault(number, planned == real[:2])
    return None
