"""ONNX operators: what each is in terms of the rules for PyTorch's; importing this registers them.

A rule is called with the :class:`~prunefuse.onnx.reader.NodeCall` and the node's inputs, None for those left out.
Operators of other domains get a rule in the same way: ``register_rule("com.example::Gate")``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from prunefuse.onnx.reader import NodeCall
from prunefuse.pruning._graph.couplings import Value, fixed
from prunefuse.pruning._rules import attention, axes, layers, shapes
from prunefuse.pruning._rules.registry import broadcast, register_rule, unknown, values_in

_POINTWISE = """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Ceil Celu Clip
    Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN LeakyRelu Less
    LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin
    Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor
"""
register_rule(*(f"onnx::{name}" for name in _POINTWISE.split()))(broadcast)
register_rule(*(f"onnx::{name}" for name in ("Identity", "Cast", "CastLike", "Dropout")))(layers.unchanged)
register_rule("onnx::InstanceNormalization")(layers.channel_norm)
register_rule(*(f"onnx::{name}" for name in ("Flatten", "Squeeze", "Unsqueeze")))(shapes.reshape)


@register_rule("onnx::Conv")
def conv(call: NodeCall, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """Weights are laid out as PyTorch's."""
    return layers.convolution(call, x, weight, bias, groups=call.attribute("group", 1))


@register_rule("onnx::ConvTranspose")
def conv_transpose(call: NodeCall, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """Weights are laid out as PyTorch's."""
    return layers.transposed_convolution(call, x, weight, bias, groups=call.attribute("group", 1))


@register_rule("onnx::MatMul")
def matmul(call: NodeCall, a: Value, b: Value) -> Value:
    """As PyTorch's."""
    return layers.matmul(call, a, b)


@register_rule("onnx::Gemm")
def gemm(call: NodeCall, a: Value, b: Value, bias: Value | None = None) -> Value:
    """a (M, K) @ b (K, N) + bias, each of a and b perhaps transposed."""
    if call.attribute("transA", 0):
        a = Value(a.axes[::-1])
    out = layers.linear(call, a, b) if call.attribute("transB", 0) else layers.matmul(call, a, b)
    return out if bias is None else broadcast(call, out, bias)


@register_rule("onnx::Einsum")
def einsum(call: NodeCall, *tensors: Value) -> Value:
    """As PyTorch's."""
    return attention.einsum(call, call.attribute("equation", ""), tensors)


@register_rule("onnx::LSTM", "onnx::GRU", "onnx::RNN")
def recurrent(call: NodeCall, x: Value, into: Value, own: Value, *rest: Value | None) -> list[Value]:
    """x (steps, batch, I): every direction applies its weights (directions, gates * H, I or H) to each; all stays."""
    for weight in (into, own):
        call.multiply(*weight.axes, *x.axes[:2], weight=weight.name)
    return unknown(call, x, into, own, *rest)


@register_rule("onnx::BatchNormalization")
def batch_norm(call: NodeCall, x: Value, *parameters: Value) -> Value:
    """As PyTorch's; the statistics that it may return as well are outputs of no file made for inference."""
    return layers.channel_norm(call, x, *parameters)


@register_rule("onnx::LayerNormalization", "onnx::RMSNormalization", "onnx::SimplifiedLayerNormalization")
def layer_norm(call: NodeCall, x: Value, *parameters: Value | None) -> Value | list[Value]:
    """Normalizes over the axes from ``axis`` on, which the parameters have too."""
    shape = x.shape[call.attribute("axis", -1) :]
    if any(len(parameter.axes) != len(shape) for parameter in values_in(parameters)):
        return unknown(call, x, *parameters)
    return layers.layer_norm(call, x, shape, *parameters)


@register_rule("onnx::GroupNormalization")
def group_norm(call: NodeCall, x: Value, *parameters: Value) -> Value | list[Value]:
    """As PyTorch's, from version 21 on; before that the parameters are per group."""
    if any(len(parameter.axes[0]) != len(x.axes[1]) for parameter in parameters):
        return unknown(call, x, *parameters)
    return layers.group_norm(call, x, call.attribute("num_groups", 1), *parameters)


@register_rule(*(f"onnx::{kind}Pool" for kind in ("Average", "Max", "Lp")))
@register_rule(*(f"onnx::Global{kind}Pool" for kind in ("Average", "Max", "Lp")))
def pool(call: NodeCall, x: Value) -> list[Value]:
    """x (N, C, ...)."""
    return axes.over_space(call, x, len(x.axes) - 2)


@register_rule("onnx::Resize", "onnx::Upsample")
def resize(call: NodeCall, x: Value, *_: Value | None) -> Value:
    """Axes whose size changes stay; converters resize (N, C, H, W) as well as (N, H, W, C)."""
    out = Value(x.axes)
    for axis, size in enumerate(call.shape):
        if (
            size != len(x.axes[axis])
            or call.attribute("coordinate_transformation_mode", "") == "tf_crop_and_resize"
        ):
            call.keep(x.axes[axis], "pools or resizes a channel axis")
            out = out.with_axis(axis, fixed(size))
    sizes = call.numbers(3, "sizes") or []
    for i, axis in enumerate(call.attribute("axes", range(len(sizes)))):
        call.size("sizes", i, out.axes[axis])
    return out


@register_rule(
    *(
        f"onnx::Reduce{k}"
        for k in ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]
    )
)
def reduce(call: NodeCall, x: Value, *_: Value | None) -> Value:
    """As PyTorch's."""
    dims = call.numbers(1, "axes")
    if not dims and call.attribute("noop_with_empty_axes", 0):
        return Value(x.axes)
    return axes.reduction(call, x, dims)[0]


@register_rule("onnx::ArgMax", "onnx::ArgMin")
def arg_reduce(call: NodeCall, x: Value) -> Value:
    """A reduction along one axis."""
    return axes.reduction(call, x, call.attribute("axis", 0))[0]


@register_rule("onnx::Softmax", "onnx::LogSoftmax", "onnx::Hardmax")
def softmax(call: NodeCall, x: Value) -> Value:
    """Over one axis; before version 13 over all from there on."""
    if call.opset >= 13:
        return axes.softmax(call, x, call.attribute("axis", -1))[0]
    for axis in range(call.attribute("axis", 1) % len(x.axes), len(x.axes)):
        axes.softmax(call, x, axis)
    return Value(x.axes)


@register_rule("onnx::CumSum")
def cumulative_sum(call: NodeCall, x: Value, _: Value) -> Value | list[Value]:
    """Along one axis, which stays."""
    axis = call.numbers(1)
    return axes.softmax(call, x, axis[0]) if axis else unknown(call, x)


@register_rule("onnx::Trilu")
def triangle(call: NodeCall, x: Value, *_: Value | None) -> Value:
    """Part of a matrix of the last two axes, which stay."""
    for axis in (-1, -2):
        call.keep(x.axes[axis], "cuts a channel axis at fixed positions")
    return Value(x.axes)


@register_rule("onnx::Reshape")
def reshape(call: NodeCall, x: Value, _: Value | None = None) -> Value:
    """As PyTorch's; 0 and -1 in the wanted shape follow by themselves."""
    out = shapes.reshape(call, x)
    for i, size in enumerate(call.numbers(1, "shape") or []):
        if size > 0:
            call.size("shape", i, out.axes[i])
    return out


@register_rule("onnx::Expand")
def expand(call: NodeCall, x: Value, _: Value) -> Value:
    """To a shape that is aligned with the last axes."""
    out = shapes.expand(call, x, ())
    sizes = call.numbers(1) or []
    for i, size in enumerate(sizes):
        if size > 1:
            call.size("shape", i, out.axes[i - len(sizes)])
    return out


@register_rule("onnx::ConstantOfShape")
def constant_of_shape(call: NodeCall, _: Value) -> Value:
    """A new tensor."""
    out = layers.constant(call)
    for i, ids in enumerate(out.axes):
        call.size("input", i, ids)
    return out


@register_rule("onnx::Transpose")
def transpose(call: NodeCall, x: Value) -> Value:
    """Without an order the axes are reversed."""
    return shapes.permute(call, x, call.attribute("perm", range(len(x.axes))[::-1]))


@register_rule("onnx::Concat")
def concat(call: NodeCall, *tensors: Value) -> Value:
    """As PyTorch's."""
    return shapes.cat(call, tensors, call.attribute("axis", 1))


@register_rule("onnx::Split")
def split(call: NodeCall, x: Value, _: Value | None = None) -> list[Value]:
    """As PyTorch's."""
    axis = call.attribute("axis", 0)
    parts = shapes.split(call, x, None, axis)
    for i in range(len(call.numbers(1, "split") or [])):
        call.size("split", i, parts[i].axes[axis])
    return parts


@register_rule("onnx::Slice")
def slices(call: NodeCall, x: Value, *_: Value | None) -> Value | list[Value]:
    """Ranges of several axes, one after the other."""
    starts, ends = call.numbers(1, "starts"), call.numbers(2, "ends")
    if starts is None or ends is None:
        return unknown(call, x)
    axes = call.numbers(3, "axes") or range(len(starts))
    steps = call.numbers(4) or [1] * len(starts)
    for i, (start, end, axis, step) in enumerate(zip(starts, ends, axes, steps, strict=True)):
        ids = x.axes[axis]
        if step < 0:
            call.keep(ids, "reverses a channel axis")
            x = x.with_axis(axis, fixed(call.shape[axis]))
            continue
        chosen = range(len(ids))[start:end]
        x = shapes.slice_(call, x, axis, start, end, step)
        if chosen.start > 0:
            call.size("starts", i, ids[: chosen.start])
        if chosen.stop < len(ids):
            call.size("ends", i, ids[: chosen.stop])
    return x


@register_rule("onnx::Gather")
def gather(call: NodeCall, x: Value, picks: Value) -> Value:
    """Entries of a table, or indices of an axis, which stays; the axes of the indices take its place."""
    axis = call.attribute("axis", 0) % len(x.axes)
    if x.name is not None and axis == 0 and len(x.axes) == 2:
        return attention.embedding(call, x, picks)
    call.keep(x.axes[axis], "" if x.name else "picks channels by index")
    for ids in picks.axes:
        call.keep(ids)
    return Value((*x.axes[:axis], *map(fixed, picks.shape), *x.axes[axis + 1 :]))


@register_rule("onnx::Tile")
def tile(call: NodeCall, x: Value, _: Value) -> Value:
    """As PyTorch's."""
    return shapes.repeat(call, x, ())


@register_rule("onnx::DepthToSpace")
def depth_to_space(call: NodeCall, x: Value) -> Value:
    """x (N, C * block ** 2, H, W) -> (N, C, H * block, W * block): C runs first (CRD), or last (DCR)."""
    factor: int = call.attribute("blocksize", 1)
    if call.attribute("mode", "DCR") == "CRD":
        return shapes.pixel_shuffle(call, x, factor)
    ids = x.axes[1][: call.shape[1]]
    call.link(x.axes[1], np.tile(ids, factor**2))
    return Value((x.axes[0], ids, *map(fixed, call.shape[2:])))


@register_rule("onnx::SpaceToDepth")
def space_to_depth(call: NodeCall, x: Value) -> Value:
    """x (N, C, H * block, W * block) -> (N, block ** 2 * C, H, W), C running last."""
    ids = np.tile(x.axes[1], call.attribute("blocksize", 1) ** 2)
    return Value((x.axes[0], ids, *map(fixed, call.shape[2:])))


@register_rule("onnx::Pad")
def pad(call: NodeCall, x: Value, *_: Value | None) -> Value | list[Value]:
    """Amounts are all those before, then all those after, of the listed axes."""
    amounts = call.numbers(1, "pads")
    if amounts is None:
        return unknown(call, x)
    axes = call.padded_axes(len(x.axes))
    pairs = {axis: (amounts[i], amounts[i + len(axes)]) for i, axis in enumerate(axes)}
    flat: list[Any] = [n for axis in reversed(range(len(x.axes))) for n in pairs.get(axis, (0, 0))]
    return shapes.pad(call, x, flat, call.attribute("mode", "constant"))


@register_rule("onnx::Range", "onnx::EyeLike", "onnx::RandomNormal", "onnx::RandomUniform")
def positions(call: NodeCall, *_: Value | None) -> Value:
    """Made of numbers: it stays."""
    return call.fixed_output()
