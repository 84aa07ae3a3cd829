"""Carrying out a plan: the small model out of the dense one, and from saved weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, fx, nn

from prunefuse._inputs import Inputs, outputs_in
from prunefuse._seeds import isolated
from prunefuse.pruning._choose.fit_code import Decision
from prunefuse.pruning._graph.caches import caches, without_caches
from prunefuse.pruning._graph.copies import all_names, copied, cut, cut_tensor, held_tensors, named_tensors
from prunefuse.pruning._graph.couplings import Ids
from prunefuse.pruning._graph.export import (
    capture,
    describe,
    export,
    first_line,
    quiet,
    record_shapes,
    running_modules,
)
from prunefuse.pruning._graph.normed import gains_of_part, set_gains_
from prunefuse.pruning._graph.program import Program
from prunefuse.pruning._graph.queries import Scaled, scale_
from prunefuse.pruning._graph.remembered import forgetting
from prunefuse.pruning._graph.standardized import multiply_gains_
from prunefuse.pruning._graph.trace import Record, Trace
from prunefuse.pruning._walk import LAYOUT, call_shapes, trace

if TYPE_CHECKING:
    from torch.export import ExportedProgram


Shapes: TypeAlias = tuple[tuple[int, ...], ...]


def extract(
    model: nn.Module,
    kept: Mapping[str, Sequence[Tensor | None]],
    attributes: Mapping[str, Mapping[str, int | tuple[int, ...]]],
    inputs: Inputs | None,
    outputs: Shapes,
    scaled: Scaled,
    standardized: Mapping[str, str],
) -> nn.Module:
    """A copy of a model with the kept channels only.

    Args:
        model: The dense model, which is not changed.
        kept: For each of its tensors the kept indices of every axis; None = all.
        attributes: Module path -> attribute -> its value in the small model.
        inputs: What the model was planned for, without values; None if a file could not tell.
        outputs: Shapes of what it returns for them, which the small model must return too.
        scaled: What is multiplied, as a plan has it.
        standardized: Weights whose gains are multiplied, as a plan has them.

    Raises:
        ValueError: The small model cannot run, or returns other shapes; or already the dense one does.
    """
    gains = gains_of_part(model, kept)

    def made(dense: nn.Module) -> nn.Module:
        small = cut(dense, kept, attributes)
        set_gains_(small, gains)
        part = named_tensors(small)
        scale_(part, kept, scaled)
        multiply_gains_(part, named_tensors(dense), kept, standardized)
        return small

    small = made(model)
    if inputs is None:
        return small
    try:
        _check_runs(small, model, inputs, outputs)
    except ValueError:
        # Tensors that a forward since planning has left in the dense model are as wide as it.
        fresh = _without_caches(model, inputs)
        if fresh is None:
            raise
        small = made(fresh)
        _check_runs(small, fresh, inputs, outputs)
    return small


def _without_caches(model: nn.Module, inputs: Inputs) -> nn.Module | None:
    """A copy as before a forward; None if the model holds nothing that a forward makes again."""
    held = [name.partition("[")[0] for name, _ in held_tensors(model)]
    device = next((x.device for x in named_tensors(model).values()), torch.device("cpu"))
    zeros = inputs.map(lambda x: torch.zeros_like(x, device=device))
    found = caches(model, zeros, held) if held else {}
    return without_caches(model, found) if found else None


def _check_runs(small: nn.Module, dense: nn.Module, inputs: Inputs, outputs: Shapes) -> None:
    """Run shapes through the small model, or where that fails zeros; if all fails, the dense one too, to tell why."""
    advice = (
        "read it from the input there (-1 or x.shape), list it with register_sizes, keep the layers in front whole "
        'with ignore=, or plan with expressed_by="program"'
    )
    shapes, error = _tried(small, inputs, _WAYS[0])
    if shapes is not None and _fit(shapes, outputs):
        return
    with running_modules(small) as running:
        for way in _WAYS[1:]:
            running.clear()
            shapes, error = _tried(small, inputs, way)
            if shapes is not None and _fit(shapes, outputs):
                return
        if not outputs:  # the model runs on no zeros, so that nothing can be said
            return
        _check_outputs_of_dense(dense, inputs, outputs)
        if error is not None:
            raise ValueError(
                f"the pruned model cannot run, although the dense one does: {first_line(error)} (in "
                f"{describe(small, running)}). {_suspect(small, running)} has a channel count written in its code: "
                f"{advice}"
            ) from error
        raise ValueError(
            f"the pruned model returns shapes {shapes}, the dense one {outputs}: one of its modules has a "
            f"channel count written in its code: {advice}"
        )


def _check_outputs_of_dense(dense: nn.Module, inputs: Inputs, outputs: Shapes) -> None:
    """Raise ``ValueError`` if the model behaves otherwise than the planned one, whose tensors are like its own."""
    for way in _WAYS:
        shapes, error = _tried(dense, inputs, way)
        if shapes is not None and _fit(shapes, outputs):
            return
    planned = ", ".join(str(spec.shape) for spec in inputs.specs)
    differs = (
        f"returns shapes {shapes} instead of {outputs}"
        if error is None
        else f"cannot run ({first_line(error)})"
    )
    raise ValueError(
        f"model must be like the model that was planned, got another {type(dense).__name__}: for the planned inputs "
        f"of shape {planned} it {differs}, before any pruning (another stride, padding or forward?)"
    )


def checkable_outputs(model: nn.Module, inputs: Inputs, outputs: Shapes) -> Shapes:
    """What can be checked without a user's values where sizes may depend on them: -1 stands for every size.

    None of the outputs if the model does not run on zeros.
    """
    shapes, _ = _tried(model, inputs, "zeros")
    unknown = tuple((-1,) * len(shape) for shape in outputs)
    return unknown if shapes is not None and _fit(shapes, unknown) else ()


_WAYS = ("meta", "fake", "zeros")
"""How a model is run to see that it runs, the fastest way first."""


def _fit(shapes: Shapes, outputs: Shapes) -> bool:
    return list(map(len, shapes)) == list(map(len, outputs)) and all(
        wanted in (-1, size)
        for shape, planned in zip(shapes, outputs, strict=True)
        for size, wanted in zip(shape, planned, strict=True)
    )


def _tried(model: nn.Module, inputs: Inputs, way: str) -> tuple[Shapes | None, Exception | None]:
    """The shapes that a model returns, or why it does not."""
    try:
        return _output_shapes(model, inputs, way), None
    except Exception as error:
        return None, error


def _output_shapes(model: nn.Module, planned: Inputs, way: str) -> Shapes:
    """The shapes that a model returns in evaluation mode for inputs like the planned ones; it is not changed.

    Without values, on the meta device or on its own, unless its code looks at some: then the inputs are zeros.
    """
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))

    def zeros(x: Tensor) -> Tensor:
        # The model may have another precision by now than when it was planned.
        dtype = first.dtype if x.is_floating_point() else x.dtype
        return torch.zeros_like(x, dtype=dtype, device="meta" if way == "meta" else first.device)

    if way == "meta":
        return _shapes_on_meta(model, planned.map(zeros))
    from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True) if way == "fake" else None
    with nullcontext() if mode is None else FakeCopyMode(mode):
        model = copied(model).eval()
    with forgetting(model), isolated(0, first.device), quiet(), mode or nullcontext(), torch.no_grad():
        outputs = planned.map(zeros).run(model)
    return tuple(tuple(x.shape) for x in outputs_in(outputs))


def _shapes_on_meta(model: nn.Module, inputs: Inputs) -> Shapes:
    whole = dict.fromkeys(named_tensors(model), ())
    program = record_shapes(lambda: cut(model, whole, {}, "meta"), inputs, training=False)
    (returned,) = program.graph.output_node().args
    return tuple(tuple(node.meta["val"].shape) for node in cast(tuple[fx.Node, ...], returned))


def _suspect(small: nn.Module, running: list[str]) -> str:
    """Who has a hard-coded size: the innermost running module that torch did not write."""
    own = [path for path in running if not type(small.get_submodule(path)).__module__.startswith("torch.nn.")]
    if not own:
        return "A module that runs before it"
    name = describe(small, own)
    return "It" if own[-1] == running[-1] else name[0].upper() + name[1:]


def extract_program(
    model: nn.Module,
    kept: Mapping[str, Sequence[Tensor | None]],
    inputs: Inputs,
    dynamic_shapes: Any,
    training: bool,
    heads: str,
    scaled: Scaled,
    standardized: Mapping[str, str],
) -> ExportedProgram:
    """See :meth:`PruningPlan.extract_program`."""
    program = export(model, inputs, training, dynamic_shapes)
    traced = trace(model, Program.of(program), free=True, kept=kept, heads=heads)
    decision = Decision(traced, _kept_nodes(traced, kept))
    for call, shapes in zip(traced.calls, decision.sizes, strict=True):
        _set_sizes(call, shapes, decision.count)
    _cut(program, model, kept, decision, scaled, standardized)
    try:
        small = capture(program.module(check_guards=False), inputs, dynamic_shapes)
    except Exception as error:
        raise RuntimeError(f"the pruned program does not fit together: {first_line(error)}") from error
    _check(small, decision)
    return small


def _kept_nodes(
    traced: Trace, kept: Mapping[str, Sequence[Tensor | None]]
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """One flag per node of a trace into which the kept indices went."""
    component = traced.component
    keep = np.ones(len(component), dtype=np.bool_)
    for name, axes in kept.items():
        for ids, indices in zip(traced.tensors[name].axes, axes, strict=True):
            if indices is not None:
                gone = np.delete(ids, indices.numpy())
                keep[np.isin(component, component[gone])] = False
                if not keep[0] or len(np.unique(component[gone])) > 1:
                    raise ValueError(
                        f"plan must be for this model, got one that is damaged or for another: what it removes of {name!r} "
                        "the graph needs elsewhere"
                    )
    return keep


def _set_sizes(call: Record, planned: tuple[tuple[int, ...], ...], count: Callable[[Ids], int]) -> None:
    """Change the sizes among the arguments of a call."""
    node = call.node
    schema = getattr(node.target, "_schema", None) if node is not None else None
    if node is None or schema is None:
        return
    names = [formal.name for formal in schema.arguments]
    arguments = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    for name, value in arguments.items():
        new = _resized(call, name, arguments, planned, count)
        if new is not None and new != value:
            if name in node.kwargs:
                node.update_kwarg(name, new)
            else:
                node.update_arg(names.index(name), new)


def _resized(
    call: Record,
    name: str,
    arguments: Mapping[str, Any],
    planned: tuple[tuple[int, ...], ...],
    count: Callable[[Ids], int],
) -> Any:
    """What an argument must be in the small graph; None where it stays."""
    op, value, dim = call.op.removeprefix("aten::"), arguments[name], arguments.get("dim", 0)
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
        first = range(len(ids))[arguments.get("start") :].start
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
    scaled: Scaled,
    standardized: Mapping[str, str],
) -> None:
    """Cut the tensors that the program holds; those that were one stay one."""
    names = all_names(model)
    cuts: dict[str, Tensor] = {
        name: nn.Parameter(gain, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else gain
        for name, gain in gains_of_part(model, kept).items()
        for tensor in [names[name][1]]
    }
    for held in (program.state_dict, program.constants):
        for name, tensor in list(held.items()):
            if name in names:
                first = names[name][0]
                indices = kept[first]
            elif name in decision.trace.lifted:
                first = name
                axes = decision.trace.lifted[name].axes
                indices = [torch.from_numpy(np.flatnonzero(decision.keep[ids])) for ids in axes]
            else:
                continue
            if first not in cuts:
                cuts[first] = cut_tensor(tensor, indices)
                if first in scaled:
                    scale_(cuts, kept, {first: scaled[first]})
                gained = {weight: gain for weight, gain in standardized.items() if gain == first}
                multiply_gains_(cuts, named_tensors(model), kept, gained)
            held[name] = cuts[first]


def _check(program: ExportedProgram, decision: Decision) -> None:
    """Raise unless every call gives the planned shapes."""
    calls = [(call.op, shapes) for call, shapes in zip(decision.trace.calls, decision.sizes, strict=True)]
    wanted = [call for call in calls if call[0] not in LAYOUT]
    for plan, real in zip_longest(wanted, call_shapes(program.graph)):
        if plan is None or real is None or plan != real[:2]:
            raise RuntimeError(
                f"the pruned program does not do what was planned: {plan} is {real[:2] if real else None}; an operator "
                "has sizes among its arguments that are not known to be such"
            )
