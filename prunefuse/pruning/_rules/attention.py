"""The rules of attention and of what transformers are built from beside it: einsum, embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prunefuse.pruning._graph.couplings import Ids, Value, fixed
from prunefuse.pruning._graph.trace import Call
from prunefuse.pruning._rules.layers import product_of_computed
from prunefuse.pruning._rules.registry import broadcast, register_rule, unknown, values_in


@register_rule("aten::scaled_dot_product_attention")
def attention(
    call: Call,
    q: Value,
    k: Value,
    v: Value,
    mask: Value | None = None,
    *_: Any,
    enable_gqa: bool = False,
    **__: Any,
) -> Value:
    """q (..., H, L, E), k (..., H, S, E), v (..., H, S, D) -> (..., H, L, D): whole heads, since E sets the scale.

    With grouped queries H of k and v is smaller, and all queries of one of their heads leave with it. Where heads lose
    channels inside, all of them stay.
    """
    call.link(q.axes[-1], k.axes[-1])
    product_of_computed(call, q.axes[-1], q.axes[:-2], 0, 1)
    call.sums((q, -1), (k, -1))
    call.keep(k.axes[-2])
    call.keep(v.axes[-2])
    call.keep(q.axes[-2], "attends over channels")
    if enable_gqa and len(q.axes) > 2:
        repeats = len(q.axes[-3]) // len(k.axes[-3])
        k, v = (x.with_axis(-3, np.repeat(x.axes[-3], repeats)) for x in (k, v))
    batch = [Value((*x.axes[:-2], fixed(1), fixed(1))) for x in (q, k, v)]
    if mask is not None:
        batch.append(Value((*mask.axes[:-2], fixed(1), fixed(1))))
    out = broadcast(call, *batch).with_axis(-2, q.axes[-2]).with_axis(-1, v.axes[-1])
    call.multiply(*out.axes[:-1], k.axes[-2], q.axes[-1])  # also where a mask hides some of the products
    call.multiply(*out.axes, k.axes[-2])
    return out


@register_rule("aten::einsum")
def einsum(
    call: Call, equation: str, tensors: Sequence[Value], *, path: Sequence[int] | None = None, **_: Any
) -> Value:
    """Axes of one letter are coupled; a letter that is summed over computed tensors only stays."""
    terms, right = _letters(equation, [len(value.axes) for value in tensors])
    if any(len(set(term)) < len(term) for term in terms):
        return unknown(call, *tensors)[0]
    letters: dict[str, Ids] = {}
    for term, value in zip(terms, tensors, strict=True):
        for letter, ids in zip(term, value.axes, strict=True):
            if len(letters.setdefault(letter, ids)) == 1:
                letters[letter] = ids
            if len(ids) > 1:
                call.link(letters[letter], ids)
    for letter in set(letters) - set(right):
        holders = [value for term, value in zip(terms, tensors, strict=True) if letter in term]
        if len(holders) == 1:
            call.keep(letters[letter], "reduces over channels")
        elif all(value.name is None for value in holders):
            both = set.intersection(*map(set, terms)) if len(terms) == 2 else set()
            product_of_computed(call, letters[letter], [letters[x] for x in sorted(both - {letter})], 1)
    _sum_over(call, set(letters) - set(right), terms, tensors)
    out = Value(tuple(letters[letter] for letter in right))
    for n, (term, value) in enumerate(zip(terms, tensors, strict=True)):
        others = "".join(terms[:n] + terms[n + 1 :])
        made = [axis for axis, letter in enumerate(term) if letter in right and letter not in others]
        if made:
            call.writes(value, *made)
    weight = next((value.name for value in tensors if value.name is not None), None)
    wide = {letter for letter, ids in letters.items() if len(ids) > 1}
    for product in _products([wide.intersection(term) for term in terms], wide.intersection(right), path):
        call.multiply(*(letters[letter] for letter in product), weight=weight)
    return out


def _sum_over(call: Call, letters: set[str], terms: Sequence[str], tensors: Sequence[Value]) -> None:
    """Say which tensors have the letters that are summed over: those of one weight together."""
    for weights in (True, False):
        for term, value in zip(terms, tensors, strict=True):
            if (value.name is not None) == weights:
                axes = [
                    axis
                    for axis, letter in enumerate(term)
                    if letter in letters and len(value.axes[axis]) > 1
                ]
                if axes:
                    call.sums((value, axes))
                letters = letters - {term[axis] for axis in axes}


def _products(terms: Sequence[set[str]], right: set[str], path: Sequence[int] | None) -> list[list[str]]:
    """The letters over which each product of two tensors runs, in the order in which PyTorch multiplies them.

    A letter that one of the two alone has, and nobody needs later, is summed over before; where no letter is shared to be
    summed over, it is a pointwise product and none of these.
    """
    left = list(terms)
    order = list(path or (0, 1) * (len(left) - 1))
    products = []
    for n in range(0, len(order), 2):
        second, first = (left.pop(i) for i in sorted(order[n : n + 2], reverse=True))
        later = right.union(*left)
        made = (first | second) & later
        if summed := (first & second) - later:
            products.append(sorted(made | summed))
        # Without a path the result is the first of what is left, with one the last.
        left.insert(len(left) if path else 0, made)
    return products


def _letters(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The letters of the inputs' and of the output's axes, with others in the place of dots, and none left out."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    more = [chr(0x100 + i) for i in range(max(ranks, default=0))]
    counts = [rank - len(term) + 3 for term, rank in zip(terms, ranks, strict=True) if "..." in term]
    if not arrow:
        right = "..." * bool(counts) + "".join(sorted(x for x in set(left) - set(".,") if left.count(x) == 1))
    named = [
        term.replace("...", "".join(more[len(more) - max(0, rank - len(term) + 3) :]))
        for term, rank in zip(terms, ranks, strict=True)
    ]
    return named, right.replace("...", "".join(more[len(more) - max(counts, default=0) :]))


@register_rule("aten::embedding_bag", "aten::_embedding_bag", "aten::_embedding_bag_forward_only")
def embedding_bag(call: Call, table: Value, *picks: Any, **_: Any) -> list[Value]:
    """table (K, D) -> (bags, D), and what its gradient needs."""
    for ids in (table.axes[0], *(ids for value in values_in(picks) for ids in value.axes)):
        call.keep(ids)
    if table.name is not None:
        call.trace.writers.setdefault(table.name, 1)
    rest = [
        Value(
            tuple(
                table.axes[1] if len(shape) == 2 and axis else fixed(size) for axis, size in enumerate(shape)
            )
        )
        for shape in call.shapes[1:]
    ]
    return [Value((fixed(call.shape[0]), table.axes[1])), *rest]


@register_rule("aten::embedding")
def embedding(call: Call, table: Value, picks: Value, *_: Any, **__: Any) -> Value:
    """table (K, D), picks (...) -> (..., D): K stays."""
    for ids in (table.axes[0], *picks.axes):
        call.keep(ids)
    if table.name is not None:
        call.trace.writers.setdefault(table.name, 1)
    return Value((*map(fixed, call.shape[:-1]), table.axes[1]))


_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@register_rule(*("aten::" + name for name in _GATES))
def recurrent(
    call: Call,
    x: Value,
    states: Value | Sequence[Value],
    parameters: Any,
    has_biases: Any,
    layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
    *rest: Any,
) -> Sequence[Value]:
    """x (..., I) -> (..., H), or both directions' 2H, and the last states (layers, batch, H).

    Weights are (gates * H, I or H). The layer has one H for all of its layers and directions: they lose the same
    hidden units, in every gate. With projections (P, H) what goes out and comes back has P channels, again of one kind
    in all. Of packed sequences x is (steps of all, I), and how many have each step comes after it.
    """
    if isinstance(has_biases, list | tuple):
        states, parameters, has_biases = parameters, has_biases, layers
        layers, bidirectional = int(dropout), rest[0]
    gates = _GATES[call.op.removeprefix("aten::")]
    directions = 2 if bidirectional else 1
    each = len(parameters) // (layers * directions) if isinstance(parameters, list | tuple) else 0
    projects = each == (5 if has_biases else 3)
    if each - projects != (4 if has_biases else 2) or len(call.shapes[0]) != len(x.axes):
        return unknown(call, x, states, parameters, has_biases)
    back: Ids = parameters[1].axes[1]
    hidden: Ids = parameters[each - 1].axes[1] if projects else back
    inputs = x.axes[-1]
    call.holds(inputs, "input_size")
    call.holds(hidden, "hidden_size")
    if projects:
        call.holds(back, "proj_size")
    for state, ids in zip(values_in([states]), (back, hidden), strict=False):
        call.link(state.axes[-1], ids)
    steps = x.axes[:-1]
    for layer in range(layers):
        for direction in range(directions):
            first = (layer * directions + direction) * each
            into, own, *others = parameters[first : first + each]
            call.link(into.axes[1], inputs)
            call.link(own.axes[1], back)
            if projects:
                projection = others.pop()
                call.link(projection.axes[0], back)
                call.link(projection.axes[1], hidden)
                call.sums((projection, 1))
                call.apply_weight(projection, 0, steps)
            for parameter in (into, own, *others):
                call.link(parameter.axes[0], np.tile(hidden, gates))
            for weight in (into, own):
                call.sums((weight, 1))
                call.apply_weight(weight, 0, steps)
        inputs = np.tile(back, directions)
    ends = zip(call.shapes[1:], (back, hidden), strict=False)
    last = [Value((*map(fixed, shape[:-1]), ids)) for shape, ids in ends]
    return [Value((*x.axes[:-1], inputs)), *last]
