"""Planning: which channels of the network in an ONNX file are kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from fractions import Fraction
from numbers import Real

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

import prunefuse.onnx.operators  # noqa: F401  (registers the rules)
from prunefuse.onnx.reader import example_shapes, read, trace
from prunefuse.onnx.shapes import Shapes
from prunefuse.pruning.coupling import Ids
from prunefuse.pruning.groups import ROUNDINGS, kept_count, settle
from prunefuse.pruning.plan import Layer, PruningPlan, TensorSpec
from prunefuse.pruning.planner import counted_layer
from prunefuse.pruning.trace import Trace, fix_unranked

CRITERIA = ("l2", "l1", "random")
_DTYPES = {"FLOAT": "float32", "DOUBLE": "float64", "BOOL": "bool", "UINT8": "uint8", "INT8": "int8"}


def plan(
    path: str | os.PathLike[str],
    *,
    ratio: float = 0.5,
    criterion: str = "l2",
    rounding: str = "floor",
    ignore: Iterable[str] | str = (),
    seed: int = 0,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> PruningPlan:
    """Decide which channels of an ONNX file to keep, as :func:`prunefuse.plan_pruning` does of a PyTorch model.

    Args:
        path: The file. Weights may be in a file of their own beside it.
        ratio: The fraction of channels to remove from every axis, 0 <= ratio < 1.
        criterion: ``"l2"``, ``"l1"``: the norm of the weights that compute a channel; or ``"random"``.
        rounding: ``"floor"``, ``"nearest"`` (halves up) or ``"ceil"``, of the kept count.
        ignore: Names of nodes, of tensors, or of the modules that a tensor's name begins with (``"conv1"`` for
            ``conv1.weight``), or patterns of these (:mod:`fnmatch`): the nodes with that name, with that output or
            with that constant keep all output channels.
        seed: For ``"random"``.
        shapes: Input name -> its shape, where the file leaves sizes open. An open first axis needs none.

    Returns:
        The plan: tensors and nodes have the names that :func:`prunefuse.onnx.read` gives them; it can be saved.

    Raises:
        OSError: the file cannot be read.
        TypeError: an argument has the wrong type.
        ValueError: an argument has a value that is not allowed, or nothing would be pruned.
    """
    if isinstance(ratio, bool) or not isinstance(ratio, float | int | Real):
        raise TypeError(f"ratio: expected a number, got {type(ratio).__name__}")
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio: expected 0 <= ratio < 1, got {ratio}")
    for name, value, allowed in (
        ("criterion", criterion, CRITERIA),
        ("rounding", rounding, tuple(ROUNDINGS)),
    ):
        if value not in allowed:
            raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}")
    model = read(path)
    inputs = example_shapes(model, shapes)
    found = trace(model, inputs, _matching_nodes(model, ignore))
    # Constants that meet no channel, such as numbers that a graph computes with, are no news.
    component = fix_unranked(found.couplings.components(), found, least=2)
    fraction = Fraction(str(ratio))  # the decimal that was written
    keep = settle(
        (component[ids] for tensor in found.tensors.values() for ids in tensor.axes),
        _scores(model, found, component, criterion, seed),
        lambda width: kept_count(width, fraction, rounding),
    )[component]
    kept: dict[str, dict[int, tuple[int, ...]]] = {}
    for name, tensor in found.tensors.items():
        for axis, ids in enumerate(tensor.axes):
            if not keep[ids].all():
                kept.setdefault(name, {})[axis] = tuple(np.flatnonzero(keep[ids]).tolist())
    notes = found.note_lines()
    if fraction and not kept:
        why = notes or ("every channel is an input, an output, ignored, or the only one of its axis",)
        raise ValueError(f"nothing was pruned at ratio {float(fraction):g}: {'; '.join(why)}")
    types = {str(value.name): value.dtype for value in model.graph.inputs}
    return PruningPlan(
        fingerprint=fingerprint(model),
        ratio=float(fraction),
        criterion=criterion,
        ranking="local",
        rounding=rounding,
        seed=seed,
        inputs=tuple(TensorSpec(shape, _dtype(types[name])) for name, shape in inputs.items()),
        outputs=found.outputs,
        kept=kept,
        attributes=_sizes(model, inputs, found, keep),
        layers=_layers(model, found, kept, next(iter(inputs.values()), ())),
        notes=notes,
    )


def fingerprint(model: ir.Model) -> str:
    """SHA-256 over names and shapes of constants and names and types of nodes; values do not count."""
    lines = [f"{name} {list(value.shape or ())}" for name, value in model.graph.initializers.items()]
    lines += [f"{node.name} {node.domain} {node.op_type}" for node in model.graph]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _dtype(dtype: ir.DataType | None) -> str:
    name = "FLOAT" if dtype is None else dtype.name
    return _DTYPES.get(name, name.lower())


def _matching_nodes(model: ir.Model, ignore: Iterable[str] | str) -> set[str]:
    names: dict[str, set[str]] = {}
    for node in model.graph:
        constants = [str(value.name) for value in node.inputs if value is not None and value.is_initializer()]
        modules = [name[:i] for name in constants for i, letter in enumerate(name) if letter == "."]
        for name in (str(node.name), *(str(value.name) for value in node.outputs), *constants, *modules):
            names.setdefault(name, set()).add(str(node.name))
    found: set[str] = set()
    for pattern in [ignore] if isinstance(ignore, str) else ignore:
        if not isinstance(pattern, str):
            raise TypeError(f"ignore: expected names, got {type(pattern).__name__}")
        matches = [nodes for name, nodes in names.items() if fnmatchcase(name, pattern)]
        if not matches:
            raise ValueError(f"ignore: {pattern!r} matches no node and no tensor of the file")
        found.update(*matches)
    return found


def _scores(
    model: ir.Model, found: Trace, component: Ids, criterion: str, seed: int
) -> npt.NDArray[np.float64]:
    """As :func:`prunefuse.pruning.criteria.channel_scores`: the norm over the slices of all writers of a channel."""
    count = int(component.max()) + 1
    if criterion == "random":
        return np.random.default_rng(seed).random(count)
    order = 2 if criterion == "l2" else 1
    scores = np.zeros(count)
    for name, axis in found.writers.items():
        channels = component[found.tensors[name].axes[axis]]
        if not channels.any():
            continue
        weight = np.moveaxis(_constant(model, name).numpy(), axis, 0)
        rows = weight.reshape(len(channels), -1).astype(np.float64)
        amounts = (np.abs(rows) ** order).sum(1)
        if not np.isfinite(amounts).all():
            raise ValueError(f"path: {name} has values that are not finite, so its channels cannot be ranked")
        scores += np.bincount(channels, weights=amounts, minlength=count)
    total: npt.NDArray[np.float64] = scores ** (1 / order)
    return total


def _constant(model: ir.Model, name: str) -> ir.TensorProtocol:
    tensor = model.graph.initializers[name].const_value
    if tensor is None:
        raise ValueError(f"path: {name} has no value")
    return tensor


def _sizes(
    model: ir.Model, inputs: Mapping[str, Sequence[int]], found: Trace, keep: npt.NDArray[np.bool_]
) -> dict[str, dict[str, int | tuple[int, ...]]]:
    """Node -> attribute, or input by its formal name -> what it must be in the small network, where that changes."""
    result: dict[str, dict[str, int | tuple[int, ...]]] = {}
    changing = {key: int(keep[ids].sum()) for key, ids in found.sized.items() if not keep[ids].all()}
    known = Shapes(model, inputs)
    for node in model.graph:
        known.visit(node)
        for (name, attribute, position), value in changing.items():
            if name != node.name:
                continue
            held = result.setdefault(name, {})
            if position is None:
                held[attribute] = value
                continue
            now = held.get(attribute, size_operand(node, attribute, known))
            if isinstance(now, tuple):
                held[attribute] = (*now[:position], value, *now[position + 1 :])
    return result


def size_operand(node: ir.Node, name: str, known: Shapes) -> tuple[int, ...]:
    """The sizes that a node has in an attribute or gets as an input."""
    if name in node.attributes:
        return tuple(node.attributes[name].as_ints())
    value = node.inputs[operand_index(node, name)]
    return tuple(int(n) for n in known.numbers[value].ravel()) if value is not None else ()


def operand_index(node: ir.Node, name: str) -> int:
    """Which input of a node has this formal name."""
    from onnx import defs

    return [formal.name for formal in defs.get_schema(node.op_type, "").inputs].index(name)


def _layers(
    model: ir.Model, found: Trace, kept: dict[str, dict[int, tuple[int, ...]]], shape: Sequence[int]
) -> tuple[Layer, ...]:
    batch = shape[0] if shape else 1
    counted: set[str] = set()
    layers = []
    for node in model.graph:
        names = [str(value.name) for value in node.inputs if value is not None and value.is_initializer()]
        names = [name for name in dict.fromkeys(names) if name in found.tensors and name not in counted]
        names = [name for name in names if found.tensors[name].axes]
        counted.update(names)
        if not names:
            continue
        shapes = {name: found.tensors[name].shape for name in names}
        layers.append(counted_layer(str(node.name), node.op_type, shapes, found, kept, batch))
    return tuple(layers)
