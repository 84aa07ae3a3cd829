"""What operators consist of that PyTorch composes of others, so that they need no rule of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx


def parts_of(node: fx.Node) -> fx.Graph | None:
    """The graph of the operator that a node calls, in terms of others; its inputs are the node's, in order.

    None if the operator is not composed of others, or what it is given is not known.
    """
    operator, given = node.target, node.all_input_nodes
    if not isinstance(operator, torch._ops.OpOverload) or not operator._can_decompose():
        return None
    if not all(isinstance(x.meta.get("val"), Tensor) for x in given):
        return None

    def composed(*tensors: Tensor) -> Any:
        known = dict(zip(given, tensors, strict=True))
        args: Any = fx.node.map_arg(node.args, known.__getitem__)
        kwargs: Any = fx.node.map_arg(node.kwargs, known.__getitem__)
        return operator.decompose(*args, **kwargs)

    graph = make_fx(composed)(*(x.meta["val"] for x in given)).graph
    for part in graph.nodes:
        part.meta["nn_module_stack"] = node.meta.get("nn_module_stack", {})
    return graph
