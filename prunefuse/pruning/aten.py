"""The rules of PyTorch's own operators, as :mod:`torch.export` writes them; importing this registers them.

Pointwise operators are not listed: :func:`~prunefuse.pruning.rules.find_rule` knows them by their tag.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from prunefuse.pruning.coupling import Ids, Value, fixed
from prunefuse.pruning.rules import broadcast, register_rule, unknown, values_in
from prunefuse.pruning.trace import Call


@register_rule(
    *("aten::" + name for name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")),
    *("aten::" + name for name in ("contiguous", "detach", "alias", "lift_fresh_copy", "to", "_to_copy")),
    *("aten::" + name for name in ("zeros_like", "ones_like", "full_like", "empty_like")),
)
def unchanged(call: Call, x: Value, *_: Any, **__: Any) -> Value:
    """Same channels out as in."""
    return Value(x.axes)


@register_rule(*("aten::" + name for name in ("new_zeros", "new_ones", "new_full", "new_empty")))
def constant(call: Call, *_: Any, **__: Any) -> Value:
    """A new tensor whose sizes are written in the code: they stay."""
    return call.fixed_output()


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
        for ids in (x.axes[channel], out, weight.axes[1]):
            call.keep(ids, "grouped convolutions are kept whole for now")
    if bias is not None:
        call.link(bias.axes[0], out)
    call.apply_weight(weight, 0)
    return Value((*x.axes[:channel], out, *map(fixed, call.shape[channel + 1 :])))


@register_rule("aten::linear")
def linear(call: Call, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """x (..., I), weight (O, I) -> (..., O)."""
    call.link(x.axes[-1], weight.axes[1])
    if bias is not None:
        call.link(bias.axes[0], weight.axes[0])
    call.apply_weight(weight, 0)
    return x.with_axis(-1, weight.axes[0])


@register_rule("aten::matmul", "aten::mm", "aten::bmm")
def matmul(call: Call, a: Value, b: Value) -> Value:
    """a (..., M, K) @ b (..., K, N) -> (..., M, N); batch axes broadcast."""
    if len(a.axes) < 2 or len(b.axes) < 2:
        return unknown(call, a, b)[0]
    call.link(a.axes[-1], b.axes[-2])
    batch = (Value((*v.axes[:-2], fixed(1), fixed(1))) for v in (a, b))
    out = broadcast(call, *batch)
    if b.name is not None:
        call.apply_weight(b, len(b.axes) - 1)
    if a.name is not None:
        call.apply_weight(a, len(a.axes) - 2)
    return out.with_axis(-2, a.axes[-2]).with_axis(-1, b.axes[-1])


@register_rule("aten::addmm", "aten::baddbmm")
def addmm(call: Call, bias: Value, a: Value, b: Value, **_: Any) -> Value:
    """bias + a @ b."""
    return broadcast(call, matmul(call, a, b), bias)


@register_rule("aten::batch_norm", "aten::instance_norm")
def channel_norm(call: Call, x: Value, *args: Any) -> Value:
    """Weight, bias, running mean and running variance belong to axis 1 of x (N, C, ...)."""
    for parameter in values_in(args):
        call.link(x.axes[1], parameter.axes[0])
    return Value(x.axes)


@register_rule("aten::prelu")
def prelu(call: Call, x: Value, weight: Value) -> Value:
    """One slope for all, or one for each channel of axis 1."""
    if len(weight.axes[0]) > 1:
        call.link(x.axes[1], weight.axes[0])
    return Value(x.axes)


@register_rule(
    *(f"aten::{kind}_pool{d}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for d in (1, 2, 3)),
    *(
        f"aten::upsample_{kind}"
        for kind in ("nearest1d", "nearest2d", "nearest3d", "bilinear2d", "trilinear3d")
    ),
)
def spatial(call: Call, x: Value, *_: Any, **__: Any) -> list[Value]:
    """Pooling and resizing: the last one, two or three axes change, the channels before them do not."""
    dims = int(call.op.rstrip("d")[-1])
    for ids in x.axes[-dims:]:
        call.keep(ids, "pools or resizes a channel axis")
    return [Value((*x.axes[:-dims], *map(fixed, shape[-dims:]))) for shape in call.shapes]


@register_rule(*("aten::" + name for name in ("mean", "sum", "amax", "amin", "prod", "logsumexp")))
def reduction(call: Call, x: Value, dim: Any = None, *_: Any, **__: Any) -> Value:
    """Reduced axes stay whole: the result depends on every one of their channels."""
    dims = [dim] if isinstance(dim, int) else dim
    reduced = {d % len(x.axes) for d in dims} if dims else set(range(len(x.axes)))
    for axis in reduced:
        call.keep(x.axes[axis], "reduces over channels")
    keepdim = len(call.shape) == len(x.axes)
    axes = [fixed(1) if axis in reduced else ids for axis, ids in enumerate(x.axes)]
    return Value(tuple(ids for axis, ids in enumerate(axes) if keepdim or axis not in reduced))


@register_rule("aten::softmax", "aten::log_softmax")
def softmax(call: Call, x: Value, dim: int, *_: Any, **__: Any) -> Value:
    """Normalizes over one axis, which stays whole."""
    call.keep(x.axes[dim], "normalizes over channels")
    return Value(x.axes)


@register_rule(
    *("aten::" + name for name in ("view", "reshape", "_unsafe_view", "flatten", "unflatten")),
    *("aten::" + name for name in ("squeeze", "unsqueeze", "view_as", "reshape_as")),
)
def reshape(call: Call, x: Value, *_: Any) -> Value:
    """Splits and merges axes: ids follow their elements where one axis in and one axis out can carry them."""
    axes = [fixed(1)] * len(call.shape)
    for source, target in _equal_products(x.shape, call.shape):
        for axis, ids in zip(target, _regroup(call, x, source, target), strict=True):
            axes[axis] = ids
    return Value(tuple(axes))


def _equal_products(a: Sequence[int], b: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Pair the axes of two shapes of the same product, in the smallest runs of equal product."""
    rest = [[i for i, size in enumerate(shape) if size != 1] for shape in (a, b)]
    pairs = []
    while rest[0] and rest[1]:
        left, right = [rest[0].pop(0)], [rest[1].pop(0)]
        while (p := math.prod(a[i] for i in left)) != (q := math.prod(b[i] for i in right)):
            (left if p < q else right).append(rest[0 if p < q else 1].pop(0))
        pairs.append((left, right))
    return pairs


def _regroup(call: Call, x: Value, source: list[int], target: list[int]) -> list[Ids]:
    if len(source) == len(target) == 1:
        return [x.axes[source[0]]]
    sizes = [call.shape[i] for i in target]
    live = [i for i in source if x.axes[i].any()]
    if len(live) == 1:
        # Write the ids into an array of the input's shape, read it in the output's.
        view = [-1 if i == live[0] else 1 for i in source]
        grid = np.broadcast_to(x.axes[live[0]].reshape(view), [len(x.axes[i]) for i in source]).reshape(sizes)
        for k in range(len(target)):
            lanes = np.moveaxis(grid, k, 0).reshape(sizes[k], -1)
            if (lanes == lanes[:, :1]).all():
                return [lanes[:, 0] if i == k else fixed(size) for i, size in enumerate(sizes)]
    for i in live:
        call.keep(x.axes[i], "splits a channel axis, or merges two")
    return [fixed(size) for size in sizes]


@register_rule("aten::expand", "aten::expand_as")
def expand(call: Call, x: Value, *_: Any, **__: Any) -> Value:
    """New axes and repeated axes have sizes written in the code: they stay."""
    return broadcast(call, x)


@register_rule("aten::permute")
def permute(call: Call, x: Value, dims: Sequence[int]) -> Value:
    """Axes in another order."""
    return Value(tuple(x.axes[d] for d in dims))


@register_rule("aten::transpose", "aten::swapaxes", "aten::t")
def transpose(call: Call, x: Value, dim0: int = 0, dim1: int = -1) -> Value:
    """Two axes exchanged; ``t`` exchanges the two of a matrix."""
    return x.with_axis(dim0, x.axes[dim1]).with_axis(dim1, x.axes[dim0])


@register_rule("aten::cat", "aten::concat")
def cat(call: Call, tensors: Sequence[Value], dim: int = 0) -> Value:
    """One axis holds the channels of all inputs, one after the other; the others are coupled."""
    joined = np.concatenate([v.axes[dim] for v in tensors])
    return broadcast(call, *(v.with_axis(dim, fixed(1)) for v in tensors)).with_axis(dim, joined)


@register_rule("aten::stack")
def stack(call: Call, tensors: Sequence[Value], dim: int = 0) -> Value:
    """A new axis, which stays."""
    at = dim % len(call.shape)
    return broadcast(call, *(Value((*v.axes[:at], fixed(1), *v.axes[at:])) for v in tensors))


@register_rule("aten::slice", "aten::narrow")
def slice_(
    call: Call, x: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Value:
    """Part of an axis; a channel axis cut at positions written in the code stays whole."""
    if call.shape[dim] != len(x.axes[dim]):
        call.keep(x.axes[dim], "cuts a channel axis at fixed positions")
        return x.with_axis(dim, fixed(call.shape[dim]))
    return Value(x.axes)


@register_rule(*("aten::" + name for name in ("chunk", "split", "split_with_sizes", "tensor_split")))
def split(call: Call, x: Value, sections: Any, dim: int = 0) -> list[Value]:
    """Several parts of an axis."""
    return [slice_(Call(call.op, call.module, (shape,), call.trace), x, dim) for shape in call.shapes]


@register_rule("aten::select")
def select(call: Call, x: Value, dim: int, index: int) -> Value:
    """One index of an axis, which is dropped."""
    call.keep(x.axes[dim], "picks one channel")
    axes = list(x.axes)
    del axes[dim]
    return Value(tuple(axes))


@register_rule("aten::unbind")
def unbind(call: Call, x: Value, dim: int = 0) -> list[Value]:
    """Every index of an axis on its own."""
    return [select(call, x, dim, 0)] * len(call.shapes)


@register_rule("aten::pad", "aten::constant_pad_nd")
def pad(call: Call, x: Value, amounts: Sequence[int], mode: Any = "constant", value: Any = None) -> Value:
    """Amounts are two per axis, the last axis first; added channels are constant."""
    out = Value(x.axes)
    for i, (before, after) in enumerate(zip(amounts[::2], amounts[1::2], strict=True)):
        if not (before or after):
            continue
        axis = len(x.axes) - 1 - i
        ids = x.axes[axis]
        padded = fixed(call.shape[axis])
        if min(before, after) < 0 or (isinstance(mode, str) and mode != "constant"):
            call.keep(ids, "crops channels, or adds copies of them")
        elif ids.any():
            padded = call.pad(ids, axis, before, after)
        out = out.with_axis(axis, padded)
    return out
