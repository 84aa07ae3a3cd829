"""Recognizing norms that are written by hand: statistics over channels by which these channels are then normalized.

A norm of PyTorch is pruned though it takes statistics over channels: the small one takes them over what is left of them.
The same norm in a model's own words is a mean that is subtracted from what it is the mean of, or a measure of size (of
variance, deviation, length, mean) by which its input is divided. What else is done with a statistic keeps its channels.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import fx

SAME = frozenset(
    "aten::" + name for name in ("to", "_to_copy", "type_as", "clone", "detach", "alias", "contiguous")
)
"""Operators that give what they get."""
_MOVED = SAME | {
    "aten::" + name for name in ("unsqueeze", "expand", "expand_as", "view", "reshape", "squeeze", "getitem")
}
"""Also in another shape."""
_SCALED = _MOVED | {
    "aten::" + name
    for name in (
        *(
            "add",
            "clamp",
            "clamp_min",
            "maximum",
            "max",
            "sqrt",
            "rsqrt",
            "pow",
            "reciprocal",
            "rsub",
            "abs",
            "mul",
        ),
        "div",
    )
}
"""Also made to what one divides by, with numbers and parameters alone."""
_ELEMENTWISE = frozenset("aten::" + name for name in ("pow", "square", "abs", "mul"))
_INVERSE = frozenset("aten::" + name for name in ("rsqrt", "reciprocal"))
_STATISTICS = frozenset(
    "aten::" + name
    for name in (
        "mean",
        "sum",
        "var",
        "std",
        "var_mean",
        "std_mean",
        "linalg_vector_norm",
        "linalg_norm",
        "norm",
    )
)
_FACTORS = ("aten::mul", "aten::div")


def normalizes(node: fx.Node, held: Collection[str]) -> bool:
    """Whether a reduction of computed channels serves nothing but to normalize them.

    Args:
        node: The reduction.
        held: Names of the nodes that are parameters, buffers or constants.
    """
    if op_of(node) not in _STATISTICS or not isinstance(node.args[0], fx.Node) or not node.users:
        return False
    if not _is_computed(node.args[0], held):  # a weight that is standardized
        return False
    source = _root(node.args[0])
    if (
        op_of(node) == "aten::sum" and op_of(source) not in _ELEMENTWISE
    ):  # of what is no size, as in a softmax
        return False
    return all(_serves(node, user, source, op_of(node) == "aten::mean", False, held) for user in node.users)


def _serves(
    made: fx.Node, user: fx.Node, source: fx.Node, mean: bool, inverse: bool, held: Collection[str]
) -> bool:
    """Whether one use of a statistic, or of what was made of it alone, is part of normalizing its source.

    Args:
        made: The statistic.
        user: What takes it.
        source: What it is the statistic of.
        mean: Whether it is a mean.
        inverse: Whether it is one over the statistic, by which one multiplies.
        held: As above.
    """
    op = op_of(user)
    others = [x for x in user.all_input_nodes if x is not made]
    channels = [x for x in others if _is_computed(x, held)]
    if channels and op != "aten::expand_as":
        first = user.args[0] is not made
        if op == "aten::sub":
            return mean and first and _root(channels[0]) is source
        return ((op == "aten::div" and first and not inverse) or (op == "aten::mul" and inverse)) and _is_of(
            channels[0], source
        )
    if op not in _SCALED or not user.users:
        return False
    if (
        op_of(made) == "aten::sum" and op in _FACTORS and user.args[0] is made
    ):  # by a number that may be a count
        return False
    if op == "aten::getitem":
        mean = bool(user.args[1] == 1)  # of a variance and a mean
    power = user.args[1] if op == "aten::pow" else 1
    negative = op in _INVERSE or (isinstance(power, int | float) and power < 0)
    flipped = inverse != (negative or (op == "aten::div" and user.args[0] is not made))
    return all(_serves(user, x, source, mean, flipped, held) for x in user.users)


def op_of(node: fx.Node) -> str:
    """The name of the operator that a node calls, whether in place or not."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return "aten::getitem" if getattr(node.target, "__name__", "") == "getitem" else ""
    return str(schema.name).rstrip("_")


def _root(node: fx.Node) -> fx.Node:
    """What a node is a copy of."""
    while op_of(node) in SAME and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _is_of(node: fx.Node, source: fx.Node) -> bool:
    """Whether a tensor has the channels of a source one by one: the source, what it is made of, or these less a mean."""
    known, node = {source}, _root(node)
    if op_of(source) in _ELEMENTWISE:  # the mean of squares
        known.update(_root(x) for x in source.all_input_nodes)
    for base in list(known):
        if op_of(base) == "aten::sub" and isinstance(base.args[0], fx.Node):
            known.add(_root(base.args[0]))
    if op_of(node) in ("aten::sub", "aten::mul") and node not in known:  # centered, or with its weight
        return any(_root(x) in known for x in node.all_input_nodes)
    return node in known


def _is_computed(node: fx.Node, held: Collection[str]) -> bool:
    """Whether a tensor depends on the inputs of the network; each node of a graph remembers it."""
    waiting = [node]
    while waiting:
        current = waiting[-1]
        if _COMPUTED not in current.meta:
            before = [x.meta.get(_COMPUTED) for x in current.all_input_nodes]
            if True in before or (current.op == "placeholder" and current.name not in held):
                current.meta[_COMPUTED] = True
            elif None not in before:
                current.meta[_COMPUTED] = False
            else:
                waiting += [x for x in current.all_input_nodes if _COMPUTED not in x.meta]
                continue
        waiting.pop()
    return bool(node.meta[_COMPUTED])


_COMPUTED = "depends on inputs"
