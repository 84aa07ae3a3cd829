"""From a plan to the smaller file: cut constants, set sizes, check, save."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from torch import Tensor

from prunefuse.onnx.planner import operand_index, plan, planned, size_operand
from prunefuse.onnx.reader import trace
from prunefuse.onnx.shapes import Shapes
from prunefuse.pruning.plan import PruningPlan, check_plan


def prune(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    **planning: Any,
) -> PruningPlan:
    """Write a narrower network, and return its plan: `plan` with these options, then `write`.

    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> torch.onnx.export(net, (torch.zeros(1, 4),), "net.onnx", dynamo=False)
    >>> prunefuse.onnx.prune("net.onnx", "small.onnx", ratio=0.5).params
    (58, 30)

    Errors are those of both.
    """
    check_free(Path(out))
    made = plan(path, **planning)
    write(path, out, made)
    return made


def write(path: str | os.PathLike[str], out: str | os.PathLike[str], plan: PruningPlan) -> None:
    """Cut the kept channels out of an ONNX file into another file, which appears whole or not at all.

    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> torch.onnx.export(net, (torch.zeros(1, 4),), "net.onnx", dynamo=False)
    >>> prunefuse.onnx.write("net.onnx", "small.onnx", prunefuse.onnx.plan("net.onnx", ratio=0.5))

    The new file has the same inputs and outputs, open sizes among them. It is checked before it gets its name. If the
    first file has tensors outside of it, the second one has them in ``out`` + ``.data``.

    Args:
        path: The file that was planned, or one like it with other values.
        out: The new file; there must be none of this name.
        plan: What :func:`prunefuse.onnx.plan` made.

    Raises:
        TypeError: ``plan`` is none.
        FileExistsError: ``out`` or its data file is there already.
        OSError: a file cannot be read or written.
        ValueError: the plan is for another network.
        RuntimeError: the result would not be a valid network, which is a fault of a rule; nothing is written.
    """
    check_plan(plan)
    target = Path(out)
    check_free(target)
    save(narrowed(path, plan), target, like=path)


def narrowed(
    path: str | os.PathLike[str], plan: PruningPlan, values: Mapping[str, Tensor] = MappingProxyType({})
) -> ir.Model:
    """The network of a file, cut by a plan, with other values of some constants; errors are those of :func:`write`."""
    model, inputs = planned(path, plan)
    for name, tensor in values.items():
        model.graph.initializers[name].const_value = ir.Tensor(tensor.numpy(), name=name)
    for name, axes in plan.kept.items():
        _cut(model.graph.initializers[name], axes)
    try:
        _set_sizes(model, inputs, plan)
        outputs = trace(model, inputs).outputs
    except ValueError as error:
        raise RuntimeError(f"the planned network does not fit together: {error}") from error
    if outputs != plan.outputs:
        raise RuntimeError(f"the planned network returns the shapes {outputs}, not {plan.outputs}")
    return model


def check_free(target: Path) -> None:
    """Raise ``FileExistsError`` if the file to write, or that of its data, is there."""
    for path in (target, _data_file(target)):
        if path.exists():
            raise FileExistsError(f"out must be a new file, got {path}, which exists already")


def _data_file(target: Path) -> Path:
    return target.with_name(target.name + ".data")


def _is_external(path: str | os.PathLike[str]) -> bool:
    values = ir.load(path).graph.initializers.values()
    return any(isinstance(value.const_value, ir.ExternalTensor) for value in values)


def _cut(value: ir.Value, axes: Mapping[int, Sequence[int]]) -> None:
    tensor = value.const_value
    if tensor is None:
        raise ValueError(f"path must have values for all constants, got none for {value.name}")
    array = tensor.numpy()
    for axis, indices in axes.items():
        array = np.take(array, np.array(indices), axis)
    value.const_value = ir.tensor(array, dtype=tensor.dtype, name=value.name)
    value.shape = ir.Shape(array.shape)


def _set_sizes(model: ir.Model, inputs: Mapping[str, Sequence[int]], plan: PruningPlan) -> None:
    """Change the sizes that nodes are given, where they do not follow by themselves, and those noted in the file."""
    shapes = Shapes(model, inputs)
    for node in list(model.graph):
        for value in node.inputs:
            if value is not None:
                shapes.learn(value)
        for name, wanted in plan.attributes.get(str(node.name), {}).items():
            if isinstance(wanted, int):
                node.attributes[name] = ir.AttrInt64(name, wanted)
            elif name in node.attributes:
                node.attributes[name] = ir.AttrInt64s(name, wanted)
            elif (now := size_operand(node, name, shapes)) != wanted:
                _set_operand(model, node, name, now, wanted, shapes)
        shapes.visit(node)
        for value in node.outputs:
            if value.shape is not None and value in shapes.shapes and not value.is_graph_output():
                dims = zip(value.shape, shapes.shapes[value], strict=True)
                value.shape = ir.Shape([new if isinstance(old, int) else old for old, new in dims])


def _set_operand(
    model: ir.Model, node: ir.Node, name: str, now: tuple[int, ...], wanted: tuple[int, ...], shapes: Shapes
) -> None:
    """Give a node other sizes; of those that the graph computes, only the ones that come out wrong are replaced."""
    index = operand_index(node, name)
    old = node.inputs[index]
    if old is None:
        raise ValueError(f"{node.name} has no input {name}")
    stem = f"{node.name}.{name}"
    while stem in model.graph.initializers:  # that of an earlier pruning
        stem += "_"
    sizes = _initializer(model, stem, np.array(wanted, dtype=np.int64))
    if not old.is_initializer():
        mask = _initializer(model, f"{stem}.pruned", np.array(now) != np.array(wanted))
        choice = ir.node("Where", [mask, sizes, old], name=f"{stem}.choice")
        choice.outputs[0].name = f"{stem}.sizes"
        model.graph.insert_before(node, choice)
        shapes.visit(choice)
        sizes = choice.outputs[0]
    node.replace_input_with(index, sizes)
    shapes.learn(sizes)


def _initializer(
    model: ir.Model, name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]
) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
    model.graph.register_initializer(value)
    return value


def save(model: ir.Model, target: Path, like: str | os.PathLike[str]) -> None:
    """Check a network and write it, its data outside if that of the file ``like`` is; see :func:`write`."""
    external = _is_external(like)
    target.parent.mkdir(parents=True, exist_ok=True)
    data = _data_file(target)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        made = [Path(folder, data.name), Path(folder, target.name)]
        ir.save(model, made[1], external_data=data.name if external else None)
        try:
            onnx.checker.check_model(made[1])
        except onnx.checker.ValidationError as error:
            raise RuntimeError(f"the pruned network is not valid: {error}") from error
        made = [path for path in made if path.exists()]
        for path in made:
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        check_free(target)
        for path in made:  # the network last: whoever sees it finds its data
            path.replace(target.parent / path.name)
