"""The rules of PyTorch's recurrent layers."""

from __future__ import annotations

import math
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
    hidden units, in every gate. Packed sequences and projections are kept whole.
    """
    gates = _GATES[call.op.removeprefix("aten::")]
    directions = 2 if bidirectional else 1
    each = len(parameters) // (layers * directions) if isinstance(parameters, list | tuple) else 0
    if each != (4 if has_biases else 2) or len(call.shapes[0]) != len(x.axes):
        return unknown(call, x, states, parameters, has_biases)
    hidden: Ids = parameters[1].axes[1]
    inputs = x.axes[-1]
    call.holds(inputs, "input_size")
    call.holds(hidden, "hidden_size")
    for state in values_in([states]):
        call.link(state.axes[-1], hidden)
    steps = math.prod(x.shape[:-1])
    for layer in range(layers):
        for direction in range(directions):
            first = (layer * directions + direction) * each
            into, own, *biases = parameters[first : first + each]
            call.link(into.axes[1], inputs)
            call.link(own.axes[1], hidden)
            for parameter in (into, own, *biases):
                call.link(parameter.axes[0], np.tile(hidden, gates))
            for weight in (into, own):
                call.apply_weight(weight, 0, steps)
        inputs = np.tile(hidden, directions)
    last = [Value((*map(fixed, shape[:-1]), hidden)) for shape in call.shapes[1:]]
    return [Value((*x.axes[:-1], inputs)), *last]
