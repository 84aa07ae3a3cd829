"""Experts of which a router chooses: the places of the largest values are followed to the weights that they pick.

A router gives every token a value for each expert, and the places of the largest pick slices of weights that hold all
experts. So an expert can leave with its row of the router. What chooses, and what is computed of all values on the way (a
softmax, how many tokens each expert has, where those of each end), is then of the experts that are left, as if the others
were never chosen.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import fx

from prunefuse.pruning._graph.couplings import Ids, Place, Value, fixed
from prunefuse.pruning._graph.trace import Call, Note, Tracing
from prunefuse.pruning._rules.registry import register_rule, unknown

_CHOOSE = {"topk": 1, "max": 1, "argmax": 0}
"""Operators that give places of the largest values, and which of their outputs that is."""
_SAME = frozenset(
    "aten::" + name
    for name in (
        *(
            "view",
            "reshape",
            "flatten",
            "unflatten",
            "squeeze",
            "unsqueeze",
            "expand",
            "transpose",
            "permute",
            "t",
        ),
        *("to", "_to_copy", "type_as", "clone", "detach", "alias", "contiguous", "clamp", "slice", "select"),
        *("unbind", "split", "chunk", "repeat_interleave", "index", "masked_select"),
    )
)
"""Operators whose outputs have values of their first input."""
_AWARE = frozenset(
    "aten::" + name
    for name in (
        *(
            "histc",
            "bincount",
            "one_hot",
            "index",
            "index_select",
            "gather",
            "scatter",
            "scatter_add",
            "sort",
        ),
        *(
            "argsort",
            "zeros_like",
            "ones_like",
            "empty_like",
            "full_like",
            "new_zeros",
            "new_ones",
            "new_empty",
        ),
    )
)
"""Operators whose rules know of places, or that look at nothing but shapes or order."""


def chooses(graph: fx.Graph) -> bool:
    """Whether a graph uses the places of largest values."""
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        place = _CHOOSE.get(schema.name.removeprefix("aten::"), -1) if schema is not None else -1
        if place == 1 and any(
            x.target is operator.getitem and x.args[1] == 1 and x.users for x in node.users
        ):
            return True
        if place == 0 and node.users:
            return True
    return False


def follow(call: Call, axes: Ids | None, inputs: Sequence[Value], outputs: list[Value]) -> list[Value]:
    """The outputs of a call, with what places their values are.

    Args:
        call: The call.
        axes: The axis along which it works, if it gives places of largest values.
        inputs: What it got.
        outputs: What its rule gave.
    """
    name = call.op.removeprefix("aten::").rstrip("_")
    for value in inputs:
        if value.points is not None and f"aten::{name}" not in _SAME | _AWARE:
            call.keep(value.points, "uses the places of channels")
    if axes is not None and len(outputs) > _CHOOSE[name]:
        place = _CHOOSE[name]
        outputs[place] = replace(outputs[place], points=axes)
        call.trace.pointed.append(axes)
    if inputs and inputs[0].points is not None and f"aten::{name}" in _SAME | {"aten::sort"}:
        count = 1 if name == "sort" else len(outputs)
        outputs[:count] = [replace(out, points=inputs[0].points) for out in outputs[:count]]
    return outputs


def given_to_python(tracing: Tracing, node: fx.Node, place: Value, where: Place) -> None:
    """A place became a number of Python: it is followed where the next call picks by it, else its axis stays."""
    if place.points is None:
        return
    after = node.next
    selects = getattr(getattr(after.target, "_schema", None), "name", "") == "aten::select"
    if selects and after.args[2] == node.meta.get("val"):
        tracing.pointing.append(place.points)
    else:
        tracing.couplings.link(place.points, fixed(len(place.points)), where)


def chosen_axis(call: Call, args: Sequence[Any], kwargs: dict[str, Any]) -> Ids | None:
    """The axis along which a call gives places of largest values; None if it does not."""
    name = call.op.removeprefix("aten::")
    if not call.trace.routing or name not in _CHOOSE or not isinstance(args[0], Value) or not args[0].axes:
        return None
    rest = [x for x in args[2 if name == "topk" else 1 :] if not isinstance(x, Value)]
    dim = kwargs.get("dim", next((x for x in rest if type(x) is int), None))
    if dim is None:
        dim = None if name in ("max", "argmax") else -1
    if dim is None or (name == "max" and len(call.shapes) < 2):
        return None
    ids = args[0].axes[dim]
    return ids if ids.any() else None


def settle(tracing: Tracing) -> None:
    """Decide which of the axes that wait are of experts: places point to them, and weights of several axes have them first.

    The others stay.
    """
    if not tracing.waiting:
        return
    component = tracing.couplings.components()
    convolved = {
        value.name
        for call in tracing.calls
        if "conv" in call.op
        for value in call.inputs
        if value.name is not None
    }
    pointed = {0}.union(*(component[ids].tolist() for ids in tracing.pointed))
    experts = {0}
    for name, value in tracing.tensors.items():
        if len(value.axes) > 2 and name not in convolved:
            experts.update(pointed.intersection(component[value.axes[0]].tolist()))
    for _ in tracing.couplings.splits:  # groups of experts, groups of these
        for split in tracing.couplings.splits:
            if component[split.flat].any() and experts.issuperset(component[split.flat].tolist()):
                experts.update(*(component[ids].tolist() for ids in split.factors))
    for ids, where, why, least in tracing.waiting:
        if component[ids].any() and experts.issuperset(component[ids].tolist()):
            if least:
                tracing.chosen.append((ids, least))
        elif ids.any():
            tracing.couplings.link(ids, fixed(len(ids)), where)
            if why and not tracing.couplings.is_open(ids):
                tracing.notes.append(Note(str(where), why))


@register_rule("aten::histc", "aten::bincount")
def counts(call: Call, x: Value, *rest: Any, **named: Any) -> Value:
    """How often every index of an axis is a value of x: an index that is none leaves with its count."""
    if x.points is None or len(call.shape) != 1 or call.shape[0] != len(x.points):
        return unknown(call, x, *rest, **named)[0]
    for ids in x.axes:
        call.keep(ids)
    call.holds(x.points)
    return Value((x.points,))


@register_rule("aten::one_hot")
def one_hot(call: Call, x: Value, classes: int = -1) -> Value:
    """A new last axis: that of which the values are indices, and perhaps one more, for none of them."""
    for ids in x.axes:
        call.keep(ids)
    size = call.shape[-1]
    if x.points is None or size not in (len(x.points), len(x.points) + 1):
        if x.points is not None:
            call.keep(x.points)
        return call.fixed_output()
    call.holds(x.points)
    new = x.points if size == len(x.points) else np.concatenate([x.points, fixed(1)])
    return Value((*map(fixed, call.shape[:-1]), new))
