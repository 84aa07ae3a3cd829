"""Recognizing weights that are standardized before they are applied: each row less its mean, divided by its deviation.

A part of such a row has another mean and deviation. Where rows have gains, they may lose a part: they are standardized over
what is left, and the gains keep their norms (`_graph/standardized.py`). Without gains nothing could, so rows stay whole. But a
row that goes through PyTorch's batch norm is treated as other channels of norms are, and a note says what that changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from prunefuse.pruning._rules.norms import op_of

_MOMENTS = frozenset("aten::" + name for name in ("mean", "var", "std", "var_mean", "std_mean"))
_MOVED = frozenset(
    "aten::" + name
    for name in (
        *(
            "to",
            "_to_copy",
            "type_as",
            "clone",
            "alias",
            "contiguous",
            "view",
            "reshape",
            "flatten",
            "unflatten",
        ),
        *("view_as", "reshape_as", "unsqueeze", "squeeze", "expand", "expand_as", "getitem"),
    )
)
_MADE = _MOVED | {
    "aten::" + name
    for name in ("add", "clamp", "clamp_min", "maximum", "sqrt", "rsqrt", "reciprocal", "pow", "mul", "div")
}
_APPLIED = frozenset("aten::" + name for name in ("linear", "conv1d", "conv2d", "conv3d"))


def standardizes_with_gains(node: fx.Node, names: Mapping[str, str]) -> bool:
    """Whether a statistic of the rows of a weight serves nothing but to standardize them, before gains multiply them.

    Args:
        node: The statistic.
        names: Node -> the parameter or buffer that it is.
    """
    if not standardizes(node, names):
        return False
    source = _weight(node.args[0])
    return source is not None and bool(standardized_weights(node.graph, names).get(names[source.name]))


def standardizes(node: fx.Node, names: Mapping[str, str]) -> bool:
    """Whether a statistic of the rows of a weight serves nothing but to standardize them."""
    if op_of(node) not in _MOMENTS or not node.users:
        return False
    source = _weight(node.args[0])
    value = node.meta["val"]
    value = value[0] if isinstance(value, list | tuple) else value
    if source is None or source.name not in names or value.numel() != len(source.meta["val"]):
        return False
    mean = op_of(node) == "aten::mean"
    return all(_serves(node, user, source, mean, False, names) for user in node.users)


def _serves(
    made: fx.Node, user: fx.Node, source: fx.Node, mean: bool, inverse: bool, names: Mapping[str, str]
) -> bool:
    """Whether one use of a statistic subtracts it, if it is a mean, or divides by it.

    Args:
        made: The statistic, or what was made of it alone.
        user: What takes it.
        source: The weight.
        mean: Whether it is a mean.
        inverse: Whether it is one over the statistic, by which one multiplies.
        names: As above.
    """
    op = op_of(user)
    others = [x for x in user.all_input_nodes if x is not made]
    if any(_weight(x) is source for x in others) and op not in ("aten::expand_as", "aten::view_as"):
        first = user.args[0] is not made
        if op == "aten::sub":
            return mean and first
        return not mean and ((op == "aten::div" and first and not inverse) or (op == "aten::mul" and inverse))
    if op not in _MADE or not user.users:
        return False
    if op == "aten::getitem":
        mean = bool(user.args[1] == 1)  # of a variance and a mean
    power = user.args[1] if op == "aten::pow" else 1
    flips = op in ("aten::rsqrt", "aten::reciprocal") or (isinstance(power, int | float) and power < 0)
    flips = flips or (op == "aten::div" and user.args[0] is not made)
    return all(_serves(user, x, source, mean, inverse != flips, names) for x in user.users)


def standardized_weights(graph: fx.Graph, names: Mapping[str, str]) -> dict[str, str]:
    """Weight that is standardized before it is applied -> the gains of its rows; "" if it has none."""
    found = {}
    for node in graph.nodes:
        if op_of(node) in _APPLIED and isinstance(node.args[1], fx.Node):
            weight, gain = _standardized(node.args[1], names)
            if weight:
                found[weight] = gain
    return found


def _standardized(node: fx.Node, names: Mapping[str, str]) -> tuple[str, str]:
    gain = ""
    while True:
        op = op_of(node)
        first = node.args[0] if node.args else None
        if not isinstance(first, fx.Node):
            return "", ""
        if op == "aten::batch_norm":
            source = _weight(first)
            return (
                (names.get(source.name, ""), gain or _gain(node.args[1], names))
                if source is not None and node.args[5]
                else ("", "")
            )
        if op not in ("aten::mul", "aten::div", *_MOVED):
            return "", ""
        second = next((x for x in node.all_input_nodes if x is not first), None)
        if op in ("aten::mul", "aten::div") and second is not None:
            sides = [(first, second), (second, first)]
            for matrix, size in sides:
                source = _weight(matrix)
                if source is not None and any(_is_statistic(x, source, names) for x in _behind(size)):
                    return names[source.name], gain
            gains = [(_gain(one, names), other) for one, other in sides if op == "aten::mul"]
            held = [(name, other) for name, other in gains if name]
            if gain or not held:
                return "", ""
            gain, first = held[0]
        node = first


def _is_statistic(node: fx.Node, source: fx.Node, names: Mapping[str, str]) -> bool:
    return standardizes(node, names) and _weight(node.args[0]) is source


def _gain(node: Any, names: Mapping[str, str]) -> str:
    """The parameter that a node is, in another shape or times a number; "" if it is none."""
    while (
        isinstance(node, fx.Node) and op_of(node) in (*_MOVED, "aten::mul") and len(node.all_input_nodes) == 1
    ):
        node = node.args[0]
    return names.get(node.name, "") if isinstance(node, fx.Node) else ""


def _weight(node: Any) -> fx.Node | None:
    """What a node is in another shape, or less something."""
    while (
        isinstance(node, fx.Node)
        and op_of(node) in (*_MOVED, "aten::sub")
        and isinstance(node.args[0], fx.Node)
    ):
        node = node.args[0]
    return node if isinstance(node, fx.Node) and node.op in ("placeholder", "get_attr") else None


def _behind(node: fx.Node) -> list[fx.Node]:
    seen, waiting = [node], [node]
    while waiting:
        for x in waiting.pop().all_input_nodes:
            if x not in seen:
                seen.append(x)
                waiting.append(x)
    return seen
