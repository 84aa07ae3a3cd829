"""The rules of PyTorch's own operators, as :mod:`torch.export` writes them; importing this registers them.

Most pointwise operators are not listed: :func:`~prunefuse.pruning._rules.registry.find_rule` knows them by their tag.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prunefuse.pruning._graph.couplings import Ids, Value, fixed
from prunefuse.pruning._graph.trace import Call
from prunefuse.pruning._rules.axes import places, reduction
from prunefuse.pruning._rules.heads import CHANGED, CODE, UNKNOWN_SCALE, rows_of_queries, why_whole
from prunefuse.pruning._rules.registry import broadcast, register_rule, unknown, values_in

register_rule(  # pointwise, without the tag in some form
    *("aten::" + name for name in ("hardswish", "log_sigmoid", "mish", "relu6", "threshold")),
    "aten::_weight_norm",  # its norm is over what is left of the other axes
    *("aten::" + name for name in ("copy", "floor_divide", "masked_fill", "rsub", "true_divide")),
    *("aten::" + name for name in ("complex", "polar", "_conj", "_neg_view", "resolve_conj", "resolve_neg")),
)(broadcast)


@register_rule("aten::where")
def where(call: Call, condition: Value, *values: Any) -> Value | Sequence[Value]:
    """One of two values for each element; without these the places where a condition holds."""
    return broadcast(call, condition, *values) if values else places(call, condition)


@register_rule(
    *("aten::" + name for name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")),
    *(
        "aten::" + name
        for name in (
            "contiguous",
            "detach",
            "alias",
            "lift_fresh",
            "lift_fresh_copy",
            "to",
            "_to_copy",
            "type_as",
        )
    ),
    *("aten::" + name for name in ("zeros_like", "ones_like", "full_like", "empty_like")),
    *("aten::" + name for name in ("clone", "fill", "zero", "bernoulli", "rand_like", "randn_like")),
)
def unchanged(call: Call, x: Value, *_: Any, **__: Any) -> Value:
    """Same channels out as in."""
    return Value(x.axes)


@register_rule(
    *("aten::" + name for name in ("new_zeros", "new_ones", "new_full", "new_empty")),
    *("aten::" + name for name in ("zeros", "ones", "full", "empty", "rand", "randn")),
)
def constant(call: Call, *_: Any, **__: Any) -> Value:
    """A new tensor, of sizes that the module gives."""
    out = Value(tuple(map(call.trace.couplings.open, call.shape)))
    for ids in out.axes:
        call.holds(ids)
    return out


@register_rule("aten::conv1d", "aten::conv2d", "aten::conv3d")
def convolution(
    call: Call,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    """x (N, I, ...), weight (O, I / groups, ...) -> (N, O, ...): absorbs the input channels, makes new ones."""
    channel = len(call.shape) - len(weight.axes) + 1  # 0 for an input without a batch axis
    for ids in (*weight.axes[2:], *x.axes[channel + 1 :]):
        call.keep(ids)
    out = weight.axes[0]
    if groups == 1:
        call.link(x.axes[channel], weight.axes[1])
    else:
        _grouped(call, x.axes[channel], weight.axes[1], out, groups)
        call.counts(x.axes[channel], "in_channels")
    if bias is not None:
        call.link(bias.axes[0], out)
    space = tuple(map(fixed, call.shape[channel + 1 :]))
    call.sums((weight, 1), (x, channel))
    call.apply_weight(weight, 0, (*x.axes[:channel], *space))
    return Value((*x.axes[:channel], out, *space))


def _grouped(call: Call, inputs: Ids, group_inputs: Ids, outputs: Ids, groups: int) -> None:
    """Inputs of which a weight has those of one group, and outputs (transposed: the other way round).

    All groups stay of one size: they lose the same local channels; or, if a side has one each, leave whole.
    """
    each_in, each_out = len(inputs) // groups, len(outputs) // groups
    if each_in > 1 and each_out > 1:
        call.link(inputs, np.tile(group_inputs, groups))
        call.link(outputs, np.tile(outputs[:each_out], groups))
        return
    leaders = inputs[::each_in]
    call.link(inputs, np.repeat(leaders, each_in))
    call.link(outputs, np.repeat(leaders, each_out))
    call.keep(group_inputs)
    call.holds(leaders, "groups")


@register_rule("aten::conv_transpose1d", "aten::conv_transpose2d", "aten::conv_transpose3d")
def transposed_convolution(
    call: Call,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Value:
    """x (N, I, ...), weight (I, O / groups, ...) -> (N, O, ...)."""
    channel = len(call.shape) - len(weight.axes) + 1
    for ids in (*weight.axes[2:], *x.axes[channel + 1 :]):
        call.keep(ids)
    call.link(x.axes[channel], weight.axes[0])
    out, writing = weight.axes[1], 1
    if groups > 1:
        out = call.trace.couplings.fresh(call.shape[channel])
        _grouped(call, out, weight.axes[1], weight.axes[0], groups)
        call.counts(out, "out_channels")
        writing = int(len(weight.axes[1]) > 1 and len(weight.axes[0]) > groups)
    if bias is not None:
        call.link(bias.axes[0], out)
    if groups == 1 or writing == 1:  # else whole groups leave, of which each sums over its own
        call.sums((weight, 0), (x, channel))
    call.apply_weight(weight, writing, (*x.axes[:channel], *x.axes[channel + 1 :]))
    return Value((*x.axes[:channel], out, *map(fixed, call.shape[channel + 1 :])))


@register_rule("aten::linear")
def linear(call: Call, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """x (..., I), weight (O, I) -> (..., O)."""
    call.link(x.axes[-1], weight.axes[1])
    if bias is not None:
        call.link(bias.axes[0], weight.axes[0])
    call.sums((weight, 1), (x, -1))
    call.apply_weight(weight, 0, x.axes[:-1])
    return x.with_axis(-1, weight.axes[0])


SCALED = "multiplies computed tensors over channels, by whose number a softmax may be scaled"


def product_of_computed(call: Call, summed: Ids, heads: Sequence[Ids], *sides: int) -> None:
    """A product of computed tensors keeps the channels that it sums over, or where heads are shortened, the heads.

    Args:
        call: The product, or a whole attention.
        summed: The channels.
        heads: The axes that are side by side.
        sides: The places of queries and keys among the arguments; one place: of the list that has both.
    """
    if call.trace.heads == "known" or not summed.any():
        return
    if call.trace.heads == "whole" or (why := _why_whole(call, summed, sides)):
        call.keep_unless_experts(summed, SCALED if call.trace.heads == "whole" else "")
        if call.trace.heads != "whole":
            call.note(why)
        return
    for ids in heads:
        call.keep(ids)
    call.holds(summed)  # a scale may be made of it
    call.trace.shortened.add(call.module)


def _why_whole(call: Call, summed: Ids, sides: Sequence[int]) -> str:
    """Why a product, of queries and keys perhaps, cannot sum over fewer channels; empty if it can."""
    node, names = call.traced, call.trace.names
    if node is None:
        return UNKNOWN_SCALE
    if type(call.trace.modules.get(call.module)) in call.trace.whole_heads:
        return CODE
    behind = int(call.op in ("aten::addmm", "aten::baddbmm"))  # what is added
    if behind and not {"alpha", "beta"}.isdisjoint(node.kwargs):
        return UNKNOWN_SCALE
    first = [node.args[behind + side] for side in sides]
    given: Any = first[0] if len(sides) == 1 else first
    if len(given) != 2 or (why := why_whole(node, tuple(given), names)):
        return why if len(given) == 2 else UNKNOWN_SCALE
    if call.op != "aten::scaled_dot_product_attention" or node.kwargs.get("scale") is not None:
        return ""
    found = rows_of_queries(node, names)
    if not found or any(call.trace.queries.get(name, rows) != rows for name, rows in found.items()):
        return CHANGED
    call.trace.queries.update(found)
    return ""


@register_rule("aten::matmul", "aten::mm", "aten::bmm")
def matmul(call: Call, a: Value, b: Value) -> Value:
    """a (..., M, K) @ b (..., K, N) -> (..., M, N); batch axes broadcast."""
    if len(a.axes) < 2 or len(b.axes) < 2:
        matrix = b if len(a.axes) < 2 else a
        call.multiply(*matrix.axes, weight=a.name or b.name)
        return unknown(call, a, b)[0]
    if (weight := _transposed(call, b)) is not None:
        return linear(call, a, weight)
    call.link(a.axes[-1], b.axes[-2])
    computed = a.name is None and b.name is None
    source = (
        next((x for x in map(call.trace.sliced, (b, a)) if x.name), a) if computed else b if b.name else a
    )
    if source.name is None:
        product_of_computed(call, a.axes[-1], a.axes[:-2], 0, 1)
    call.sums(*_weights_first((a, -1), (b, -2)))
    batch = (Value((*v.axes[:-2], fixed(1), fixed(1))) for v in (a, b))
    out = broadcast(call, *batch).with_axis(-2, a.axes[-2]).with_axis(-1, b.axes[-1])
    call.multiply(*out.axes, a.axes[-1], weight=source.name)
    for x, axis in ((b, len(b.axes) - 1), (a, len(a.axes) - 2)):
        if x.name is not None:
            call.writes(x, axis)
        elif computed:
            call.writes_as_slice(x, axis)
    return out


def _weights_first(*factors: tuple[Value, int]) -> list[tuple[Value, int]]:
    return sorted(factors, key=lambda factor: factor[0].name is None)


def _transposed(call: Call, x: Value) -> Value | None:
    """The parameter or buffer, a matrix, of which a computed value is the transpose."""
    made = next(
        (record for record in reversed(call.trace.calls) if any(x is y for y in record.outputs)), None
    )
    if len(x.axes) != 2 or made is None or made.op.rpartition("::")[2] not in _TRANSPOSES:
        return None
    return (
        made.inputs[0] if made.inputs[0].name is not None and made.inputs[0].shape == x.shape[::-1] else None
    )


_TRANSPOSES = ("t", "transpose", "numpy_T", "mT", "permute", "swapaxes", "swapdims")


@register_rule("aten::addmm", "aten::baddbmm")
def addmm(call: Call, bias: Value, a: Value, b: Value, **_: Any) -> Value:
    """bias + a @ b."""
    return broadcast(call, matmul(call, a, b), bias)


_ROW_BYTES = 16
"""PyTorch's grouped product takes rows of multiples of so many bytes."""


@register_rule("aten::_grouped_mm", "transformers::grouped_mm_fallback")
def product_of_groups(call: Call, x: Value, weight: Value, *rest: Any, **_: Any) -> Value:
    """x (S, K), whose rows are sorted by expert, weight (E, K, N), and where each expert's rows end (E) -> (S, N)."""
    if (len(x.axes), len(weight.axes), len(call.shape)) != (2, 3, 2):
        return unknown(call, x, weight, *rest)[0]
    for value in values_in(rest):
        for ids in value.axes:
            if len(ids) == len(weight.axes[0]):
                call.link(ids, weight.axes[0])
            else:
                call.keep(ids)
    call.link(x.axes[1], weight.axes[1])
    if call.op == "aten::_grouped_mm" and call.itemsize:
        call.trace.multiples.extend((ids, _ROW_BYTES // call.itemsize) for ids in weight.axes[1:])
    call.sums((weight, 1), (x, 1))
    named = _of_transposed(call, weight)
    call.multiply(x.axes[0], weight.axes[1], weight.axes[2], weight=named.name)
    call.writes(named, next((axis for axis in (1, 2) if named.axes[axis] is weight.axes[2]), 2))
    return Value((x.axes[0], weight.axes[2]))


def _of_transposed(call: Call, x: Value) -> Value:
    """The parameter or buffer of which a computed value is the transpose; else itself."""
    made = next(
        (record for record in reversed(call.trace.calls) if any(x is y for y in record.outputs)), None
    )
    if made is None or made.op.rpartition("::")[2] not in _TRANSPOSES or made.inputs[0].name is None:
        return x
    return made.inputs[0]


@register_rule("aten::mv", "aten::dot", "aten::vdot")
def product_of_vectors(call: Call, a: Value, b: Value) -> Value:
    """a (M, K) or (K) times b (K): as a matrix product, one side of which reads the channels."""
    call.link(a.axes[-1], b.axes[0])
    names = [call.trace.origin(value).name for value in (a, b)]
    if names == [None, None]:
        call.keep(b.axes[0], SCALED)
    call.sums(*((b, 0), (a, -1))[:: 1 if names[0] is None else -1])
    call.multiply(*a.axes, weight=names[0] or names[1])
    return Value(a.axes[:-1])


@register_rule("aten::cdist", "aten::_cdist_forward", "aten::_euclidean_dist")
def distances(call: Call, a: Value, b: Value, *_: Any) -> Value:
    """a (..., M, K), b (..., N, K) -> (..., M, N)."""
    for ids in (a.axes[-1], b.axes[-1]):
        call.keep(ids, "reduces over channels")
    batch = (Value((*v.axes[:-2], fixed(1), fixed(1))) for v in (a, b))
    return broadcast(call, *batch).with_axis(-2, a.axes[-2]).with_axis(-1, b.axes[-2])


@register_rule("aten::bilinear")
def bilinear(call: Call, a: Value, b: Value, weight: Value, bias: Value | None = None) -> Value:
    """a (..., I), b (..., J), weight (O, I, J) -> (..., O)."""
    call.link(a.axes[-1], weight.axes[1])
    call.link(b.axes[-1], weight.axes[2])
    if bias is not None:
        call.link(bias.axes[0], weight.axes[0])
    out = broadcast(call, a.with_axis(-1, fixed(1)), b.with_axis(-1, fixed(1)))
    call.sums((weight, (1, 2)))
    call.apply_weight(weight, 0, out.axes[:-1])
    return out.with_axis(-1, weight.axes[0])


@register_rule("torchvision::roi_align", "torchvision::roi_pool")
def regions(call: Call, x: Value, boxes: Value, *_: Any, **__: Any) -> Sequence[Value]:
    """x (N, C, H, W), boxes (K, 5) -> (K, C, h, w): the same channels of every region; of a maximum also where it is."""
    for ids in (*x.axes[2:], *boxes.axes):
        call.keep(ids)
    return [Value((boxes.axes[0], x.axes[1], *map(fixed, shape[2:]))) for shape in call.shapes]


@register_rule("aten::batch_norm", "aten::instance_norm")
def channel_norm(call: Call, x: Value, *args: Any) -> Value:
    """Weight, bias, running mean and running variance belong to axis 1 of x (N, C, ...)."""
    for parameter in values_in(args):
        call.link(x.axes[1], parameter.axes[0])
    why = "normalizes weights by statistics over inputs that leave"
    call.takes_statistics(*x.axes[2:], unlike=why, near=False)
    return Value(x.axes)


@register_rule("aten::layer_norm", "aten::rms_norm")
def layer_norm(call: Call, x: Value, shape: Sequence[int], *args: Any, **_: Any) -> Value:
    """Normalizes over the last axes, over what is left of them; weight and bias have those axes."""
    for position, ids in enumerate(x.axes[-len(shape) :]):
        for parameter in values_in(args):
            call.link(ids, parameter.axes[position])
        call.holds(ids, "normalized_shape", position)
    call.takes_statistics(*x.axes[-len(shape) :])
    return Value(x.axes)


@register_rule("aten::group_norm")
def group_norm(call: Call, x: Value, groups: int, *args: Any, **_: Any) -> Value:
    """x (N, C, ...): every group loses the same local channels; one channel each: whole groups leave."""
    ids = x.axes[1]
    if len(ids) == groups:
        call.holds(ids, "num_groups")
    else:
        call.link(ids, np.tile(ids[: len(ids) // groups], groups))
        call.takes_statistics(ids)
    for parameter in values_in(args):
        call.link(ids, parameter.axes[0])
    return Value(x.axes)


@register_rule("aten::prelu")
def prelu(call: Call, x: Value, weight: Value) -> Value:
    """One slope for all, or one for each channel of axis 1."""
    if len(weight.axes[0]) > 1:
        call.link(x.axes[1], weight.axes[0])
    return Value(x.axes)


@register_rule("aten::mean")
def mean(call: Call, x: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
    """A reduction; but the mean square over channels is an RMS norm's, which takes it over what is left of them."""
    last = call.trace.calls[-1] if call.trace.calls else None
    dims = [dim] if isinstance(dim, int) else list(dim or ())
    if last is None or not any(x is y for y in last.outputs) or len(dims) != 1 or not keepdim:
        return reduction(call, x, dim)[0]
    square = last.op in ("aten::pow", "aten::square") or (
        last.op == "aten::mul" and len(last.inputs) == 2 and last.inputs[0] is last.inputs[1]
    )
    if not square:
        return reduction(call, x, dim)[0]
    call.takes_statistics(x.axes[dims[0]])
    return x.with_axis(dims[0], fixed(1))
