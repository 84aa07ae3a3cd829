"""The pruned exported program: what a plan comes to where the model's own code has sizes written in it.

The graph of the dense model is traced once more, with every index that the plan keeps tied to what stays and all others
to each other, so that it is known of every axis of every call how much of it is left. Weights and constants are cut,
sizes that operators get as numbers are set to these counts, and the result is exported, by which torch runs all shapes
through it; they must be the planned ones, call by call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from prunefuse.pruning.arguments import checked_inputs
from prunefuse.pruning.capture import capture, export, first_line
from prunefuse.pruning.coupling import Ids
from prunefuse.pruning.cutting import cut_tensor
from prunefuse.pruning.fitting import Decision
from prunefuse.pruning.graph import LAYOUT, call_shapes, trace
from prunefuse.pruning.identity import all_names
from prunefuse.pruning.plan import PruningPlan
from prunefuse.pruning.trace import Record, Trace

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def extract_program(
    model: nn.Module,
    plan: PruningPlan,
    example_inputs: Tensor | Sequence[Tensor],
    dynamic_shapes: Any,
    training: bool,
) -> ExportedProgram:
    """See :meth:`PruningPlan.extract_program`."""
    kept = plan.kept_indices(model)
    inputs = checked_inputs(example_inputs)
    program = export(model, inputs, training, dynamic_shapes)
    found = trace(model, program, free=True, kept=kept)
    decision = Decision(found, _kept_nodes(found, kept), {})
    for call, shapes in zip(found.calls, decision.sizes, strict=True):
        _set_sizes(call, shapes, decision.count)
    _cut(program, model, kept, decision)
    try:
        small = capture(program.module(check_guards=False), inputs, dynamic_shapes)
    except Exception as error:
        raise RuntimeError(f"the pruned program does not fit together: {first_line(error)}") from error
    _check(small, decision)
    return small


def _kept_nodes(
    found: Trace, kept: Mapping[str, Sequence[Tensor | None]]
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """One flag per node of a trace into which the kept indices went."""
    component = found.couplings.components()
    keep = np.ones(len(component), dtype=np.bool_)
    for name, axes in kept.items():
        for ids, indices in zip(found.tensors[name].axes, axes, strict=True):
            if indices is not None:
                gone = np.delete(ids, indices.numpy())
                keep[np.isin(component, component[gone])] = False
                if not keep[0] or len(np.unique(component[gone])) > 1:
                    raise ValueError(
                        f"plan: damaged, or for another model: what it removes of {name!r} the graph needs elsewhere"
                    )
    return keep


def _set_sizes(call: Record, planned: tuple[tuple[int, ...], ...], count: Callable[[Ids], int]) -> None:
    """Change the sizes among the arguments of a call."""
    node = call.node
    schema = getattr(node.target, "_schema", None) if node is not None else None
    if node is None or schema is None:
        return
    names = [formal.name for formal in schema.arguments]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    for name, value in given.items():
        new = _resized(call, name, given, planned, count)
        if new is not None and new != value:
            if name in node.kwargs:
                node.update_kwarg(name, new)
            else:
                node.update_arg(names.index(name), new)


def _resized(
    call: Record,
    name: str,
    given: Mapping[str, Any],
    planned: tuple[tuple[int, ...], ...],
    count: Callable[[Ids], int],
) -> Any:
    """What an argument must be in the small graph; None where it stays."""
    op, value, dim = call.op.removeprefix("aten::"), given[name], given.get("dim", 0)
    if name in ("size", "shape") and isinstance(value, list | tuple) and len(value) == len(planned[0]):
        return _sizes(value, call.outputs[0].shape, planned[0])
    if name == "normalized_shape":
        return list(planned[0][-len(value) :])
    if op == "unflatten" and name == "sizes":
        axes = slice(dim, dim + len(value)) if dim >= 0 else slice(dim - len(value) + 1, (dim + 1) or None)
        return _sizes(value, call.outputs[0].shape[axes], planned[0][axes])
    if op in ("slice", "narrow") and name in ("start", "end", "length"):
        ids, size = call.inputs[0].axes[dim], call.outputs[0].shape[dim]
        if count(ids) == len(ids):
            return None
        first = range(len(ids))[given.get("start") :].start
        start, end = count(ids[:first]), count(ids[: first + size])
        return {"start": start, "end": end, "length": end - start}[name]
    if name in ("split_size", "split_sizes", "indices") and op in (
        "split",
        "split_with_sizes",
        "tensor_split",
    ):
        sizes = [shape[dim] for shape in planned]
        if name == "indices":
            return np.cumsum(sizes)[:-1].tolist()
        return (
            sizes if isinstance(value, list | tuple) else _unless_same(sizes[0], call.outputs[0].shape[dim])
        )
    if name == "groups" and op.startswith("conv") and value > 1:
        x, weight = call.inputs[:2]
        inside = len(x.axes) - len(weight.axes) + 1
        return count(x.axes[inside]) // count(weight.axes[1])
    if name == "num_groups" and value == len(call.inputs[0].axes[1]):
        return count(call.inputs[0].axes[1])
    if name == "pad" and isinstance(value, list | tuple):
        return _paddings(value, call.outputs[0].axes, count)
    return None


def _unless_same(new: int, old: int) -> int | None:
    return None if new == old else new


def _sizes(value: Sequence[Any], dense: Sequence[int], planned: Sequence[int]) -> list[Any]:
    """Sizes, of which -1 and those that are computed stay; one that is computed and comes out wrong is left to torch."""
    return [
        (old if before == after else -1) if isinstance(old, fx.Node) else old if old == -1 else after
        for old, before, after in zip(value, dense, planned, strict=True)
    ]


def _paddings(value: Sequence[Any], axes: Sequence[Ids], count: Callable[[Ids], int]) -> list[Any]:
    new = list(value)
    for position, ids in enumerate(reversed(axes[len(axes) - len(value) // 2 :])):
        if count(ids) < len(ids):
            before, after = value[2 * position : 2 * position + 2]
            new[2 * position : 2 * position + 2] = count(ids[:before]), count(ids[len(ids) - after :])
    return new


def _cut(
    program: ExportedProgram,
    model: nn.Module,
    kept: Mapping[str, Sequence[Tensor | None]],
    decision: Decision,
) -> None:
    """Cut the tensors that the program holds; those that were one stay one."""
    names = all_names(model)
    cuts: dict[str, Tensor] = {}
    for held in (program.state_dict, program.constants):
        for name, tensor in list(held.items()):
            if name in names:
                first = names[name][0]
                indices = kept[first]
            elif name in decision.found.lifted:
                first = name
                axes = decision.found.lifted[name].axes
                indices = [torch.from_numpy(np.flatnonzero(decision.keep[ids])) for ids in axes]
            else:
                continue
            held[name] = cuts.setdefault(first, cut_tensor(tensor, indices))


def _check(program: ExportedProgram, decision: Decision) -> None:
    """Raise unless every call gives the planned shapes."""
    calls = [(call.op, shapes) for call, shapes in zip(decision.found.calls, decision.sizes, strict=True)]
    wanted = [call for call in calls if call[0] not in LAYOUT]
    for plan, real in zip_longest(wanted, call_shapes(program)):
        if plan is None or real is None or plan != real[:2]:
            raise RuntimeError(
                f"the pruned program does not do what was planned: {plan} is {real[:2] if real else None}; an operator "
                "has sizes among its arguments that are not known to be such"
            )
