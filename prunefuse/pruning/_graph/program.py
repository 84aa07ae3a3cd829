"""The graph of a model: as torch.export makes it, or recorded while the model runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from prunefuse._attention import unfused_attention
from prunefuse.pruning._graph.copies import named_tensors

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
        by_values: Whether Python looked at values, or sizes depend on them.
    """

    graph: fx.Graph
    tensors: Mapping[str, str]
    constants: Mapping[str, str]
    returned: Collection[str]
    by_values: bool = False

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


def record(model: nn.Module, inputs: Sequence[Tensor], running: Sequence[str]) -> Program:
    """The graph of one run of ``model``, which it changes, as training would; its operators are those of torch.export.

    Args:
        model: A model with values.
        inputs: Its inputs.
        running: The modules that are running, while they do; see `running_modules`.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    tensors = named_tensors(model)

    def run(held: list[Tensor], given: list[Tensor]) -> list[Tensor]:
        return tensors_in(model(*given))

    with _noting_modules(model, running), unfused_attention():
        traced = make_fx(run, tracing_mode="real", pre_dispatch=True, _error_on_data_dependent_ops=False)
        module: fx.GraphModule = traced(list(tensors.values()), list(inputs))
    nodes = module.graph.find_nodes(op="placeholder")
    held = {node.name: name for node, name in zip(nodes, tensors, strict=False)}
    attributes = {
        id(value): f"{path}.{name}"
        for path, owner in model.named_modules()
        for name, value in vars(owner).items()
        if isinstance(value, Tensor)
    }
    constants = {}
    for node in module.graph.find_nodes(op="get_attr"):
        value = getattr(module, str(node.target), None)
        if isinstance(value, Tensor):
            where = next(iter(node.meta.get("nn_module_stack", {"": None})), "")
            node.meta["val"] = value
            constants[node.name] = attributes.get(id(value), f"{where}.{node.name}")
    returned = {x.name for x in tree_leaves(module.graph.output_node().args) if isinstance(x, fx.Node)}
    by_values = any(map(_depends_on_values, module.graph.nodes))
    return Program(module.graph, held, constants, returned, by_values)


def _depends_on_values(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    tags: Collection[torch.Tag] = getattr(node.target, "tags", ())
    dynamic = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
    return schema is not None and (schema.name in READS or any(tag in tags for tag in dynamic))


def tensors_in(outputs: Any) -> list[Tensor]:
    """The tensors that a model returns; those in other objects than containers and dataclasses, as caches, are its own."""
    leaves = tree_leaves(outputs)
    if len(leaves) == 1 and leaves[0] is outputs and is_dataclass(outputs):
        leaves = tree_leaves(list(vars(outputs).values()))
    return [
        tensor
        for leaf in leaves
        for tensor in (tensors_in(leaf) if is_dataclass(leaf) else [leaf])
        if isinstance(tensor, Tensor)
    ]


@contextmanager
def _noting_modules(model: nn.Module, running: Sequence[str]) -> Iterator[None]:
    """While it lasts, nodes of a graph that is traced say in which module they are called."""
    from torch.fx import traceback

    types = {path: type(module) for path, module in model.named_modules()}

    def note(*_: object) -> None:
        path = running[-1] if running else ""
        traceback.current_meta["nn_module_stack"] = {path: (path, types[path])}

    handles = []
    for module in model.modules():
        handles += [module.register_forward_pre_hook(note), module.register_forward_hook(note)]
    try:
        with traceback.preserve_node_meta():
            yield
    finally:
        for handle in handles:
            handle.remove()
