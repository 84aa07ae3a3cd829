"""From the exported graph of a PyTorch model to its couplings: walk it with the rules."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from prunefuse.pruning._graph.copies import all_names, attribute_of, placed
from prunefuse.pruning._graph.couplings import Place, Value, fixed
from prunefuse.pruning._graph.export import describe
from prunefuse.pruning._graph.trace import OFFER, Call, Kind, Note, Record, Trace, Tracing, Walk, kind_of
from prunefuse.pruning._rules.experts import chooses, chosen_axis, follow, given_to_python, settle
from prunefuse.pruning._rules.norms import normalizes
from prunefuse.pruning._rules.registry import find_rule, unknown, values_in
from prunefuse.pruning._rules.standardized import standardizes_with_gains

if TYPE_CHECKING:
    from prunefuse.pruning._graph.program import Program


def trace(
    model: nn.Module,
    program: Program,
    ignored: Collection[str] = (),
    training: Program | None = None,
    whole: Mapping[Kind, bool] = MappingProxyType({}),
    free: bool = False,
    kept: Mapping[str, Sequence[Tensor | None]] | None = None,
    smallest: Collection[Kind] = (),
    heads: str = "whole",
    whole_heads: Collection[type[nn.Module]] = (),
) -> Trace:
    """Apply the rules to every operator of the exported model.

    Args:
        model: The dense model.
        program: Its graph in evaluation mode.
        ignored: Paths of modules whose output channels are kept whole, and tensors that keep theirs.
        training: Its graph in training mode, for parameters that only that one uses.
        whole: Modules that cannot follow; true: their axes stay whole that are as long as one that may be pruned
            and whose size they give to an operator; false: all axes inside.
        free: The graph will be cut and not the module: sizes and constants follow.
        kept: What is kept is known: indices of every axis of every tensor, None = all.
        smallest: Types of modules that lose the smallest factor of an axis that they split, not the largest.
        heads: What attention loses: ``"whole"`` heads, or channels ``"inside"`` of them.
        whole_heads: Types of modules that lose whole heads in any case.

    Raises:
        RuntimeError: a rule failed.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    known = "known" if kept is not None and heads == "inside" else heads
    tracing = Tracing(modules, frozenset(ignored), free, heads=known, whole_heads=whole_heads)
    for name, (first, tensor) in all_names(model).items():
        if first not in tracing.tensors:
            # Whole numbers are indices and counters: their places are no channels.
            index = tensor.dtype in (torch.int64, torch.int32)
            axes = tuple(map(fixed if index else tracing.couplings.fresh, tensor.shape))
            tracing.tensors[first] = Value(axes, first)
        tracing.tensors[name] = tracing.tensors[first]
    evaluation = _walk(tracing, program)
    walks = [evaluation] if training is None else [evaluation, _walk(tracing.of_next_graph(), training)]
    settle(tracing)
    for name in tracing.ignored & tracing.tensors.keys():
        value = tracing.tensors[name]
        if value.name not in tracing.writers:  # of a weight only what it writes
            for ids in value.axes:
                tracing.couplings.link(ids, fixed(len(ids)), Place("ignore", name))
    if kept is None:
        _keep_unread(tracing, model, walks)
    for path in evaluation.literals:
        if (kind := kind_of(tracing.modules[path])) in whole:
            axes_there = (
                evaluation.same_sizes(path, live=True) if whole[kind] else evaluation.axes_inside(path)
            )
            for ids in axes_there:
                tracing.couplings.link(ids, fixed(len(ids)), Place("forward", path))
            why = (
                "its forward needs sizes that no pruned module has (they are written in its code, or are those of "
                f"several axes at once), so what it reshapes stays whole; {OFFER}"
            )
            tracing.notes.append(Note(describe(model, [path]), why))
    if kept is not None:
        _separate(tracing, kept)
    other = [path for path, module in tracing.modules.items() if type(module) in smallest]
    for split in tracing.couplings.resolve(other):
        tracing.notes.append(Note(str(split.where), "splits a channel axis, or merges two"))
    if not free:
        _keep_lifted(tracing)
    return tracing.traced(evaluation)


def _keep_unread(tracing: Tracing, model: nn.Module, walks: Iterable[Walk]) -> None:
    """Keep whole the buffers that no call takes: nobody reads these tables."""
    read = {id(value) for walk in walks for call in walk.calls for value in call.inputs}
    for first, tensor in all_names(model).values():
        value = tracing.tensors[first]
        if id(value) not in read and not isinstance(tensor, nn.Parameter):
            for ids in value.axes:
                tracing.couplings.link(ids, fixed(len(ids)))


def _separate(tracing: Tracing, kept: Mapping[str, Sequence[Tensor | None]]) -> None:
    """Tie every index that is kept to what stays, and all that are not to each other."""
    gone = tracing.couplings.fresh(2)[:1]
    for name, axes in kept.items():
        for ids, indices in zip(tracing.tensors[name].axes, axes, strict=True):
            stays = np.full(len(ids), indices is None)
            if indices is not None:
                stays[indices.numpy()] = True
            tracing.couplings.link(ids, np.where(stays, 0, gone))


def _walk(tracing: Tracing, program: Program) -> Walk:
    """Apply the rules to one graph."""
    outputs: tuple[tuple[int, ...], ...] = ()
    constants = program.constants
    tracing = replace(tracing, routing=chooses(program.graph))
    tracing.held.update(program.tensors, constants)
    tracing.names.update(program.tensors)
    values: dict[fx.Node, Any] = {}
    for node in program.graph.nodes:
        if node.name in constants:
            axes = map(tracing.couplings.fresh, _shapes(node.meta["val"])[0])
            values[node] = tracing.lifted.setdefault(constants[node.name], Value(tuple(axes)))
        elif node.op == "placeholder":
            values[node] = tracing.tensors.get(program.tensors.get(node.name, "")) or _fixed_value(node)
        elif node.op == "call_function":
            values[node] = _call(tracing, node, values)
        elif node.op == "get_attr":  # the body of a higher-order operator
            values[node] = None
        elif node.op == "output":
            returned = [(x.name, values[x]) for x in tree_leaves(node.args) if isinstance(x, fx.Node)]
            for value in values_in(value for _, value in returned):
                for ids in value.axes if value.points is None else (*value.axes, value.points):
                    tracing.couplings.link(ids, fixed(len(ids)), Place("output", ""))
            users = [value for name, value in returned if name in program.returned]
            outputs = tuple(value.shape for value in values_in(users))
    _keep_what_nothing_was_of(tracing, values)
    return tracing.walked(outputs)


def _keep_what_nothing_was_of(tracing: Tracing, values: Mapping[fx.Node, Any]) -> None:
    """Keep whole the channels of what was computed for nothing, as of objects where none is found, and then not read.

    What reads them is code that did not run: a loop over what is found.
    """
    for node, value in values.items():
        if node.op != "call_function" or node.users:
            continue
        for out in values_in([value]):
            live = [ids for ids in out.axes if ids.any() and not tracing.couplings.is_open(ids)]
            if 0 not in out.shape or not live:
                continue
            made = node.args[0] if node.target is operator.getitem else node
            where = Place(_operator(cast(fx.Node, made))[0] or "", _module(node))
            for ids in live:
                tracing.couplings.link(ids, fixed(len(ids)), where)
            why = (
                "made for no object at all in the example run, so what reads these channels is not known and they stay "
                "whole; give example inputs in which the model finds some"
            )
            tracing.notes.append(Note(str(where), why))


def _keep_lifted(tracing: Tracing) -> None:
    """Keep whole what meets a tensor that is neither parameter nor buffer, which no plan can cut."""
    axes = [ids for value in tracing.lifted.values() for ids in value.axes]
    if not axes:
        return
    component = tracing.couplings.components()
    live = {int(c) for value in tracing.tensors.values() for ids in value.axes for c in component[ids]} - {0}
    for name, value in tracing.lifted.items():
        if any(live.intersection(component[ids].tolist()) for ids in value.axes):
            path, place = placed(name, tracing.modules)
            where = describe(tracing.modules[""], [path])
            attribute = place.partition("[")[0]
            is_attribute = attribute_of(tracing.modules[path], attribute) is not None
            if is_attribute:
                tracing.pinning.append(f"{path}.{attribute}")
            what = f"{attribute!r} of {where}" if is_attribute else f"a tensor that {where} holds"
            why = (
                "a tensor that is neither parameter nor buffer cannot be cut, so the channels it meets stay "
                f"whole; make it one with register_buffer, or {OFFER}"
            )
            tracing.notes.append(Note(what, why))
    for name, value in tracing.lifted.items():
        for ids in value.axes:
            tracing.couplings.link(ids, fixed(len(ids)), Place("held", placed(name, tracing.modules)[0]))


LAYOUT = frozenset("aten::" + name for name in ("contiguous", "clone", "alias", "to", "_to_copy"))
"""Operators that the exporter leaves out where they would do nothing."""


def call_shapes(
    graph: fx.Graph,
) -> list[tuple[str, tuple[tuple[int, ...], ...], tuple[float, ...]]]:
    """What a trace of the graph records of every call, but for :data:`LAYOUT`: name, output shapes, numbers."""
    result = []
    for node in _calls(graph):
        name, shapes = _operator(node)
        if name is not None and name not in LAYOUT:
            result.append((name, shapes, _numbers(node)))
    return result


def placed_shapes(graph: fx.Graph) -> list[tuple[tuple[str, str], tuple[tuple[int, ...], ...]]]:
    """Module and name of every call, and its output shapes."""
    return [
        ((_module(node), name), shapes)
        for node in _calls(graph)
        for name, shapes in [_operator(node)]
        if name is not None
    ]


def _module(node: fx.Node) -> str:
    """Path of the innermost module that makes a call."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return stack[-1][0] if stack else ""


def _numbers(node: fx.Node) -> tuple[float, ...]:
    scale = node.kwargs.get("scale")  # of attention
    if isinstance(scale, int | float):
        return (scale,)
    if torch.Tag.pointwise not in getattr(node.target, "tags", ()):
        return ()
    arguments = (*node.args, *node.kwargs.values())
    return tuple(x for x in arguments if isinstance(x, int | float) and not isinstance(x, bool))


def _calls(graph: fx.Graph) -> Iterator[fx.Node]:
    for node in graph.nodes:
        if (block := _block(node)) is not None:
            yield from _calls(block[0])
        elif node.op == "call_function" and node.target is not operator.getitem:
            yield node


def _operator(node: fx.Node) -> tuple[str | None, tuple[tuple[int, ...], ...]]:
    """Name (None for an assertion, or what gives a number) and output shapes of a call."""
    shapes = _shapes(node.meta.get("val"))
    schema = getattr(node.target, "_schema", None)
    if not shapes and (schema is None or not schema.is_mutable):
        return None, ()
    return schema.name if schema else str(node.target), shapes


def _block(node: fx.Node) -> tuple[fx.Graph, tuple[Any, ...]] | None:
    """The graph that a call stands for, and what it gets: a part of the model without gradients, or under autocast."""
    if str(node.target) not in ("wrap_with_set_grad_enabled", "wrap_with_autocast"):
        return None
    at = next(i for i, x in enumerate(node.args) if isinstance(x, fx.Node))
    body = getattr(node.graph.owning_module, str(cast(fx.Node, node.args[at]).target))
    return body.graph, node.args[at + 1 :]


def _call_block(tracing: Tracing, graph: fx.Graph, inputs: Iterable[Any]) -> Any:
    values = dict(zip(graph.find_nodes(op="placeholder"), inputs, strict=True))
    for node in graph.nodes:
        if node.op == "call_function":
            values[node] = _call(tracing, node, values)
        elif (
            node.op == "get_attr"
        ):  # a tensor that the operator makes, or the body of a higher-order operator
            held = getattr(graph.owning_module, str(node.target), None)
            values[node] = Value(tuple(map(fixed, held.shape))) if isinstance(held, Tensor) else None
    return fx.node.map_arg(graph.output_node().args[0], values.__getitem__)


def _call(tracing: Tracing, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    args: Any = fx.node.map_arg(node.args, values.__getitem__)
    kwargs: Any = fx.node.map_arg(node.kwargs, values.__getitem__)
    if node.target is operator.getitem:
        return args[0][args[1]]
    if (block := _block(node)) is not None:
        graph, operands = block
        return _call_block(tracing, graph, fx.node.map_arg(operands, values.__getitem__))
    name, shapes = _operator(node)
    if name is None:
        for place in values_in(args):
            given_to_python(tracing, node, place, Place(str(node.target), _module(node)))
        return _number(node.meta.get("val"))
    call = Call(
        name,
        _module(node),
        shapes,
        tracing,
        normalizes=_normalizes(node, tracing),
        itemsize=_itemsize(node),
        traced=node,
    )
    rule = find_rule(node.target)
    sums = len(tracing.sums)
    try:
        if name == "aten::resolve_neg" and not node.users:  # the last that is seen of x.numpy()
            for ids in (ids for value in values_in(args) for ids in value.axes):
                call.keep(ids, "gives the values of channels to NumPy")
        if rule is unknown and (parts := parts_of(node)) is not None:
            before = len(tracing.calls)
            result = _call_block(tracing, parts, map(values.__getitem__, node.all_input_nodes))
            del tracing.calls[before:]  # what is compared with other graphs are the calls in these
        else:
            result = rule(call, *args, **kwargs)
        outputs = [result] if isinstance(result, Value) else list(result)
        if tuple(value.shape for value in outputs) != shapes:
            raise ValueError(f"gives {[value.shape for value in outputs]}, the operator {list(shapes)}")
    except Exception as error:
        raise RuntimeError(f"the rule for {call.op} failed in module {call.module!r}: {error}") from error
    if call.module in tracing.ignored:
        for value in outputs:
            for ids in value.axes:
                call.keep(ids)
    inputs = tuple(values_in((*args, *kwargs.values())))
    if tracing.routing:
        outputs = follow(call, chosen_axis(call, args, kwargs), inputs, outputs)
    record = Record(call.op, call.module, inputs, tuple(outputs), _numbers(node), node)
    tracing.calls.append(record)
    tracing.note_made(record, sums, rule.__module__.startswith("prunefuse."))
    return outputs[0] if isinstance(node.meta["val"], Tensor) else outputs


def _itemsize(node: fx.Node) -> int:
    made = node.meta.get("val")
    return made.dtype.itemsize if isinstance(made, Tensor) else 0


def _normalizes(node: fx.Node, tracing: Tracing) -> bool:
    return normalizes(node, tracing.held) or standardizes_with_gains(node, tracing.names)


def _shapes(value: Any) -> tuple[tuple[int, ...], ...]:
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(tuple(map(_number, v.shape)) for v in values if isinstance(v, Tensor))


def _number(size: Any) -> Any:
    """The number that a size with a range of values has for the example inputs."""
    return size.node.hint if isinstance(size, torch.SymInt) else size


def _fixed_value(node: fx.Node) -> Value | None:
    shapes = _shapes(node.meta.get("val"))
    return Value(tuple(map(fixed, shapes[0]))) if shapes else None


def parts_of(node: fx.Node) -> fx.Graph | None:
    """The graph of the operator that a node calls, in terms of others; its inputs are the node's, in order.

    None if the operator is not composed of others, or what it is given is not known.
    """
    operator, inputs = node.target, node.all_input_nodes
    if not isinstance(operator, torch._ops.OpOverload) or not operator._can_decompose():
        return None
    if not all(isinstance(x.meta.get("val"), Tensor) for x in inputs):
        return None

    def composed(*tensors: Tensor) -> Any:
        values = dict(zip(inputs, tensors, strict=True))
        args: Any = fx.node.map_arg(node.args, values.__getitem__)
        kwargs: Any = fx.node.map_arg(node.kwargs, values.__getitem__)
        return operator.decompose(*args, **kwargs)

    try:
        # Each a tensor of its own: nodes of a recorded graph share those that are alike.
        graph = make_fx(composed)(*(_new(x.meta["val"]) for x in inputs)).graph
    except Exception:  # it looks at values
        return None
    for part in graph.nodes:
        part.meta["nn_module_stack"] = node.meta.get("nn_module_stack", {})
    return graph


def _new(like: Tensor) -> Tensor:
    if type(like) is not Tensor or not like.is_meta:
        return like
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="meta")
