"""Whether the heads of an attention can be shortened: what lies between linear maps and the product, and behind it.

A head that loses channels must weigh tokens as before, but for what these channels added. So its scores keep the scale of
the dense head. Where code gives that scale as a number, the number must stay, as the small model shows. Where PyTorch takes
it from the length of the queries, what makes the queries is multiplied instead, by the root of the part that stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from prunefuse.pruning._rules.norms import SAME, op_of

_SAME = SAME | {"aten::dropout"}
_MOVED = _SAME | {
    "aten::" + name
    for name in (
        *(
            "view",
            "reshape",
            "_unsafe_view",
            "flatten",
            "unflatten",
            "squeeze",
            "unsqueeze",
            "permute",
            "transpose",
        ),
        *(
            "t",
            "numpy_T",
            "mT",
            "swapaxes",
            "movedim",
            "unbind",
            "chunk",
            "split",
            "split_with_sizes",
            "tensor_split",
        ),
        *(
            "unsafe_chunk",
            "unsafe_split",
            "unsafe_split_with_sizes",
            "select",
            "slice",
            "narrow",
            "expand",
            "getitem",
        ),
        "repeat_interleave",
    )
}
"""Operators that only move elements, or repeat them."""
_SCALED = frozenset("aten::" + name for name in ("mul", "div", "true_divide", "neg"))
_WEIGHTED = {
    "aten::linear": (1, 2),
    "aten::addmm": (2, 0),
    "aten::conv1d": (1, 2),
    "aten::conv2d": (1, 2),
    "aten::conv3d": (1, 2),
}
"""Linear maps -> the places of their weight and their bias."""
_PRODUCTS = frozenset("aten::" + name for name in ("matmul", "mm"))
_SOFTMAX = frozenset("aten::" + name for name in ("softmax", "_softmax"))
_SCORES = (
    _MOVED
    | _SCALED
    | {
        "aten::" + name
        for name in (
            *(
                "add",
                "sub",
                "rsub",
                "masked_fill",
                "where",
                "clamp",
                "clamp_min",
                "clamp_max",
                "maximum",
                "minimum",
            ),
            *("tanh", "float", "double", "half", "sigmoid", "relu"),
        )
    }
)
"""What may be done with scores on their way to a softmax."""

CHANGED = (
    "whole heads leave where queries or keys are changed between their linear map and the product, as by a norm or by "
    "positions that turn pairs of channels"
)
UNKNOWN_SCALE = (
    "whole heads leave where scores do not go to a softmax, or more than numbers and parameters scales them"
)
CODE = "whole heads leave where the code has sizes, or a scale, that depend on the channels of a head"
VALUES = "whole heads leave in a model that was planned on values"


def why_whole(product: fx.Node, sides: tuple[Any, Any], names: Mapping[str, str]) -> str:
    """Why the heads in a product of queries and keys cannot be shortened; empty if they can.

    Args:
        product: The product, or the operator of a whole attention.
        sides: The nodes of queries and keys, in any order.
        names: Node -> the parameter or buffer that it is.
    """
    if not all(isinstance(side, fx.Node) and _is_linear(side, names) for side in sides):
        return CHANGED
    if op_of(product) != "aten::scaled_dot_product_attention" and not _is_weighed(product, names):
        return UNKNOWN_SCALE
    return ""


def rows_of_queries(attention: fx.Node, names: Mapping[str, str]) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Weight or bias -> the axis of its outputs, and which of these make the queries of an attention.

    Nothing if the queries are not alone what these outputs make.
    """
    found: dict[str, tuple[int, tuple[int, ...]]] = {}
    source = _source(attention.args[0])
    for at in _WEIGHTED.get(op_of(source), ()):
        given = source.args[at] if at < len(source.args) else source.kwargs.get("bias") if at else None
        if given is None:
            continue
        held = _source(given)
        rows = _rows(held, attention) if held.name in names else None
        if rows is None:
            return {}
        found[names[held.name]] = rows
    return found


def _rows(held: fx.Node, attention: fx.Node) -> tuple[int, tuple[int, ...]] | None:
    shape = held.meta["val"].shape
    for axis, size in enumerate(shape):
        places = torch.arange(size, dtype=torch.int32).view(
            [-1 if a == axis else 1 for a in range(len(shape))]
        )
        queries: dict[fx.Node, frozenset[int]] = {}
        others: set[int] = set()
        try:
            for user, is_query, rows in _uses(held, places.expand(shape)):
                if is_query:
                    queries[user] = frozenset(rows)
                else:
                    others.update(rows)
        except _AcrossError:
            continue
        mine = queries.get(attention, frozenset())
        alone = set(queries.values()) == {mine} and mine.isdisjoint(others)
        return (axis, tuple(sorted(mine))) if alone else None
    return None


class _AcrossError(Exception):
    """These are not the outputs of a weight."""


def _uses(node: fx.Node, places: Any) -> Iterator[tuple[fx.Node, bool, list[int]]]:
    """Where the outputs of a weight end up: what takes them, whether as queries whose length is their scale, and which."""
    for user in node.users:
        op = op_of(user)
        if op in _SAME and user.args[0] is node:
            yield from _uses(user, places)
        elif op == "aten::getitem":
            yield from _uses(user, places[user.args[1]])
        elif op in _MOVED and user.args[0] is node:
            move: Any = torch.reshape if op in ("aten::view", "aten::_unsafe_view") else user.target
            yield from _uses(user, move(places, *user.args[1:], **user.kwargs))
        elif op in _SCALED and user.args[0] is node and not isinstance(user.args[-1], fx.Node):
            yield from _uses(user, places)
        elif op in _WEIGHTED and node in [user.args[at] for at in _WEIGHTED[op] if at < len(user.args)]:
            yield from _uses(user, _made(user, node, places))
        else:
            scaled = op == "aten::scaled_dot_product_attention" and user.kwargs.get("scale") is None
            is_query = scaled and user.args[0] is node and node not in user.args[1:]
            yield user, is_query, places.unique().tolist()


def _made(user: fx.Node, node: fx.Node, places: Tensor) -> Tensor:
    """The outputs of a linear map, each as the row of the weight or the place of the bias that it comes from."""
    shape = user.meta["val"].shape
    if places.ndim > 1:
        last = op_of(user) == "aten::addmm"
        rows = places.movedim(-1 if last else 0, 0).flatten(1)
        if bool((rows != rows[:, :1]).any()):
            raise _AcrossError
        places = rows[:, 0]
    behind = places.dim() if op_of(user) in ("aten::linear", "aten::addmm") else 0
    if behind:
        return places.expand(shape)
    space = len(user.args[1].meta["val"].shape) - 2  # type: ignore[union-attr]
    return places.view([-1, *[1] * space]).expand(shape)


def _source(node: Any) -> fx.Node:
    """What a tensor was moved from, or scaled by a number."""
    while op_of(node) in _MOVED or (op_of(node) in _SCALED and not isinstance(node.args[-1], fx.Node)):
        if not isinstance(node.args[0], fx.Node):
            break
        node = node.args[0]
    assert isinstance(node, fx.Node)
    return node


def _is_linear(node: fx.Node, names: Mapping[str, str]) -> bool:
    """Whether a tensor is the output of a linear map, or a parameter."""
    source = _source(node)
    if op_of(source) == "aten::cat":  # as a cache puts the keys of before in front, of which there are none
        parts = [x for x in source.all_input_nodes if x.meta["val"].numel()]
        return all(_is_linear(x, names) for x in parts)
    if source.name in names or op_of(source) in _WEIGHTED:
        return True
    return op_of(source) in _PRODUCTS and any(_source(x).name in names for x in source.all_input_nodes)


def _is_weighed(product: fx.Node, names: Mapping[str, str]) -> bool:
    """Whether all that becomes of scores is a softmax over them, before which numbers and parameters alone scale them."""
    waiting, seen = list(product.users), set(product.users)
    if not waiting:
        return False
    while waiting:
        user = waiting.pop()
        op = op_of(user)
        if op in _SOFTMAX:
            continue
        if op not in _SCORES or not user.users:
            return False
        if op in _SCALED:
            others = [x for x in user.all_input_nodes if x not in seen and x is not product]
            if any(_source(x).name not in names for x in others):
                return False
        new = [x for x in user.users if x not in seen]
        seen.update(new)
        waiting += new
    return True
