"""Norms that are written out in ONNX files, recognized as those of PyTorch's models are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import fx

from prunefuse.onnx.shapes import captured
from prunefuse.pruning._rules.norms import normalizes

_NAMES = {
    "Abs": "abs",
    "Add": "add",
    "Cast": "to",
    "Clip": "clamp",
    "Div": "div",
    "Expand": "expand_as",
    "Identity": "clone",
    "Max": "maximum",
    "Mul": "mul",
    "Pow": "pow",
    "Reciprocal": "reciprocal",
    "ReduceL2": "linalg_vector_norm",
    "ReduceMean": "mean",
    "ReduceSum": "sum",
    "Reshape": "reshape",
    "Sqrt": "sqrt",
    "Squeeze": "squeeze",
    "Sub": "sub",
    "Unsqueeze": "unsqueeze",
}
"""Operator -> PyTorch's that does the same to its first inputs."""


class _Operator:
    """What a node of a graph calls: a name and nothing else."""

    __name__ = "operator"

    def __init__(self, name: str) -> None:
        self._schema = SimpleNamespace(name=f"aten::{name}")

    def __call__(self) -> None:
        """Never called."""


def normalizing(model: ir.Model) -> set[str]:
    """Names of the nodes that are statistics over channels, and serve nothing but to normalize these.

    Numbers by which a statistic is multiplied may be counts of channels, which nobody could change along: they hide it.
    """
    graph, values = fx.Graph(), {}
    held: set[str] = set()

    def argument(value: ir.Value | None) -> Any:
        if value is None:
            return None
        if value not in values:
            constant = None if value.const_value is None else value.const_value.numpy()
            if constant is not None and constant.size == 1 and constant.dtype.kind in "fiu":
                return float(np.ravel(constant)[0])
            values[value] = graph.placeholder("x")
            if value.is_initializer() or constant is not None:
                held.add(values[value].name)
        return values[value]

    made = {}
    for node in model.graph:
        args = tuple(map(argument, node.inputs))
        name = _NAMES.get(node.op_type, "") if node.domain in ("", "ai.onnx") else ""
        if name in ("mul", "div") and any(isinstance(x, float) and abs(x) != 1 for x in args):
            name = ""
        made[str(node.name)] = graph.call_function(_Operator(name), (*args, *map(argument, captured(node))))
        values.update(dict.fromkeys(node.outputs, made[str(node.name)]))
    graph.output(tuple(map(argument, model.graph.outputs)))
    return {name for name, node in made.items() if node.args and normalizes(node, held)}
