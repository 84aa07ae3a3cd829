"""What walks through a network find: its couplings, and what a plan needs to know beside them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from torch import nn

from prunefuse.pruning._graph.attributes import padding_of
from prunefuse.pruning._graph.couplings import Couplings, Ids, Link, Place, Value, fixed

if TYPE_CHECKING:
    from torch import fx

OFFER = 'the exported program can lose them: expressed_by="program"'
"""What notes say of channels that only the code of a module keeps whole."""

Size: TypeAlias = tuple[str, str, int | None]
"""A size that a module holds: module path, attribute, position in the attribute if it is a tuple."""
Kind: TypeAlias = "type[nn.Module] | tuple[type[nn.Module], tuple[tuple[int, ...], ...]]"
"""Modules that are treated alike: of one type, or also with parameters of the same shapes."""


def kind_of(module: nn.Module) -> Kind:
    """The type and the shapes of the parameters."""
    return type(module), tuple(tuple(parameter.shape) for parameter in module.parameters())


@dataclass(frozen=True)
class Record:
    """One operator call: its name, the module that makes it, the tensors that go in and come out.

    Also the numbers that a pointwise operator gets, which pruning must not change: they are no sizes; and the node of
    PyTorch's graph.
    """

    op: str
    module: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    numbers: tuple[float, ...] = ()
    node: fx.Node | None = None


@dataclass(frozen=True)
class Product:
    """One contraction: a multiply-add for every combination of one index of each of some axes.

    Attributes:
        module: Path of the module that makes the call.
        weight: The parameter or buffer that is multiplied; None if all factors are computed.
        times: The product of the sizes of the axes that no channel can leave.
        axes: The other axes.
    """

    module: str
    weight: str | None
    times: int
    axes: tuple[Ids, ...]


class Waiting(NamedTuple):
    """An axis that stays whole unless its indices are experts: those that stay are chosen from as if there were no others.

    Attributes:
        ids: The axis.
        where: The call that works along it.
        why: For the notes; "" for none.
        least: How many indices that call chooses.
    """

    ids: Ids
    where: Place
    why: str
    least: int


@dataclass(frozen=True)
class Sum:
    """A call that sums over channels: what is not kept must add nothing, for the call to give what the small one gives.

    Attributes:
        where: The call.
        factors: Tensors that it multiplies there, and the axes of each over which it sums. If one is zero at the channels
            that leave, nothing is added.
        call: Its record; None while the rule runs.
    """

    where: Place
    factors: tuple[tuple[Value, tuple[int, ...]], ...]
    call: Record | None = None


@dataclass(frozen=True)
class Statistic:
    """A call that takes a mean or a variance over channels.

    Attributes:
        where: The call.
        axes: The channels.
        unlike: Why it changes although every channel is there equally often; "" if it does not.
        near: Whether it changes by little then.
    """

    where: Place
    axes: tuple[Ids, ...]
    unlike: str = ""
    near: bool = True


class Note(NamedTuple):
    """What stays whole, and why."""

    what: str
    why: str


def note_lines(notes: Iterable[Note]) -> tuple[str, ...]:
    """One line per reason, with the first places where it applies."""
    places: dict[str, dict[str, None]] = {}  # the inner dict is an ordered set
    for what, why in notes:
        places.setdefault(why, {})[what] = None
    shown = 4
    return tuple(
        f"{why}: {', '.join(list(mine)[:shown])}"
        + (f" and {len(mine) - shown} more" if len(mine) > shown else "")
        for why, mine in places.items()
    )


@dataclass(frozen=True)
class Walk:
    """What one walk through the operators of a graph found.

    Attributes:
        calls: Every operator call, in order.
        literals: Module path -> axes whose sizes the module gives to operators as numbers, from an attribute,
            from the shape of a tensor or written in its code: the graph does not say which.
        products: The contractions, by which FLOPs are counted.
        outputs: Shapes of the tensors that the graph returns.
    """

    calls: tuple[Record, ...] = ()
    literals: Mapping[str, tuple[Ids, ...]] = field(default_factory=dict)
    products: tuple[Product, ...] = ()
    outputs: tuple[tuple[int, ...], ...] = ()

    def last_call(self, path: str) -> int:
        """The number of the last call from inside a module."""
        inside = f"{path}." if path else ""
        numbers = [
            n for n, call in enumerate(self.calls) if call.module == path or call.module.startswith(inside)
        ]
        return numbers[-1] if numbers else len(self.calls) - 1

    def axes_inside(self, path: str) -> list[Ids]:
        """The axes that may be pruned of all tensors that calls from inside a module take or give."""
        inside = f"{path}." if path else ""
        axes: dict[int, Ids] = {}
        for call in self.calls:
            if call.module == path or call.module.startswith(inside):
                for value in (*call.inputs, *call.outputs):
                    axes.update((id(ids), ids) for ids in value.axes if ids.any())
        return list(axes.values())

    def same_sizes(self, path: str, live: bool = False) -> list[Ids]:
        """Those of them that are as long as one (a live one) whose size the module gives to an operator."""
        sizes = {len(ids) for ids in self.literals.get(path, ()) if ids.any() or not live}
        return [ids for ids in self.axes_inside(path) if len(ids) in sizes]


@dataclass(frozen=True)
class Trace(Walk):
    """A network as planning sees it: the walk in evaluation mode, and what all walks say of its tensors.

    Attributes:
        modules: Path -> module.
        free: Whether every size and constant can follow, since the graph is cut and not the module.
        tensors: Every parameter and buffer under each of its names; tied names share one value, which
            carries the first of them.
        lifted: Tensors that the graph holds and the model does not name.
        component: The coupled channel of every node; 0 = stays.
        links: The equalities that made them.
        writers: Tensor name -> the axis of its output channels, for weights of convolutions and linear maps.
        sized: Which channels a module attribute counts.
        notes: What was kept whole, and why.
        pinning: Module path and attribute of the tensors that no plan can cut, and whose channels stay for that.
        choices: Paths of the modules that split an axis of which another factor could lose channels.
        chosen: Axes of experts, and how many of them a call chooses.
        multiples: Axes of which a kernel takes nothing but multiples of a number of channels, and that number.
        shortened: Paths of the modules with attention whose heads can lose channels.
        queries: Tensor -> an axis, and its indices that make queries whose length is the scale of their scores.
        sums: The calls that sum over channels.
        statistics: The calls that take statistics over channels.
        made: ``id`` of a computed value -> the call that made it, also those that composite operators consist of.
        unlisted: Calls by rules from outside that have not said over what they sum.
    """

    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    free: bool = False
    tensors: Mapping[str, Value] = field(default_factory=dict)
    lifted: Mapping[str, Value] = field(default_factory=dict)
    component: Ids = field(default_factory=lambda: fixed(1))
    links: tuple[Link, ...] = ()
    writers: Mapping[str, int] = field(default_factory=dict)
    sized: Mapping[Size, Ids] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()
    pinning: tuple[str, ...] = ()
    choices: frozenset[str] = frozenset()
    chosen: tuple[tuple[Ids, int], ...] = ()
    multiples: tuple[tuple[Ids, int], ...] = ()
    shortened: frozenset[str] = frozenset()
    queries: Mapping[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    sums: tuple[Sum, ...] = ()
    statistics: tuple[Statistic, ...] = ()
    made: Mapping[int, Record] = field(default_factory=dict)
    unlisted: tuple[Record, ...] = ()

    def unused(self) -> list[str]:
        """The parameters and buffers that no call takes."""
        used = {value.name for call in self.calls for value in call.inputs}
        tensors = self.tensors.values()
        return list(dict.fromkeys(str(x.name) for x in tensors if x.axes and x.name not in used))

    def modules_with_literals(self, last: int) -> list[nn.Module]:
        """The modules that gave sizes to operators, from call number ``last`` backwards."""
        paths = dict.fromkeys(call.module for call in self.calls[last::-1] if call.module in self.literals)
        return [self.modules[path] for path in paths]


@dataclass(frozen=True)
class Tracing:
    """A trace while it is made: rules write to it, and nothing keeps it.

    Attributes:
        modules: Path -> module.
        ignored: Paths of the modules whose output channels are kept whole, and tensors that keep theirs.
        free: As of :class:`Trace`; so are the others, up to the notes.
        couplings: The equalities.
        pinning: As of :class:`Trace`.
        held: Names of the nodes of the graph that are parameters, buffers or constants.
        choices: Tensor name -> the axes of which one may be that in ``writers``.
        routing: Whether the graph that is walked now uses places of the largest values.
        waiting: Axes that stay whole unless they are of experts.
        chosen: As of :class:`Trace`; so are the multiples.
        pointed: Axes to which places point.
        pointing: Of the place that Python was given last, and takes next: the axis that it is of.
        heads: What attention loses: ``"whole"`` heads, channels ``"inside"`` of them, or what is ``"known"``.
        whole_heads: Types of modules that lose whole heads in any case.
        shortened: As of :class:`Trace`; so are queries.
        names: Node of the graph that is walked now -> the parameter or buffer that it is.
        sums: As of :class:`Trace`; so are statistics, made and unlisted.
        calls: Those of the graph that is walked now; so are literals and products.
    """

    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    free: bool = False
    tensors: dict[str, Value] = field(default_factory=dict)
    lifted: dict[str, Value] = field(default_factory=dict)
    couplings: Couplings = field(default_factory=Couplings)
    writers: dict[str, int] = field(default_factory=dict)
    pinning: list[str] = field(default_factory=list)
    held: set[str] = field(default_factory=set)
    choices: dict[str, tuple[int, ...]] = field(default_factory=dict)
    routing: bool = False
    waiting: list[Waiting] = field(default_factory=list)
    chosen: list[tuple[Ids, int]] = field(default_factory=list)
    multiples: list[tuple[Ids, int]] = field(default_factory=list)
    pointed: list[Ids] = field(default_factory=list)
    pointing: list[Ids] = field(default_factory=list)
    sized: dict[Size, Ids] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    heads: str = "whole"
    whole_heads: Collection[type[nn.Module]] = ()
    shortened: set[str] = field(default_factory=set)
    queries: dict[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    sums: list[Sum] = field(default_factory=list)
    statistics: list[Statistic] = field(default_factory=list)
    made: dict[int, Record] = field(default_factory=dict)
    unlisted: list[Record] = field(default_factory=list)
    calls: list[Record] = field(default_factory=list)
    literals: dict[str, list[Ids]] = field(default_factory=dict)
    products: list[Product] = field(default_factory=list)

    def of_next_graph(self) -> Tracing:
        """The same for another graph of the model."""
        return replace(self, names={}, calls=[], literals={}, products=[])

    def walked(self, outputs: tuple[tuple[int, ...], ...]) -> Walk:
        """What was found in the graph that is walked now, which gives outputs of these shapes."""
        literals = {path: tuple(axes) for path, axes in self.literals.items()}
        return Walk(tuple(self.calls), literals, tuple(self.products), outputs)

    def traced(self, walk: Walk) -> Trace:
        """The trace: a walk, with what all of them say."""
        component = self.couplings.components()
        experts = {channel for ids, _ in self.chosen for channel in component[ids].tolist()} - {0}
        for name, axes in self.choices.items():
            live = [axis for axis in axes if component[self.tensors[name].axes[axis]].any()]
            live.sort(
                key=lambda axis: not experts.isdisjoint(component[self.tensors[name].axes[axis]].tolist())
            )
            self.writers[name] = next(iter(live), self.writers[name])
        return Trace(
            calls=walk.calls,
            literals=walk.literals,
            products=walk.products,
            outputs=walk.outputs,
            modules=self.modules,
            free=self.free,
            tensors=self.tensors,
            lifted=self.lifted,
            component=component,
            links=tuple(self.couplings.links),
            writers=self.writers,
            sized=self.sized,
            notes=tuple(self.notes),
            pinning=tuple(self.pinning),
            choices=frozenset(self.couplings.choices),
            chosen=tuple(self.chosen),
            multiples=tuple(self.multiples),
            shortened=frozenset(self.shortened),
            queries=self.queries,
            sums=tuple(self.sums),
            statistics=tuple(self.statistics),
            made=self.made,
            unlisted=tuple(self.unlisted),
        )

    def note_made(self, record: Record, first_sum: int, listed: bool) -> None:
        """Remember what a call has made, and which sums it is, those from ``first_sum`` on that no call inside it is."""
        for value in record.outputs:
            if value.name is None:
                self.made.setdefault(id(value), record)
        for n in range(first_sum, len(self.sums)):
            if self.sums[n].call is None:
                self.sums[n] = replace(self.sums[n], call=record)
        if not listed and len(self.sums) == first_sum:
            self.unlisted.append(record)

    def origin(self, value: Value) -> Value:
        """The parameter or buffer that a computed value has the shape of, or is a part of; else itself."""
        family = {id(value)}
        for call in reversed(self.calls):
            if not family.isdisjoint(map(id, call.outputs)):
                family.update(map(id, call.inputs))
                for source in call.inputs:
                    if source.name is not None and _is_part(value, source):
                        return source
        return value

    def sliced(self, value: Value) -> Value:
        """The parameter or buffer of three or more axes that a computed value is, transposed, or a slice of; else itself."""
        found = value
        while found.name is None:
            made = next((c for c in reversed(self.calls) if any(found is out for out in c.outputs)), None)
            name = "" if made is None else made.op.removeprefix("aten::")
            if made is None or name not in (*_REARRANGING, *_SLICING):
                return value
            if name in _SLICING[1:] and all(x.points is None for x in made.inputs[1:]):
                return value
            found = made.inputs[0]
        return found if len(found.axes) > 2 else value


_SLICING = ("select", "index", "index_select")
_REARRANGING = (
    *("t", "transpose", "permute", "mT", "numpy_T", "swapaxes", "swapdims"),
    *("to", "_to_copy", "type_as", "contiguous", "clone", "detach", "alias"),
)


def _is_part(value: Value, source: Value) -> bool:
    """Whether all axes are as long as those of the source, or have a part of their ids."""
    return len(value.axes) == len(source.axes) and all(
        len(mine) == len(ids) or bool(np.isin(mine, ids).all())
        for mine, ids in zip(value.axes, source.axes, strict=True)
    )


@dataclass(frozen=True)
class Call:
    """One operator call, as a rule sees it.

    Attributes:
        op: The operator's name, such as ``aten::conv2d``.
        module: Path of the innermost module that makes the call.
        shapes: The shape of each output tensor.
        trace: Where the findings go; rules use the methods below.
        normalizes: Whether it is a statistic over channels that serves nothing but to normalize these.
        itemsize: Bytes of an element of the only, or the first, output; 0 where that is not known.
        traced: The call in PyTorch's graph, if it is one.
    """

    op: str
    module: str
    shapes: tuple[tuple[int, ...], ...]
    trace: Tracing
    normalizes: bool = field(default=False, kw_only=True)
    itemsize: int = field(default=0, kw_only=True)
    traced: fx.Node | None = field(default=None, kw_only=True)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the only, or the first, output."""
        return self.shapes[0]

    def link(self, left: Ids, right: Ids) -> None:
        """Channel i of the one axis must leave with channel i of the other, for all i."""
        self.trace.couplings.link(left, right, self.where)

    def keep(self, ids: Ids, why: str = "") -> None:
        """Keep an axis whole; with a reason, the plan's notes name this call."""
        if ids.any():
            self.trace.couplings.link(ids, fixed(len(ids)), self.where)
            if why and not self.trace.couplings.is_open(ids):
                self.note(why)

    def keep_unless_experts(self, ids: Ids, why: str = "", least: int = 0) -> None:
        """Keep an axis whole, but not if it is of experts of which a router chooses: then at least so many."""
        if self.trace.routing:
            self.trace.waiting.append(Waiting(ids, self.where, why, least))
        else:
            self.keep(ids, why)

    def note(self, why: str) -> None:
        """Name this call in the plan's notes."""
        self.trace.notes.append(Note(str(self.where), why))

    @property
    def where(self) -> Place:
        """This call, as the notes and explanations name it."""
        return Place(self.op, self.module)

    def holds(self, ids: Ids, attribute: str = "", position: int | None = None) -> None:
        """Say that the calling module gives the size of this axis to the operator, as a number.

        Args:
            ids: The axis.
            attribute: The module attribute with that number, if the module has it; else any may be.
            position: Where in the attribute, if it is a tuple.
        """
        if attribute and hasattr(self.trace.modules.get(self.module), attribute):
            self.trace.sized.setdefault((self.module, attribute, position), ids)
        else:
            self.trace.literals.setdefault(self.module, []).append(ids)

    def counts(self, ids: Ids, attribute: str) -> None:
        """Say that an attribute of the calling module, if it has it, is the size of this axis."""
        if hasattr(self.trace.modules.get(self.module), attribute):
            self.holds(ids, attribute)

    def fixed_output(self, index: int = 0) -> Value:
        """An output of this call none of whose axes can be pruned."""
        return Value(tuple(fixed(size) for size in self.shapes[index]))

    def multiply(self, *axes: Ids, weight: str | None = None) -> None:
        """Count a contraction: a multiply-add for every combination of one index of each of these axes.

        Args:
            axes: Every axis of the factors once, those that are summed over included.
            weight: The parameter or buffer that is multiplied, if one is.
        """
        live = tuple(ids for ids in axes if ids.any())
        times = math.prod(len(ids) for ids in axes if not ids.any())
        self.trace.products.append(Product(self.module, weight, times, live))

    def apply_weight(self, weight: Value, out_axis: int, over: Iterable[Ids] | None = None) -> None:
        """Record that ``weight`` computes the output's channels: for their score, and for the FLOPs.

        Args:
            weight: The weight.
            out_axis: The axis of its output channels.
            over: The axes for all of whose indices it is applied; None: as often as there are outputs of each channel.
        """
        if over is None:
            over = [fixed(math.prod(self.shape) // len(weight.axes[out_axis]))]
        named = weight if weight.name is not None else self.trace.origin(weight)
        self.multiply(*weight.axes, *over, weight=named.name or self.trace.sliced(weight).name)
        if named.name is not None:
            self.writes(named, out_axis)
        else:
            self.writes_as_slice(weight, out_axis)

    def writes_as_slice(self, weight: Value, out_axis: int) -> None:
        """The same as :meth:`writes`, if the value is a slice of a parameter or buffer, as the weight of one expert."""
        source = self.trace.sliced(weight)
        axis = [n for n, ids in enumerate(source.axes) if ids is weight.axes[out_axis]]
        if source is not weight and axis:
            self.writes(source, axis[0])

    def sums(self, *factors: tuple[Value, int | Sequence[int]]) -> None:
        """Say over which channels the call sums: tensors that it multiplies there, and the axes of each.

        Name the weight first. What `PruningPlan.fuse_` writes with ``complement="preserve"`` has zeros there.
        """
        self.trace.sums.append(Sum(self.where, tuple((x, _from_front(x, axes)) for x, axes in factors)))

    def takes_statistics(self, *axes: Ids, unlike: str = "", near: bool = True) -> None:
        """Say that the call takes means or variances over channels.

        Args:
            axes: The channels.
            unlike: Why the statistic changes where every channel is there twice; "" if it does not.
            near: Whether it changes by little then.
        """
        if any(ids.any() for ids in axes):
            self.trace.statistics.append(Statistic(self.where, axes, unlike, near))

    def writes(self, weight: Value, out_axis: int, *others: int) -> None:
        """Record that a value, if it is a parameter or buffer, computes the output's channels: for their score.

        Where several axes are of the output, as experts and their channels are, the first counts that may lose some.
        """
        if weight.name is None:
            return
        self.trace.writers[weight.name] = out_axis
        if others:
            self.trace.choices[weight.name] = (out_axis, *others)
        if not {weight.name, weight.name.rpartition(".")[0]}.isdisjoint(self.trace.ignored):
            for axis in (out_axis, *others):
                self.keep(weight.axes[axis])

    def pad(self, ids: Ids, axis: int, before: int, after: int) -> Ids:
        """The ids of an axis after adding constant channels, whose number the calling module must hold."""
        module = self.trace.modules.get(self.module)
        if self.trace.free:
            fresh = self.trace.couplings.fresh
            return np.concatenate([fresh(before), ids, fresh(after)])
        held = None if module is None else padding_of(module)
        if held is None:
            why = f"pads channels by amounts written in the code; use a module listed with register_padding, or {OFFER}"
            self.keep(ids, why)
            return fixed(before + len(ids) + after)
        position = 2 * (len(self.shape) - 1 - axis)
        parts = []
        for side, size in enumerate((before, after)):
            slot = (held, position + side) if isinstance(held, str) else (held[side], None)
            key: Size = (self.module, *slot)
            added = self.trace.couplings.fresh(size) if size else fixed(0)
            if key in self.trace.sized:  # the module is called again, with the same amounts
                self.link(self.trace.sized[key], added)
            self.trace.sized[key] = added
            parts.append(added)
        return np.concatenate([parts[0], ids, parts[1]])


def _from_front(value: Value, axes: int | Sequence[int]) -> tuple[int, ...]:
    return tuple(axis % len(value.axes) for axis in ([axes] if isinstance(axes, int) else axes))


def fix_unranked(traced: Trace, *, least: int = 1) -> tuple[Ids, list[Note]]:
    """Keep what no weight writes: there is nothing to rank it by.

    Notes name the tensors with such channels, if these stand for ``least`` nodes or more: an index that is tied to no
    other is one node.

    Returns:
        The coupled channel of every node, and the notes.
    """
    component = traced.component
    ranked = np.zeros(len(component), dtype=np.bool_)
    ranked[0] = True
    for name, axis in traced.writers.items():
        ranked[component[traced.tensors[name].axes[axis]]] = True
    sizes = np.bincount(component)
    notes = []
    for name, value in traced.tensors.items():
        unranked = [component[ids][~ranked[component[ids]]] for ids in value.axes]
        if any((sizes[channels] >= least).any() for channels in unranked):
            notes.append(
                Note(name, "no convolution or linear map writes these channels, so nothing ranks them")
            )
    return np.where(ranked[component], component, 0), notes
