"""The rules of PyTorch's recurrent layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prunefuse.pruning.coupling import Ids, Value, fixed
from prunefuse.pruning.rules import register_rule, unknown, values_in
from prunefuse.pruning.trace import Call

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
    *_: Any,
) -> Sequence[Value]:
    """x (..., I) -> (..., H), or both directions' 2H, and the last states (layers, batch, H).

    Weights are (gates * H, I or H). The layer has one H for all of its layers and directions: they lose the same
    hidden units, in every gate. With projections (P, H) what goes out and comes back has P channels, again of one kind
    in all. Packed sequences are kept whole.
    """
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
                call.apply_weight(projection, 0, steps)
            for parameter in (into, own, *others):
                call.link(parameter.axes[0], np.tile(hidden, gates))
            for weight in (into, own):
                call.apply_weight(weight, 0, steps)
        inputs = np.tile(back, directions)
    ends = zip(call.shapes[1:], (back, hidden), strict=False)
    last = [Value((*map(fixed, shape[:-1]), ids)) for shape, ids in ends]
    return [Value((*x.axes[:-1], inputs)), *last]
