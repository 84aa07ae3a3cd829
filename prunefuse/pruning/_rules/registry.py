"""What each operator does to channels: a table of small functions, by ATen operator.

A rule is called with the :class:`~prunefuse.pruning._graph.trace.Call` and then the operator's own arguments, every
tensor being a :class:`~prunefuse.pruning._graph.couplings.Value`; it couples ids and returns the output value (or a
list of them). Adding one takes five lines::

    @register_rule("mylib::gate")          # out = x * sigmoid(g), channel by channel
    def gate(call, x, g):
        for a, b in zip(x.axes, g.axes):
            call.link(a, b)
        return x

Pointwise operators need no entry (see :func:`find_rule`), nor do those that PyTorch composes of others
(:mod:`~prunefuse.pruning._walk`); any other operator without a rule keeps whole what it touches and is named in
the plan's notes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias, TypeVar

import torch

from prunefuse._options import require
from prunefuse.pruning._graph.couplings import Ids, Value, fixed
from prunefuse.pruning._graph.trace import Call

Rule: TypeAlias = Callable[..., "Value | Sequence[Value]"]
_F = TypeVar("_F", bound=Rule)
_RULES: dict[str, Rule] = {}


def register_rule(*operators: str) -> Callable[[_F], _F]:
    """Return a decorator that makes a function the rule of some operators, in all their overloads.

    A rule gets the call and the operator's arguments, where a tensor is its axes. It links the indices that are the
    same channel, and returns the axes of the output.

    >>> @prunefuse.pruning.register_rule("mylib::gate")  # out = x * sigmoid(g)
    ... def gate(call, x, g):
    ...     for a, b in zip(x.axes, g.axes, strict=True):
    ...         call.link(a, b)
    ...     return x

    Args:
        operators: Names such as ``"aten::add"``. A name covers its in-place form, as ``aten::add_``. A later rule
            replaces an earlier one.

    Raises:
        ValueError: A name is not of the form ``namespace::name``.
    """
    for name in operators:
        require(name.count("::") == 1, "operators", 'names like "aten::conv2d"', name)

    def register(rule: _F) -> _F:
        _RULES.update(dict.fromkeys(operators, rule))
        return rule

    return register


def find_rule(operator: object) -> Rule:
    """The rule of an operator overload: by name, else by its tag ``pointwise``, else :func:`unknown`.

    Operators that are not PyTorch's are given by name.
    """
    if isinstance(operator, str):
        return _RULES.get(operator, unknown)
    if not isinstance(operator, torch._ops.OpOverload):
        return unknown
    name = operator._schema.name
    default = broadcast if torch.Tag.pointwise in operator.tags else unknown
    return _RULES.get(name) or _RULES.get(name.rstrip("_")) or default


def values_in(arguments: Iterable[Any]) -> list[Value]:
    """The tensors among a call's arguments, also inside lists."""
    values: list[Value] = []
    for argument in arguments:
        if isinstance(argument, Value):
            values.append(argument)
        elif isinstance(argument, list | tuple):
            values += values_in(argument)
    return values


def unknown(call: Call, *args: Any, **kwargs: Any) -> list[Value]:
    """No rule: everything that the operator touches stays."""
    for value in values_in((*args, *kwargs.values())):
        for ids in value.axes:
            call.keep(ids, f"no rule for {call.op}, what it touches stays whole; add one with register_rule")
    return [call.fixed_output(i) for i in range(len(call.shapes))]


def broadcast(call: Call, *args: Any, **kwargs: Any) -> Value:
    """Pointwise operators: index i of the output comes from index i of every input that is not repeated."""
    values = values_in((*args, *kwargs.values()))
    axes: list[Ids] = []
    for axis in range(-len(call.shape), 0):
        size = call.shape[axis]
        same = [v.axes[axis] for v in values if len(v.axes) >= -axis and len(v.axes[axis]) == size]
        for ids in same[1:]:
            call.link(same[0], ids)
        axes.append(same[0] if same else fixed(size))
    return Value(tuple(axes))
