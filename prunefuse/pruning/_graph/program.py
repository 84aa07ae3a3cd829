"""The graph of a model: as torch.export makes it, or recorded while the model runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from torch.export import ExportedProgram


@dataclass(frozen=True)
class Program:
    """A graph of ATen operators, and what its nodes are to the model.

    Attributes:
        graph: The graph.
        tensors: Name of a node -> the parameter or buffer that it is.
        constants: Name of a node -> the other tensor that it is, by module path and attribute.
        returned: Names of the nodes that are what the model returns.
        by_values: The first call that showed Python values, or made sizes of them; "" if none did.
    """

    graph: fx.Graph
    tensors: Mapping[str, str]
    constants: Mapping[str, str]
    returned: Collection[str]
    by_values: str = ""

    @staticmethod
    def of(exported: ExportedProgram) -> Program:
        """An exported program."""
        signature = exported.graph_signature
        constants = signature.inputs_to_lifted_tensor_constants
        specs = {spec.arg.name: spec.target for spec in signature.input_specs}
        tensors = {name: target for name, target in specs.items() if target and name not in constants}
        return Program(exported.graph, tensors, constants, signature.user_outputs)

    def has_unknown_sizes(self) -> bool:
        """Whether there are tensors whose sizes depend on values."""
        sizes: Iterator[Any] = (
            size
            for node in self.graph.nodes
            for value in tree_leaves(node.meta.get("val"))
            if isinstance(value, Tensor)
            for size in value.shape
        )
        return any(isinstance(size, torch.SymInt) and size.node.hint is None for size in sizes)


READS = frozenset("aten::" + name for name in ("item", "_local_scalar_dense", "is_nonzero"))
"""Operators that give Python a number."""


def depends_on_values(node: fx.Node) -> bool:
    """Whether Python is given a number, or a size depends on values."""
    schema = getattr(node.target, "_schema", None)
    tags: Collection[torch.Tag] = getattr(node.target, "tags", ())
    dynamic = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
    if schema is None:
        return False
    to_numpy = schema.name == "aten::resolve_neg" and not node.users  # the last that is seen of x.numpy()
    if schema.name in ("aten::index", "aten::where"):
        return makes_sizes(node)
    return to_numpy or schema.name in READS or any(tag in tags for tag in dynamic)


def makes_sizes(node: fx.Node) -> bool:
    """Whether a size of what a call gives depends on values."""
    name = getattr(getattr(node.target, "_schema", None), "name", "")
    if name == "aten::where":  # of a condition alone: places
        return len(node.args) == 1
    if name == "aten::index":  # by masks it does, by numbers it does not
        places = node.args[1] if len(node.args) > 1 else node.kwargs.get("indices", ())
        found = [one.meta.get("val") for one in tree_leaves(places) if isinstance(one, fx.Node)]
        return any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in found)
    return torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ())
