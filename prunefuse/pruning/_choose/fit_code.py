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

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from itertools import combinations, islice, pairwise, zip_longest
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from prunefuse.pruning._graph.attributes import sizes_of
from prunefuse.pruning._graph.copies import named_tensors
from prunefuse.pruning._graph.couplings import Ids
from prunefuse.pruning._graph.export import CaptureError, Exporter
from prunefuse.pruning._graph.trace import Kind, Record, Size, Trace, kind_of
from prunefuse.pruning._walk import LAYOUT, call_shapes, placed_shapes

Shapes: TypeAlias = tuple[tuple[int, ...], ...]


class Remedy(NamedTuple):
    """What is done about the sizes that the modules of one type give to operators.

    Attributes:
        doubtful: Attributes with the number of an axis that loses channels change, also where an axis that stays
            whole is as long.
        alike: Axes that were equally long keep equally many indices.
        objects: Numbers change too that are attributes of an object that a module holds, as of a configuration; each
            module gets a copy of its own.
        smallest: Of an axis that is split in factors, channels of the smallest factor leave, not of the largest: the size
            of that may be written in the code.
        whole: "live": axes as long as one of theirs that may be pruned stay whole; "all": all axes inside.
    """

    doubtful: bool = True
    alike: bool = False
    objects: bool = False
    smallest: bool = False
    whole: str = ""


STEPS = (
    Remedy(),
    Remedy(doubtful=False),
    Remedy(alike=True),
    Remedy(doubtful=False, alike=True),
    Remedy(objects=True),
    Remedy(alike=True, objects=True),
    Remedy(smallest=True),
    Remedy(whole="live"),
    Remedy(whole="all"),
)


_TRIES = 16
"""How many sets of attributes are tried before axes stay whole: each is an export."""


class Attribute(NamedTuple):
    """An attribute by its name, in all modules of a type."""

    type: type[nn.Module]
    name: str


@dataclass(frozen=True)
class Remedies:
    """What is done about modules whose code could not run with what was decided; at first nothing.

    Attributes:
        steps: Modules -> which of :data:`STEPS`; the first where they are not there. Only modules whose parameters have
            the same shapes as well stay whole together: an attention of one head cannot lose any, the others of its
            type can.
        staying: Attributes that are no sizes, whatever their number.
        comparing: Types whose code compares attributes with sizes, as assertions do, without giving them to an operator.
        whole_heads: Types that lose whole heads, where others lose channels inside of them.
    """

    steps: Mapping[Kind, int] = field(default_factory=dict)
    staying: frozenset[Attribute] = frozenset()
    comparing: frozenset[type[nn.Module]] = frozenset()
    whole_heads: frozenset[type[nn.Module]] = frozenset()

    def step(self, module: nn.Module) -> int:
        """Which of :data:`STEPS` is taken for a module."""
        return self.steps.get(kind_of(module), self.steps.get(type(module), 0))

    @property
    def whole(self) -> dict[Kind, bool]:
        """The modules inside of which axes stay whole -> whether only those that are as long as a live one."""
        return {kind: STEPS[step].whole == "live" for kind, step in self.steps.items() if STEPS[step].whole}

    @property
    def smallest(self) -> list[Kind]:
        """The modules that lose the smallest factor of an axis that they split."""
        return [kind for kind, step in self.steps.items() if STEPS[step].smallest]

    def alike_axes(self, trace: Trace) -> list[list[Ids]]:
        """For every module that shall keep equally long axes equally long, the sets of these."""
        result = []
        for path in trace.literals:
            if STEPS[self.step(trace.modules[path])].alike:
                axes = trace.same_sizes(path, live=True)
                result += [[ids for ids in axes if len(ids) == size] for size in {len(ids) for ids in axes}]
        return result

    def with_step(self, module: nn.Module, step: int) -> Remedies:
        """These, and a later one of :data:`STEPS` for modules like this one."""
        steps = dict(self.steps)
        if STEPS[step].whole:  # the others of the type start again
            steps.pop(type(module), None)
        return replace(self, steps={**steps, kind_of(module) if STEPS[step].whole else type(module): step})

    def with_whole_heads(self, module: nn.Module) -> Remedies:
        """These, where modules of a type start again with whole heads."""
        kinds = {type(module), kind_of(module)}
        steps = {kind: step for kind, step in self.steps.items() if kind not in kinds}
        staying = frozenset(attribute for attribute in self.staying if attribute.type is not type(module))
        return replace(self, steps=steps, staying=staying, whole_heads=self.whole_heads | {type(module)})

    def with_comparing(self, module: nn.Module) -> Remedies:
        """These, and a type whose code compares attributes with sizes."""
        return replace(self, comparing=self.comparing | {type(module)})

    def with_staying(self, attribute: Attribute) -> Remedies:
        """These, and an attribute that is no size."""
        return replace(self, staying=self.staying | {attribute})


@dataclass(frozen=True, eq=False)
class Decision:
    """What is kept.

    Attributes:
        trace: The network.
        keep: One flag for each of its nodes.
        remedies: What was done for the modules' code to run.
        ratio: The fraction that was to be removed.
    """

    trace: Trace
    keep: npt.NDArray[np.bool_]
    remedies: Remedies = Remedies()
    ratio: Fraction = Fraction(0)

    def kept(self, tensors: dict[str, Tensor]) -> dict[str, dict[int, tuple[int, ...]]]:
        """Tensor -> axis -> kept indices, for axes that lose some."""
        places = ((name, axis, self._places(ids)) for name, axis, ids in self._axes(tensors))
        kept: dict[str, dict[int, tuple[int, ...]]] = {}
        for name, axis, indices in places:
            if indices is not None:
                kept.setdefault(name, {})[axis] = tuple(indices.tolist())
        return kept

    def indices(self, tensors: dict[str, Tensor]) -> dict[str, list[Tensor | None]]:
        """For every tensor the kept indices of each axis, None = all."""
        kept: dict[str, list[Tensor | None]] = {name: [] for name in tensors}
        for name, _, ids in self._axes(tensors):
            indices = self._places(ids)
            kept[name].append(None if indices is None else torch.from_numpy(indices))
        return kept

    def _axes(self, tensors: Iterable[str]) -> Iterator[tuple[str, int, Ids]]:
        for name in tensors:
            yield from ((name, axis, ids) for axis, ids in enumerate(self.trace.tensors[name].axes))

    def _places(self, ids: Ids) -> Ids | None:
        """The indices of an axis that stay; None if these are all."""
        stays = self.keep[ids]
        return None if stays.all() else np.flatnonzero(stays)

    def count(self, ids: Ids) -> int:
        """How many indices of an axis stay."""
        return int(self.keep[ids].sum())

    @cached_property
    def sizes(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """The planned shapes of the outputs of every call."""
        counts: dict[int, int] = {}  # calls share most arrays of ids

        def size(ids: Ids) -> int:
            if id(ids) not in counts:
                counts[id(ids)] = self.count(ids)
            return counts[id(ids)]

        return tuple(
            tuple(tuple(map(size, value.axes)) for value in call.outputs) for call in self.trace.calls
        )

    @cached_property
    def channels(self) -> npt.NDArray[np.bool_]:
        """Which nodes are indices of parameters and buffers, or leave with these; others may count what values decide."""
        component = self.trace.component
        own = np.zeros(len(component), dtype=np.bool_)
        for value in self.trace.tensors.values():
            for ids in value.axes:
                own[ids] = True
        live = np.zeros(len(component), dtype=np.bool_)
        live[component[own]] = True
        own[0] = live[0] = False
        return own | live[component]

    @cached_property
    def changing(self) -> dict[Size, tuple[int, bool]]:
        """Attribute with the number of an axis that loses channels -> (how many stay, is it certain).

        It is not where another axis is as long and stays whole, unless an attribute of this name in a module of
        the same type tells: one with the number of axes of one kind only. In tuples only the certain ones change.
        """
        changing: dict[Size, tuple[int, bool]] = {}
        seen: dict[tuple[object, ...], set[bool]] = {}  # -> has it been seen to change, to stay
        comparing = [
            path
            for path, module in self.trace.modules.items()
            if type(module) in self.remedies.comparing and path not in self.trace.literals
        ]
        for path in (*self.trace.literals, *comparing):
            axes = self.trace.literals.get(path) or self.trace.axes_inside(path)
            new = {len(ids): self.count(ids) for ids in reversed(axes) if not self.keep[ids].all()}
            whole = {len(ids) for ids in axes if self.keep[ids].all()}
            for holder in self._holders.get(path, [path]):
                module = self.trace.modules[holder]
                for name, position, x in _numbers(module):
                    if Attribute(type(module), name) in self.remedies.staying | self._counting:
                        continue
                    if x > 1 and (x in new) != (x in whole):
                        seen.setdefault((type(module), name, position), set()).add(x in new)
                    if x in new:
                        changing[holder, name, position] = (new[x], x not in whole)
        for (path, name, position), (value, certain) in list(changing.items()):
            told = seen.get((type(self.trace.modules[path]), name, position))
            if not certain and told == {True}:
                changing[path, name, position] = (value, True)
            elif not certain and (told == {False} or position is not None):
                del changing[path, name, position]
        return changing

    def _counts_of_experts(self, new: Mapping[Size, int]) -> dict[Size, int]:
        """The number of experts under the name that it changes by, in their router and the modules around both.

        A router may choose without a look at it, and a loss of the whole model that balances experts needs it.
        """
        trace = self.trace
        experts = {c for ids, _ in trace.chosen for c in trace.component[ids].tolist()} - {0}
        if not experts:
            return {}

        def gives(path: str, size: int) -> set[bool]:
            """Whether axes of this size that a module gives to operators are of experts, or of something else."""
            axes = (ids for ids in trace.literals.get(path, ()) if len(ids) == size)
            return {not experts.isdisjoint(trace.component[ids].tolist()) for ids in axes}

        changed: dict[tuple[str, int], dict[str, int]] = {}
        for (path, name, position), value in new.items():
            old = getattr(trace.modules[path], name, None) if position is None else None
            if type(old) is int and gives(path, old) == {True}:
                changed.setdefault((name, old), {})[path] = value
        found: dict[Size, int] = {}
        for path, module in trace.modules.items():
            near = path.rpartition(".")[0]
            for (name, old), values in changed.items():
                if path in values or vars(module).get(name) != old or False in gives(path, old):
                    continue
                inside = {value for p, value in values.items() if not path or p.startswith(f"{path}.")}
                beside = {value for p, value in values.items() if p.rpartition(".")[0] == near}
                if len(told := inside or beside) == 1:
                    found[path, name, None] = told.pop()
        return found

    @cached_property
    def _counting(self) -> frozenset[Attribute]:
        """Attributes that number the modules of a type, as ``layer_idx`` does: 0, 1, 2, and so again in the next stack.

        Such a number may be that of an axis, too, and is none of its size.
        """
        values: dict[Attribute, list[int]] = {}
        for module in self.trace.modules.values():
            for name, value in vars(module).items():
                if type(value) is int:
                    values.setdefault(Attribute(type(module), name), []).append(value)
        return frozenset(
            attribute
            for attribute, held in values.items()
            if max(held) > 1
            and held[0] == 0
            and all(value in (0, before + 1) for before, value in pairwise(held))
        )

    @cached_property
    def _holders(self) -> dict[str, list[str]]:
        """Module that makes calls -> it and those next inside it that make none: it may use what they hold."""
        callers = {call.module for call in self.trace.calls}
        holders: dict[str, list[str]] = {}
        for path in self.trace.modules:
            caller = path
            while caller and caller not in callers:
                caller = caller.rpartition(".")[0]
            holders.setdefault(caller, []).append(path)
        return holders

    def next_step(self, module: nn.Module) -> int | None:
        """Which of :data:`STEPS` could be tried for such modules after the one that failed; None if none."""
        mine = [
            ("." in name, certain)
            for (path, name, _), (_, certain) in self.changing.items()
            if type(self.trace.modules[path]) is type(module)
        ]
        doubtful = any(not certain for inner, certain in mine if not inner)
        objects = any(inner for inner, _ in mine)
        choice = any(type(self.trace.modules[path]) is type(module) for path in self.trace.choices)
        later = range(self.remedies.step(module) + 1, len(STEPS))
        useful = (
            step
            for step in later
            if (STEPS[step].doubtful or doubtful)
            and (objects or not STEPS[step].objects)
            and (choice or not STEPS[step].smallest)
        )
        return next(useful, None)

    def attributes(self) -> dict[str, dict[str, int | tuple[int, ...]]]:
        """New values of module attributes, where they change; none if the graph is cut and not the module."""
        trace = self.trace
        if trace.free:
            return {}
        new = {}
        for size, (value, certain) in self.changing.items():
            remedy = STEPS[self.remedies.step(trace.modules[size[0]])]
            if (certain or remedy.doubtful) and (remedy.objects or "." not in size[1]):
                new[size] = value
        new.update(self._counts_of_experts(new))
        sized = dict(trace.sized)
        for path, module in trace.modules.items():
            for (tensor, axis), attribute in sizes_of(module).items():
                tied = trace.tensors.get(f"{path}.{tensor}" if path else tensor)
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
                amounts = held.get(attribute, getattr(trace.modules[path], attribute))
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


class Fault(NamedTuple):
    """A call in which the small model differs from the plan.

    Attributes:
        call: Its number.
        number_alone: Whether it differs in nothing but a number given to the operator.
        module: Path of the module that could not run, if that is why.
    """

    call: int
    number_alone: bool = False
    module: str = ""


def first_fault(decision: Decision, exporter: Exporter) -> Fault | None:
    """The first call in which the small model differs from what was decided; None if there is none."""
    trace = decision.trace
    if trace.free:  # the graph is cut, whose sizes all follow
        return None
    given = (ids for path in trace.literals for ids in trace.same_sizes(path))
    if all(decision.keep[ids].all() for ids in given) and not _holds_sizes(decision):
        return None
    indices = decision.indices(named_tensors(exporter.model))
    try:
        graph = exporter.small(indices, decision.attributes()).graph
    except CaptureError as error:
        return Fault(trace.last_call(error.module), module=error.module)
    if exporter.by_values:
        return _fault_by_place(decision, graph)
    calls = [number for number, call in enumerate(trace.calls) if call.op not in LAYOUT]
    for number, real in zip_longest(calls, call_shapes(graph)):
        if number is None or real is None:
            return Fault(len(trace.calls) - 1 if number is None else number)
        planned = trace.calls[number].op, decision.sizes[number]
        if (*planned, trace.calls[number].numbers) != real:
            return Fault(number, planned == real[:2])
    return None


def _fault_by_place(decision: Decision, graph: fx.Graph) -> Fault | None:
    """The same where values decide how often what is called: only calls with channels are compared, of one module in order."""
    made: dict[tuple[str, str], list[Shapes]] = {}
    for place, shapes in placed_shapes(graph):
        made.setdefault(place, []).append(shapes)
    waiting = {place: iter(shapes) for place, shapes in made.items()}
    for number, call in enumerate(decision.trace.calls):
        has_channels = any(decision.channels[ids].any() for value in call.outputs for ids in value.axes)
        if call.op in LAYOUT or not has_channels:
            continue
        place = call.module, call.op
        # A loop over experts is shorter where some left: then any of these calls will do.
        remaining = [waiting.get(place, iter(()))] + [iter(made.get(place, []))] * bool(decision.trace.chosen)
        if not any(
            _same_channels(decision, call, decision.sizes[number], shapes)
            for real in remaining
            for shapes in real
        ):
            return Fault(number)
    return None


def _holds_sizes(decision: Decision) -> bool:
    """Whether a module that is not PyTorch's has an attribute as large as an axis that loses some: it may compare them."""
    trace = decision.trace
    losing = {
        len(ids) for value in trace.tensors.values() for ids in value.axes if not decision.keep[ids].all()
    }
    return any(
        x in losing
        for module in trace.modules.values()
        if not type(module).__module__.startswith("torch.nn.")
        for _, _, x in _numbers(module)
    )


def _same_channels(decision: Decision, call: Record, planned: Shapes, real: Shapes) -> bool:
    """Whether outputs of a call are as planned, but for the sizes of axes that are none of channels."""
    return [len(shape) for shape in planned] == [len(shape) for shape in real] and all(
        wanted == made
        for value, one, other in zip(call.outputs, planned, real, strict=True)
        for ids, wanted, made in zip(value.axes, one, other, strict=True)
        if decision.channels[ids].any()
    )


def number_that_stays(decision: Decision, fault: Fault, exporter: Exporter) -> Attribute | None:
    """The attribute whose number, which is no size, must reach a call unchanged: by letting each stay in turn."""
    if not fault.number_alone:
        return None
    trace = decision.trace
    attributes = dict.fromkeys(
        Attribute(type(module), name)
        for module in trace.modules_with_literals(fault.call)
        for path, name, _ in decision.changing
        if type(trace.modules[path]) is type(module)
    )
    for attribute in attributes:
        tried = replace(decision, remedies=decision.remedies.with_staying(attribute))
        next_fault = first_fault(tried, exporter)
        if next_fault is None or next_fault.call > fault.call:
            return attribute
    return None


def remedies_for_comparisons(decision: Decision, fault: Fault) -> Remedies | None:
    """That the module which could not run compares attributes with sizes; None if it gives sizes to operators instead."""
    trace, remedies = decision.trace, decision.remedies
    module = trace.modules.get(fault.module)
    if (
        not fault.module
        or module is None
        or type(module) in remedies.comparing
        or fault.module in trace.literals
    ):
        return None
    tried = remedies.with_comparing(module)
    changes = replace(decision, remedies=tried).changing.keys() - decision.changing.keys()
    return tried if changes else None


def next_remedies(decision: Decision, fault: Fault) -> Remedies | None:
    """One step further for the last modules before a fault that have one left; None if none has."""
    shortened = {type(decision.trace.modules[path]) for path in decision.trace.shortened}
    for module in decision.trace.modules_with_literals(fault.call):
        step = decision.next_step(module)
        if type(module) in shortened and (step is None or STEPS[step].smallest or STEPS[step].whole):
            return decision.remedies.with_whole_heads(module)
        if step is not None:
            return decision.remedies.with_step(module, step)
    return None


def remedies_before_whole(decision: Decision, fault: Fault) -> Iterator[tuple[Remedies, int]]:
    """Where the next step would be to keep axes whole: that some attributes stay, of several with a number in doubt.

    As many heads as each has channels are such numbers: one of the two attributes is to change.

    Yields:
        Remedies that start again for the modules of this type, and the last call that these must bring in order.
    """
    trace = decision.trace
    for module in trace.modules_with_literals(fault.call):
        if (step := decision.next_step(module)) is None:
            continue
        if STEPS[step].whole == "live":
            doubtful = dict.fromkeys(
                Attribute(type(module), name)
                for (path, name, position), (_, certain) in decision.changing.items()
                if type(trace.modules[path]) is type(module) and not certain and position is None
            )
            last = max(trace.last_call(path) for path, other in trace.modules.items() if other is module)
            again = decision.remedies.with_step(module, 0)
            sets = (some for size in range(1, len(doubtful)) for some in combinations(doubtful, size))
            for staying in islice(sets, _TRIES):
                yield replace(again, staying=again.staying.union(staying)), last
        return
