"""Values in a run without values: of what depends on neither inputs nor weights, as positions 0, 1, 2 of tokens do."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx

READS = frozenset(
    getattr(torch.ops.aten, name).default for name in ("item", "_local_scalar_dense", "is_nonzero")
)
"""Operators that give Python a number."""
_LARGEST = 1 << 20  # elements of a tensor that is computed for it


def constant_value(node: fx.Node) -> Tensor | None:
    """What a node of a recorded graph gives, computed by what the graph has up to it.

    None if it depends on inputs, weights, chance or what a call wrote in place, or is large.
    """
    parts = _behind(node)
    if parts is None or any(_is_written(part) for part in parts):
        return None
    values: dict[fx.Node, Any] = {}
    with torch._C._DisablePythonDispatcher():
        for part in parts:
            args: Any = fx.node.map_arg(part.args, values.__getitem__)
            kwargs: Any = fx.node.map_arg(part.kwargs, values.__getitem__)
            values[part] = part.target(*_with_values(args), **_with_values(kwargs))  # type: ignore[operator]
    value = values[node]
    return value if isinstance(value, Tensor) else None


def _behind(node: fx.Node) -> list[fx.Node] | None:
    """The nodes that it depends on, in order, and itself; None if one of them is no constant."""
    found: dict[fx.Node, None] = {}
    waiting = [node]
    while waiting:
        current = waiting[-1]
        before = [x for x in current.all_input_nodes if x not in found]
        if current in found or not before:
            found[waiting.pop()] = None
        elif _is_constant(current):
            waiting += before
        else:
            return None
    return list(found) if all(map(_is_constant, found)) else None


def _is_constant(node: fx.Node) -> bool:
    """Whether a call gives the same for the same arguments, and not too much."""
    if node.target is operator.getitem:
        return True
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or schema.is_mutable:
        return False
    made = node.meta["val"]
    made = made if isinstance(made, tuple) else (made,)
    return (
        "empty" not in schema.name
        and torch.Tag.nondeterministic_seeded not in node.target.tags  # type: ignore[union-attr]
        and all(math.prod(x.shape) <= _LARGEST for x in made if isinstance(x, Tensor))
    )


def _is_written(node: fx.Node) -> bool:
    """Whether a call writes into what a node gives, or into what may be a view of it."""
    waiting, seen = list(node.users), set(node.users)
    while waiting:
        user = waiting.pop()
        schema = getattr(user.target, "_schema", None)
        if schema is not None and schema.is_mutable:
            return True
        if schema is None or _may_be_view(user.target):
            waiting += [x for x in user.users if x not in seen]
            seen.update(user.users)
    return False


def _may_be_view(target: Any) -> bool:
    return (
        any(returned.alias_info is not None for returned in target._schema.returns)
        or target._schema.name == "aten::type_as"
        or target._can_decompose()
    )


def _with_values(arguments: Any) -> Any:
    """Arguments of an operator, on the CPU in the place of the meta device."""
    if isinstance(arguments, torch.device):
        return torch.device("cpu") if arguments.type == "meta" else arguments
    if isinstance(arguments, list | tuple):
        return type(arguments)(map(_with_values, arguments))
    if isinstance(arguments, dict):
        return {name: _with_values(x) for name, x in arguments.items()}
    return arguments
