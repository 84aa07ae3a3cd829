"""Planning: which channels of the network in an ONNX file are kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Annotated

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor, nn
from typing_extensions import Unpack

import prunefuse.onnx.operators  # noqa: F401  (registers the rules)
from prunefuse._inputs import TensorSpec
from prunefuse.onnx.reader import example_shapes, read, trace
from prunefuse.onnx.shapes import Shapes
from prunefuse.pruning._choose.fit_code import Decision, Remedies
from prunefuse.pruning._choose.gradients import Evidence
from prunefuse.pruning._choose.scores import CRITERIA as _CRITERIA
from prunefuse.pruning._explain import Coupled
from prunefuse.pruning._graph.trace import Trace, note_lines
from prunefuse.pruning.options import Key, PlanOptions, checked_options, completed, lists
from prunefuse.pruning.plan import Layer, PruningPlan, check_plan
from prunefuse.pruning.planner import counted_layers, thin_notes
from prunefuse.pruning.search import rank

CRITERIA = (*_CRITERIA, "bn_scale")
_DTYPES = {"FLOAT": "float32", "DOUBLE": "float64", "BOOL": "bool", "UINT8": "uint8", "INT8": "int8"}


class OnnxPlanOptions(PlanOptions, total=False):
    """What can be said about a plan of an ONNX file."""

    shapes: Annotated[
        Mapping[str, Sequence[int]] | Sequence[Sequence[int]] | None,
        Key(
            None,
            "Input name -> its shape, or the shapes in the order of the inputs, where the file leaves sizes open. An open "
            "first axis needs none.",
        ),
    ]


@lists(OnnxPlanOptions)
def plan(path: str | os.PathLike[str], **options: Unpack[OnnxPlanOptions]) -> PruningPlan:
    """Return a plan: which channels of the network in an ONNX file are kept, as `prunefuse.plan_pruning` decides it.

    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> torch.onnx.export(net, (torch.zeros(1, 4),), "net.onnx", dynamo=False)
    >>> prunefuse.onnx.plan("net.onnx", ratio=0.5).params
    (58, 30)

    Parameters are the floating-point constants of the file, but for the statistics of batch norms. A criterion is ``"l2"``,
    ``"l1"``, ``"random"``, ``"bn_scale"``, or a function (weight as a tensor of PyTorch, None) -> scores of its elements.

    Where options name modules, here they name nodes, tensors, or the modules that a tensor's name begins with, such as
    ``"conv1"`` for ``conv1.weight``. Meant are the nodes with that name, with that output or with that constant.

    Args:
        path: The file. Weights may be in a file of their own beside it.
        options: Those of `OnnxPlanOptions`.

    Returns:
        The plan. Tensors and nodes have the names that `prunefuse.onnx.read` gives them.

    Raises:
        OSError: The file cannot be read.
        TypeError: An argument has the wrong type.
        ValueError: An argument has a value that is not allowed, a target cannot be reached, or nothing would be pruned.
    """
    model = read(path)
    wanted: OnnxPlanOptions = completed("plan", OnnxPlanOptions, options)
    target = wanted["target"]
    checked = checked_options(
        wanted,
        CRITERIA,
        lambda pattern: _constants_of(model, _matching_nodes(model, "ratios", pattern)),
    )
    if target is not None and target.quantity == "latency":
        raise ValueError("target must be parameters, flops or memory for an ONNX file, got 'latency'")
    inputs = example_shapes(model, wanted["shapes"])
    ignored = _matching_nodes(model, "ignore", wanted["ignore"])
    traced = trace(model, inputs, ignored)
    tensors = weights(model, traced)
    batch = next((shape[0] for shape in inputs.values() if shape), 1)
    own = checked.own_ratios
    # Constants that meet no channel, such as numbers that a graph computes with, are no news: least=2.
    ranked = rank(traced, tensors, checked, Evidence(), own, batch, Remedies(), least=2)
    reached: tuple[str, ...] = ()
    if target is None:
        decision = ranked.at_ratio(checked.ratio)
    else:
        decision = ranked.at_target(target)
        reached = (target.describe(ranked.cost(target), ranked.cost(target, decision.ratio)),)
    kept = decision.kept(tensors)
    notes = note_lines(ranked.notes)
    couplings = Coupled.of(traced, ignored, ranked.notes)
    checked.check_pruned(kept, decision.ratio, notes, couplings.reasons)
    layers = _layers(model, tensors, decision, kept, batch)
    types = {str(value.name): value.dtype for value in model.graph.inputs}
    return PruningPlan(
        fingerprint=fingerprint(model),
        ratio=float(decision.ratio),
        criterion=checked.scoring.name,
        ranking=checked.selection.ranking,
        rounding=checked.selection.rounding,
        seed=wanted["seed"],
        inputs=tuple(TensorSpec(shape, _dtype(types[name])) for name, shape in inputs.items()),
        outputs=traced.outputs,
        kept=kept,
        attributes=_sizes(model, inputs, traced, decision.keep),
        layers=layers,
        notes=(*checked.notes, *reached, *thin_notes(layers), *notes),
        couplings=couplings,
    )


def planned(path: str | os.PathLike[str], plan: PruningPlan) -> tuple[ir.Model, dict[str, tuple[int, ...]]]:
    """The network of a file that a plan is for, and the shapes of its inputs.

    Raises:
        OSError: The file cannot be read.
        ValueError: The plan is for another network.
    """
    model = read(path)
    if fingerprint(model) != plan.fingerprint:
        raise ValueError(
            f"plan must be for the network in {os.fspath(path)}, got one for another network: names, shapes or operators differ"
        )
    names = [str(value.name) for value in model.graph.inputs if not value.is_initializer()]
    shapes = {name: spec.shape for name, spec in zip(names, plan.inputs, strict=True)}
    return model, example_shapes(model, shapes)


def explain(path: str | os.PathLike[str], plan: PruningPlan, name: str) -> str:
    """Return what `PruningPlan.explain` says, of a plan that was loaded.

    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> torch.onnx.export(net, (torch.zeros(1, 4),), "net.onnx", dynamo=False)
    >>> prunefuse.onnx.plan("net.onnx", ratio=0.5).save("plan.json")
    >>> plan = prunefuse.PruningPlan.load("plan.json")
    >>> print(prunefuse.onnx.explain("net.onnx", plan, "0.weight").splitlines()[2])
    output channels (dim 0): 4 of 8 stay

    Args:
        path: The file that was planned.
        plan: The plan for it.
        name: A node, an initializer, or the module that an initializer's name begins with.

    Raises:
        TypeError: An argument has the wrong type.
        OSError: The file cannot be read.
        ValueError: The plan is for another network, or there is no node or tensor of this name.
    """
    check_plan(plan)
    model, inputs = planned(path, plan)
    return replace(plan, couplings=Coupled.of(trace(model, inputs))).explain(name)


def weights(model: ir.Model, traced: Trace) -> dict[str, Tensor]:
    """The constants of a trace as PyTorch's tensors, in its order; those that training would change are parameters."""
    statistics = {
        str(value.name)
        for node in model.graph
        if node.op_type == "BatchNormalization"
        for value in node.inputs[3:5]
        if value is not None
    }
    result: dict[str, Tensor] = {}
    for name, value in traced.tensors.items():
        tensor = as_tensor(model.graph.initializers[name])
        trained = tensor.is_floating_point() and name not in statistics and value.axes
        result[name] = nn.Parameter(tensor, requires_grad=False) if trained else tensor
    return result


def as_tensor(value: ir.Value) -> Tensor:
    """A copy of a constant."""
    if value.const_value is None:
        raise ValueError(f"path must have values for all constants, got none for {value.name}")
    array = np.array(value.const_value.numpy())
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    if array.dtype.kind not in "biufc":  # the small ones of packed and eight-bit formats
        array = array.astype(np.float32)
    return torch.from_numpy(array)


def fingerprint(model: ir.Model) -> str:
    """SHA-256 over names and shapes of constants and names and types of nodes; values do not count."""
    lines = [f"{name} {list(value.shape or ())}" for name, value in model.graph.initializers.items()]
    lines += [f"{node.name} {node.domain} {node.op_type}" for node in model.graph]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _dtype(dtype: ir.DataType | None) -> str:
    name = "FLOAT" if dtype is None else dtype.name
    return _DTYPES.get(name, name.lower())


def _constants_of(model: ir.Model, nodes: Collection[str]) -> list[str]:
    inside = [value for node in model.graph if node.name in nodes for value in node.inputs]
    return [str(value.name) for value in inside if value is not None and value.is_initializer()]


def _matching_nodes(model: ir.Model, argument: str, patterns: Iterable[str] | str) -> set[str]:
    names: dict[str, set[str]] = {}
    for node in model.graph:
        constants = [str(value.name) for value in node.inputs if value is not None and value.is_initializer()]
        modules = [name[:i] for name in constants for i, letter in enumerate(name) if letter == "."]
        for name in (str(node.name), *(str(value.name) for value in node.outputs), *constants, *modules):
            names.setdefault(name, set()).add(str(node.name))
    chosen: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{argument} must be names, got {type(pattern).__name__}")
        matches = [nodes for name, nodes in names.items() if fnmatchcase(name, pattern)]
        if not matches:
            raise ValueError(f"{argument} must match nodes or tensors of the file, got {pattern!r}")
        chosen.update(*matches)
    return chosen


def _sizes(
    model: ir.Model, inputs: Mapping[str, Sequence[int]], traced: Trace, keep: npt.NDArray[np.bool_]
) -> dict[str, dict[str, int | tuple[int, ...]]]:
    """Node -> attribute, or input by its formal name -> what it must be in the small network, where that changes."""
    result: dict[str, dict[str, int | tuple[int, ...]]] = {}
    changing = {key: int(keep[ids].sum()) for key, ids in traced.sized.items() if not keep[ids].all()}
    sizes = Shapes(model, inputs)
    for node in model.graph:
        sizes.visit(node)
        for (name, attribute, position), value in changing.items():
            if name != node.name:
                continue
            held = result.setdefault(name, {})
            if position is None:
                held[attribute] = value
                continue
            now = held.get(attribute, size_operand(node, attribute, sizes))
            if isinstance(now, tuple):
                held[attribute] = (*now[:position], value, *now[position + 1 :])
    return result


def size_operand(node: ir.Node, name: str, sizes: Shapes) -> tuple[int, ...]:
    """The sizes that a node has in an attribute or gets as an input."""
    if name in node.attributes:
        return tuple(node.attributes[name].as_ints())
    value = node.inputs[operand_index(node, name)]
    return tuple(int(n) for n in sizes.numbers[value].ravel()) if value is not None else ()


def operand_index(node: ir.Node, name: str) -> int:
    """Which input of a node has this formal name."""
    from onnx import defs

    return [formal.name for formal in defs.get_schema(node.op_type, "").inputs].index(name)


def _layers(
    model: ir.Model,
    tensors: Mapping[str, Tensor],
    decision: Decision,
    kept: Mapping[str, Mapping[int, tuple[int, ...]]],
    batch: int,
) -> tuple[Layer, ...]:
    counted: set[str] = set()
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for node in model.graph:
        names = [str(value.name) for value in node.inputs if value is not None and value.is_initializer()]
        names = [name for name in dict.fromkeys(names) if name not in counted]
        names = [name for name in names if isinstance(tensors.get(name), nn.Parameter)]
        counted.update(names)
        if names:
            shapes[str(node.name)] = {name: tuple(tensors[name].shape) for name in names}
    kinds = {str(node.name): node.op_type for node in model.graph}
    return counted_layers(kinds, shapes, decision, kept, batch)
