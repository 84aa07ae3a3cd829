"""What leaves together with the channels of a layer, and which calls couple it: the text of ``plan.explain``."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

import numpy as np
import numpy.typing as npt
from torch import nn

from prunefuse._inputs import Inputs
from prunefuse.pruning._graph.caches import caches, without_caches
from prunefuse.pruning._graph.couplings import Ids, Link, Place, Value
from prunefuse.pruning._graph.export import Exporter
from prunefuse.pruning._graph.trace import Note, Record, Trace
from prunefuse.pruning._walk import trace

Kept = Mapping[str, Mapping[int, Sequence[int]]]
"""Tensor -> axis -> the indices that are kept, of axes that lose some."""


@dataclass(frozen=True, eq=False)
class Coupled:
    """The couplings of a network that was planned, kept beside the plan.

    Attributes:
        tensors: Every parameter and buffer under each of its names.
        component: The coupled channel of every node; 0 = stays.
        links: The equalities that made them.
        calls: The calls, in order.
        writers: Tensor name -> the axis of its output channels.
        ignored: Modules or nodes whose output channels were to stay.
        notes: What stays whole, and why.
    """

    tensors: Mapping[str, Value]
    component: Ids
    links: tuple[Link, ...]
    calls: tuple[Record, ...]
    writers: Mapping[str, int]
    ignored: Collection[str]
    notes: tuple[Note, ...]

    @staticmethod
    def of(traced: Trace, ignored: Collection[str] = (), notes: Sequence[Note] | None = None) -> Coupled:
        """Those of a trace, without the graph and the model that it is of."""
        names = {frozenset(map(id, value.axes)): value.name for value in traced.tensors.values()}

        def named(value: Value) -> Value:
            """With the name of the tensor, also where it is a transpose of it."""
            name = value.name or (names.get(frozenset(map(id, value.axes))) if value.axes else None)
            return value if name == value.name else Value(value.axes, name)

        return Coupled(
            traced.tensors,
            traced.component,
            traced.links,
            tuple(replace(call, inputs=tuple(map(named, call.inputs)), node=None) for call in traced.calls),
            traced.writers,
            frozenset(ignored),
            traced.notes if notes is None else tuple(notes),
        )

    def reasons(self) -> tuple[str, ...]:
        """Why nothing can leave: for each reason the first weights that it is about."""
        weights: dict[str, list[str]] = {}
        for name, axis in self.writers.items():
            ids = self.tensors[name].axes[axis]
            why = "too few of its channels may leave to be rounded to some"
            if not self.component[ids].any() and len(ids) > 1:
                why = f"all {len(ids)} channels stay {_why_fixed(self, ids)}"
            elif len(ids) == 1:
                why = "the only channel of an axis stays"
            weights.setdefault(why, []).append(name)
        return tuple(
            f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}: {why}"
            for why, names in list(weights.items())[:8]
        )

    def tensors_of(self, name: str) -> list[str]:
        """The tensors of a layer, or the tensor of this name.

        Raises:
            ValueError: there is no such layer or tensor; the message has the nearest names.
        """
        if name in self.tensors:
            return [name]
        if own := [tensor for tensor in self.tensors if tensor.rpartition(".")[0] == name]:
            return own
        users: dict[str, list[str]] = {}
        for call in self.calls:
            users.setdefault(call.module, []).extend(x.name for x in call.inputs if x.name is not None)
        if own := list(dict.fromkeys(users.get(name, ()))):
            return own
        layers = [layer for layer in users if users[layer]]
        names = list(dict.fromkeys(filter(None, [*layers, *self.tensors])))
        inside = [layer for layer in layers if name and layer.startswith(f"{name}.")]
        near = inside or get_close_matches(str(name), names, cutoff=0.4) or layers
        raise ValueError(
            f"name must be a layer or a tensor of the network, got {name!r}; near are {', '.join(near[:4])}"
        )

    def made_at(self, call: Record, where: Place | None) -> bool:
        """Whether this is the call that an equality is from; nodes of ONNX have the names of PyTorch's operators here."""
        return (
            where is not None
            and call.module == where.module
            and (call.op == where.op or where.op.startswith("onnx::"))
        )

    def labels_in(self, value: Value) -> Ids:
        """The coupled channels of all axes of a value."""
        return np.concatenate([self.component[:0], *(self.component[ids] for ids in value.axes)])

    def way_to_what_stays(self, axis: Ids) -> list[Link]:
        """The equalities that lead from an axis to what stays, as few as possible."""
        left = np.concatenate([self.component[:0], *(link.left for link in self.links)])
        right = np.concatenate([self.component[:0], *(link.right for link in self.links)])
        reached = np.zeros(len(self.component), dtype=np.bool_)
        reached[axis[axis != 0]] = True
        edge = np.full(len(reached), -1)  # by which each node was reached
        while not reached[0]:
            edges = np.flatnonzero(reached[left] != reached[right])[
                ::-1
            ]  # so that of several the first call counts
            if not len(edges):
                return []
            nodes = np.where(reached[left[edges]], right[edges], left[edges])
            edge[nodes], reached[nodes] = edges, True
        owner = np.repeat(np.arange(len(self.links)), [len(link.left) for link in self.links])
        way, node = [], 0
        while edge[node] >= 0:
            way.append(self.links[owner[edge[node]]])
            node = int(left[edge[node]] + right[edge[node]] - node)
        return way[::-1]


def coupled_in(model: nn.Module, inputs: Inputs, free: bool, heads: str = "whole") -> Coupled:
    """The couplings of a model, by its graph; ``free``: in which every size can follow; ``heads``: what attention loses.

    Raises:
        RuntimeError: ``torch.export`` cannot capture the model.
    """
    exporter = Exporter(model, inputs, exported=free)
    evaluation = exporter.dense()
    traced = trace(model, evaluation, free=free, heads=heads)
    if traced.pinning and (found := caches(model, inputs, traced.pinning)):
        model = without_caches(model, found)
        exporter = Exporter(model, inputs, exported=free)
        evaluation = exporter.dense()
        traced = trace(model, evaluation, free=free, heads=heads)
    if traced.unused() and (training := exporter.dense_in_training()) is not None:
        traced = trace(model, evaluation, training=training, free=free, heads=heads)
    return Coupled.of(traced)


def explain(coupled: Coupled, name: str, kept: Kept, kinds: Mapping[str, str], lines: Sequence[str]) -> str:
    """The text.

    Args:
        coupled: The couplings.
        name: A layer, or a tensor.
        kept: What the plan keeps.
        kinds: Layer -> its type.
        lines: The plan's notes.

    Raises:
        ValueError: there is no such layer or tensor.
    """
    stays = _stays(coupled, kept)
    own = coupled.tensors_of(name)
    largest = max(len(coupled.tensors[tensor].axes) for tensor in own)
    weights = [tensor for tensor in own if len(coupled.tensors[tensor].axes) >= min(2, largest)]
    told: dict[bytes, str] = {}  # a set of coupled channels -> the block that tells of it
    blocks: dict[tuple[str, bytes], list[str]] = {}
    for tensor in weights:
        for side, dim, axis in _axes(coupled, tensor):
            channels = np.unique(coupled.component[axis]).tobytes()
            if (side, channels) in blocks:
                continue
            whose = "" if tensor == name else f"{tensor.removeprefix(f'{name}.')}, "
            head = f"{side} ({whose}{dim}): {_counted(coupled, axis, stays)}"
            if channels in told and coupled.component[axis].any():
                blocks[side, channels] = [head, f"  leave together with the {told[channels]}"]
            else:
                blocks[side, channels] = [head, *_block(coupled, axis, [name, *own], lines)]
            told.setdefault(channels, side)
    kind = f" ({kinds[name]})" if name in kinds else ""
    return "\n\n".join([f"{name or '(model)'}{kind}", *map("\n".join, blocks.values())])


def _stays(coupled: Coupled, kept: Kept) -> npt.NDArray[np.bool_]:
    """One flag for each coupled channel."""
    stays = np.ones(int(coupled.component.max()) + 1, dtype=np.bool_)
    for name, axes in kept.items():
        for axis, indices in axes.items():
            gone = np.delete(coupled.tensors[name].axes[axis], list(indices))
            stays[coupled.component[gone]] = False
    return stays


def _axes(coupled: Coupled, tensor: str) -> Iterator[tuple[str, str, Ids]]:
    """What is to be told of a tensor: output or input, which dimension, and its axis."""
    value = coupled.tensors[tensor]
    writes = coupled.writers.get(value.name or tensor)
    if writes is None:
        dims = [dim for dim, ids in enumerate(value.axes) if len(ids) > 1]
        for dim in dims or range(len(value.axes)):
            yield "channels", f"dim {dim}", value.axes[dim]
        return
    yield "output channels", f"dim {writes}", value.axes[writes]
    reads = 1 - min(writes, 1)
    if (whole := _input_of_groups(coupled, value)) is not None and reads == 1:
        yield "input channels", f"dim {reads} has those of one group", whole
    elif len(value.axes) > 1:
        yield "input channels", f"dim {reads}", value.axes[reads]


def _input_of_groups(coupled: Coupled, weight: Value) -> Ids | None:
    """The channels that a grouped convolution reads, of which its weight has those of one group."""
    for call in coupled.calls:
        if "conv" in call.op.lower() and any(value.name == weight.name for value in call.inputs):
            channels = call.inputs[0].axes[len(call.outputs[0].axes) - len(weight.axes) + 1]
            return channels if len(channels) > len(weight.axes[1]) else None
    return None


def _counted(coupled: Coupled, axis: Ids, stays: npt.NDArray[np.bool_]) -> str:
    """How many indices of an axis stay, and in what sets they leave."""
    labels = coupled.component[axis]
    live, copies = np.unique(labels[labels != 0], return_counts=True)
    if not len(live):
        count = f"all {len(axis)} stay" if len(axis) > 1 else "1, which stays"
        return f"{count}, {_why_fixed(coupled, axis)}"
    text = f"{int(stays[labels].sum())} of {len(axis)} stay"
    if (copies > 1).any():
        each = f" of {copies[0]}" if (copies == copies[0]).all() else ""
        text += f"; they leave in {len(live)} sets{each}"
    if fixed := int((labels == 0).sum()):
        text += f"; {fixed} of them can never leave"
    return text


def _block(coupled: Coupled, axis: Ids, names: Sequence[str], lines: Sequence[str]) -> list[str]:
    """What is coupled with an axis, by what, and the notes on it."""
    labels = coupled.component[axis]
    channels = np.unique(labels[labels != 0])
    notes = [f"  note: {line}" for line in _notes(coupled, axis, channels, names, lines)]
    if not len(channels):
        return notes
    members = (f"    {line}" for line in _members(coupled, channels))
    operations = (f"    {line}" for line in _operations(coupled, channels))
    return ["  leave together:", *members, "  coupled by:", *operations, *notes]


def _members(coupled: Coupled, channels: Ids) -> list[str]:
    """The parameters and buffers with these channels; those of a module that are alike in one line."""
    members: dict[tuple[str, str], list[str]] = {}
    for name, value in coupled.tensors.items():
        if value.name != name:  # tied to one that was named before
            continue
        for axis, ids in enumerate(value.axes):
            places = np.flatnonzero(np.isin(coupled.component[ids], channels))
            if not len(places):
                continue
            text = f"dim {axis}"
            if len(places) < len(ids):
                first, last = int(places[0]), int(places[-1])
                run = last - first + 1 == len(places)
                text += f" [{first}:{last + 1}]" if run else f", {len(places)} of {len(ids)} indices"
            if name in coupled.writers:
                text += ", makes them" if coupled.writers[name] == axis else ", reads them"
            module, _, tensor = name.rpartition(".")
            members.setdefault((module, text), []).append(tensor)
    names = [
        f"{module}.{', '.join(tensors)}" if module else ", ".join(tensors)
        for (module, _), tensors in members.items()
    ]
    width = max(map(len, names), default=0)
    return [f"{name:{width}}  {text}" for name, (_, text) in zip(names, members, strict=True)]


def _operations(coupled: Coupled, channels: Ids) -> list[str]:
    """The calls that couple these channels, in order; those that do the same in one line."""
    linking: dict[str, set[Place]] = {}  # by their modules
    for link in coupled.links:
        if link.where is not None and np.isin(coupled.component[link.left], channels).any():
            linking.setdefault(link.where.module, set()).add(link.where)
    modules: dict[tuple[str, str], dict[str, None]] = {}
    for call in coupled.calls:
        values = (*call.inputs, *call.outputs)
        if not any(np.isin(coupled.labels_in(value), channels).any() for value in values):
            continue
        links = any(coupled.made_at(call, where) for where in linking.get(call.module, ()))
        if links or "attention" in call.op or _moves(coupled, call, channels):
            key = _short(call.op), _role(coupled, call, channels)
            modules.setdefault(key, {})[call.module or "the model itself"] = None
    lines = [
        f"{op} in {', '.join(places)}" + (f" ({role})" if role else "")
        for (op, role), places in modules.items()
    ]
    return lines or ["nothing else: they are made and read by this layer alone"]


def _short(op: str) -> str:
    return op.rpartition("::")[2].rstrip("_")


def _moves(coupled: Coupled, call: Record, channels: Ids) -> bool:
    """Whether a call gives an axis with some of these channels that no input has."""
    before = {ids.tobytes() for value in call.inputs for ids in value.axes}
    made = [ids for value in call.outputs for ids in value.axes if ids.tobytes() not in before]
    return any(np.isin(coupled.component[ids], channels).any() for ids in made)


_ROLES = (
    ("group_norm", "every group loses the same of its channels"),
    ("norm", "has weights or statistics for each of them"),
    ("cat concat", "puts them beside others"),
    ("chunk split slice narrow glu unbind", "cuts an axis into parts"),
    ("view reshape flatten unflatten", "splits an axis or merges several"),
    ("attention", "loses whole heads"),
    ("lstm gru rnn", "the same units in every gate, layer and direction"),
    ("shuffle depthtospace spacetodepth", "rearranges them"),
    ("pad", "adds constant channels"),
    ("embedding", "makes them"),
)
"""Operators by name, or by a part of it between underscores -> what they do to channels."""


def _role(coupled: Coupled, call: Record, channels: Ids) -> str:
    """What a call does to these channels."""
    op = _short(call.op).lower()
    for value in call.inputs:
        if value.name not in coupled.writers:
            continue
        tensor = coupled.tensors[str(value.name)]
        sides = [
            coupled.writers[str(value.name)] == axis
            for axis, ids in enumerate(tensor.axes)
            if np.isin(coupled.component[ids], channels).any()
        ]
        if "conv" in op and 1 in tensor.shape[:2] and call.inputs[0].shape[-len(tensor.shape) + 1] > 1:
            return "depthwise: one filter for each of them" if True in sides else "reads them"
        if sides:
            return "makes and reads them" if len(set(sides)) > 1 else ("reads them", "makes them")[sides[0]]
    for words, role in _ROLES:
        if not {op, *op.split("_")}.isdisjoint(words.split()):
            return role
    computed = [value for value in call.inputs if value.name is None and len(value.axes)]
    several = sum(bool(np.isin(coupled.labels_in(value), channels).any()) for value in computed) > 1
    if several and op in ("add", "sub", "sum"):
        return "residual: adds tensors, channel by channel"
    if several:
        return "multiplies tensors, channel by channel" if op == "mul" else "takes several tensors with them"
    return ""


def _why_fixed(coupled: Coupled, axis: Ids) -> str:
    """Why an axis stays whole."""
    if not axis.any():
        return "as the only one of its axis" if len(axis) == 1 else "because its places are not channels"
    way = coupled.way_to_what_stays(axis)
    where = way[-1].where if way else None
    if where is None:
        return "because nothing reads them"
    if where.op == "forward":
        why = f"because the code of {where.module or 'the model itself'} has sizes that cannot follow"
    elif where.op == "held":
        why = (
            f"because they meet a tensor that {where.module or 'the model itself'} holds, which cannot be cut"
        )
    elif where.op == "ignore":
        why = f"because {where.module} is ignored"
    elif where.op == "output":
        why = "as outputs of the network"
    elif where.module in coupled.ignored and not _is_read(coupled, way[-1]):
        why = f"because {where.module} is ignored"
    elif _reads_inputs(coupled, where):
        why = f"as inputs of the network, which {_named(where)} takes"
    else:
        why = f"because {_named(where)} needs them whole"
    steps = dict.fromkeys(_named(link.where) for link in way[:-1] if link.where is not None)
    return why + (f"; they are coupled to that by {', '.join(steps)}" if steps else "")


def _named(where: Place) -> str:
    return f"{_short(where.op)} in {where.module or 'the model itself'}"


def _is_read(coupled: Coupled, link: Link) -> bool:
    """Whether an equality is of channels that a weight reads."""
    nodes = np.concatenate([link.left, link.right])
    axes = (
        ids
        for name, writes in coupled.writers.items()
        for axis, ids in enumerate(coupled.tensors[name].axes)
        if axis != writes
    )
    return any(np.isin(ids[ids != 0], nodes).any() for ids in axes)


def _reads_inputs(coupled: Coupled, where: Place) -> bool:
    """Whether what a call takes beside tensors with names is made by no other call."""
    made = {id(value) for call in coupled.calls for value in call.outputs}
    computed = [
        id(value)
        for call in coupled.calls
        if coupled.made_at(call, where)
        for value in call.inputs
        if value.name is None
    ]
    return bool(computed) and made.isdisjoint(computed)


def _notes(
    coupled: Coupled, axis: Ids, channels: Ids, names: Sequence[str], lines: Sequence[str]
) -> list[str]:
    """The plan's notes on an axis: on what it is coupled with, and on the layer by its name."""
    links = [link for link in coupled.links if np.isin(coupled.component[link.left], channels).any()]
    places = [link.where for link in links or coupled.way_to_what_stays(axis) if link.where is not None]
    where = {str(place) for place in places}
    code = {place.module for place in places if place.op in ("forward", "held")}
    quoted = [repr(path) if path else "the model itself (" for path in [*filter(None, names), *code]]
    members = {
        name for name, value in coupled.tensors.items() if np.isin(coupled.labels_in(value), channels).any()
    }
    told = [
        f"{note.what}: {note.why}"
        for note in coupled.notes
        if note.what in where or note.what in members or any(module in note.what for module in quoted)
    ]
    reasons = tuple(note.why for note in coupled.notes)
    told += [line for line in lines if line.partition(":")[0] in names and not line.startswith(reasons)]
    return list(dict.fromkeys(told))
