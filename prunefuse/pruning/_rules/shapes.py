"""The rules of operators that only move elements, so that ids move with them: reshape, permute, cat, slice, pad."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise, zip_longest
from operator import mul
from typing import Any

import numpy as np

from prunefuse.pruning._graph.couplings import Ids, Value, fixed
from prunefuse.pruning._graph.trace import Call
from prunefuse.pruning._rules.axes import same_places
from prunefuse.pruning._rules.registry import broadcast, register_rule, unknown, values_in


@register_rule(
    *("aten::" + name for name in ("view", "reshape", "_unsafe_view", "flatten", "unflatten")),
    *("aten::" + name for name in ("squeeze", "unsqueeze", "view_as", "reshape_as")),
)
def reshape(call: Call, x: Value, *args: Any) -> Value:
    """Splits and merges axes: ids follow their elements, over the factors that both shapes consist of."""
    axes = [fixed(1)] * len(call.shape)
    if 0 in x.shape:
        axes = _axes_of_nothing(call, x)
    for source, target in _equal_products(x.shape, call.shape):
        for axis, ids in zip(target, _regroup(call, x, source, target), strict=True):
            axes[axis] = ids
    sizes = [size for size in args if isinstance(size, list | tuple)]
    if sizes and len(sizes[-1]) <= len(axes):  # of unflatten, only the axes that it makes
        for ids in axes:
            if len(ids) in sizes[-1]:
                call.holds(ids)
    return Value(tuple(axes))


def _axes_of_nothing(call: Call, x: Value) -> list[Ids]:
    """The axes of a tensor without elements: as in the input from the end on where they are as long, else anything."""
    pairs = zip_longest(reversed(call.shape), reversed(x.axes[-len(call.shape) :]))
    return [
        ids if ids is not None and len(ids) == size else call.trace.couplings.open(size)
        for size, ids in pairs
    ][::-1]


def _equal_products(a: Sequence[int], b: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Pair the axes of two shapes of the same product, in the smallest runs of equal product."""
    rest = [[i for i, size in enumerate(shape) if size != 1 and 0 not in shape] for shape in (a, b)]
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
    shapes = [[x.shape[i] for i in source], [call.shape[i] for i in target]]
    ends = [list(accumulate(shape, mul)) for shape in shapes]
    cuts = sorted({1, *ends[0], *ends[1]})
    if any(b % a for a, b in pairwise(cuts)):
        for i in source:
            call.keep(x.axes[i], "splits a channel axis, or merges two")
        return [fixed(size) for size in shapes[1]]

    def sizes(end: int, size: int) -> tuple[int, ...]:
        inner = [cut for cut in cuts if end // size <= cut <= end]
        return tuple(b // a for a, b in pairwise(inner))

    parts = [
        part
        for i, end in zip(source, ends[0], strict=True)
        for part in _split(call, x.axes[i], sizes(end, x.shape[i]))
    ]
    merged = []
    for end, size in zip(ends[1], shapes[1], strict=True):
        count = len(sizes(end, size))
        merged.append(_merge(call, parts[:count]))
        parts = parts[count:]
    return merged


def _split(call: Call, ids: Ids, sizes: tuple[int, ...]) -> list[Ids]:
    """The ids of the factors of an axis."""
    if len(sizes) == 1:
        return [ids]
    if not ids.any():
        return [fixed(size) for size in sizes]
    grid = ids.reshape(sizes)
    for k, size in enumerate(sizes):
        lanes = np.moveaxis(grid, k, 0).reshape(size, -1)
        if (lanes == lanes[:, :1]).all():  # it was merged from this factor and others that stay
            return [lanes[:, 0] if i == k else fixed(n) for i, n in enumerate(sizes)]
    call.holds(ids)
    factors = call.trace.couplings.split(ids, sizes, call.where)
    for factor in factors:
        call.holds(factor)
    return list(factors)


def _merge(call: Call, parts: Sequence[Ids]) -> Ids:
    """The ids of an axis that runs over several."""
    live = [k for k, ids in enumerate(parts) if ids.any()]
    if len(parts) == 1:
        return parts[0]
    if len(live) < 2:
        grid = np.zeros([len(ids) for ids in parts], dtype=np.int64)
        for k in live:
            grid += parts[k].reshape([-1 if i == k else 1 for i in range(len(parts))])
        return grid.ravel()
    merged = call.trace.couplings.merge(tuple(parts), call.where)
    call.holds(merged)
    return merged


@register_rule("aten::expand", "aten::expand_as")
def expand(call: Call, x: Value, sizes: Any = (), **_: Any) -> Value:
    """New axes and repeated axes are alike in every index; their sizes may be written in the code."""
    out = _repeated(call, broadcast(call, x), x)
    for ids in out.axes:
        if not isinstance(sizes, Value) and len(ids) in sizes:
            call.holds(ids)
    return out


@register_rule("aten::repeat", "aten::tile")
def repeat(call: Call, x: Value, counts: Sequence[int]) -> Value:
    """Every axis as often as wanted, one whole after the other; new axes in front."""
    axes = (fixed(1),) * (len(call.shape) - len(x.axes)) + x.axes
    whole = tuple(_tiled(call, ids, size) for ids, size in zip(axes, call.shape, strict=True))
    out = _repeated(call, Value(whole), x)
    for mine, ids in zip(out.axes, whole, strict=True):
        if mine is not ids:
            call.holds(mine)
    return out


def _tiled(call: Call, ids: Ids, size: int) -> Ids:
    """An axis one time after the other; of one that stays any time may leave, as where tokens are repeated for each expert."""
    times = size // max(1, len(ids))
    if times < 2 or len(ids) < 2 or ids.any() or not call.trace.routing:
        return np.tile(ids, times)
    each = call.trace.couplings.open(times)
    call.holds(each)
    return np.repeat(each, len(ids))


def _repeated(call: Call, out: Value, x: Value) -> Value:
    """The output, of which axes that repeat one index are like those of a constant: any of their indices may leave."""
    old = (fixed(1),) * (len(out.axes) - len(x.axes)) + x.axes
    pairs = zip(out.axes, old, strict=True)
    return Value(tuple(call.trace.couplings.open(len(a)) if len(a) > len(b) == 1 else a for a, b in pairs))


@register_rule("aten::repeat_interleave")
def repeat_interleave(call: Call, x: Value, repeats: Any, dim: int | None = None, **_: Any) -> Value:
    """Every index of one axis several times in a row; an axis of which each has its own number of times stays."""
    if dim is not None and isinstance(repeats, Value):
        call.keep(x.axes[dim], "picks channels by index")
        return x.with_axis(dim, fixed(call.shape[dim]))
    if dim is None or not isinstance(repeats, int):
        return unknown(call, x, repeats)[0]
    return x.with_axis(dim, np.repeat(x.axes[dim], repeats))


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
    """One axis holds the channels of all inputs, one after the other; the others are coupled.

    An input of shape (0,) stands for no tensor at all, whatever the others' shape.
    """
    tensors = [v for v in tensors if len(v.axes) == len(call.shape)]
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
    """Part of an axis; a channel axis is cut into equal blocks, or where the module says, or all leave of so many in a row."""
    ids, size = x.axes[dim], call.shape[dim]
    if size == len(ids):
        return Value(x.axes)
    first = range(len(ids))[start:].start  # counted from the front
    if step == 1 and size and not len(ids) % size and not first % size:
        return x.with_axis(dim, _blocks(call, ids, size)[first // size])
    if not size:
        return x.with_axis(dim, fixed(0))
    if (
        1 < step == len(ids) / size and first < step
    ):  # one of every so many, as of gates between what they are for
        call.link(ids, np.repeat(ids[::step], step))
        return x.with_axis(dim, ids[first::step])
    parts = [n for n in (first, size, len(ids) - first - size) if n]
    if step != 1 or 1 in parts:
        call.keep(ids, "cuts a channel axis at fixed positions")
        return x.with_axis(dim, fixed(size))
    part = ids[first : first + size]
    for held in (ids, ids[:first], ids[: first + size], part):
        if len(held):
            call.holds(held)
    return x.with_axis(dim, part)


def _blocks(call: Call, ids: Ids, size: int) -> list[Ids]:
    """Equal parts of an axis, which stay equal: all lose the same local channels."""
    if ids.any():
        call.link(ids, np.tile(ids[:size], len(ids) // size))
        call.holds(ids)
        call.holds(ids[:size])
    return list(ids.reshape(-1, size))


@register_rule(
    *("aten::" + name for name in ("chunk", "split", "split_with_sizes", "tensor_split")),
    *("aten::unsafe_" + name for name in ("chunk", "split", "split_with_sizes")),
)
def split(call: Call, x: Value, sections: Any, dim: int = 0) -> list[Value]:
    """Several parts of an axis: of equal size, or of sizes that the module says."""
    ids = x.axes[dim]
    sizes = [shape[dim] for shape in call.shapes]
    if len(set(sizes)) == 1 and sizes[0]:
        return [x.with_axis(dim, block) for block in _blocks(call, ids, sizes[0])]
    if not isinstance(sections, list | tuple) or call.op == "aten::tensor_split":
        call.keep(ids, "cuts a channel axis at fixed positions")
    parts = np.split(ids if isinstance(sections, list | tuple) else fixed(len(ids)), np.cumsum(sizes)[:-1])
    for held in (ids, *parts):
        call.holds(held)
    return [x.with_axis(dim, part) for part in parts]


@register_rule("aten::glu")
def glu(call: Call, x: Value, dim: int = -1) -> Value:
    """The first half of an axis times a function of the second."""
    if not call.shape[dim]:
        return Value(x.axes)
    return x.with_axis(dim, _blocks(call, x.axes[dim], call.shape[dim])[0])


@register_rule("aten::select")
def select(call: Call, x: Value, dim: int, index: int) -> Value:
    """One index of an axis, which is dropped."""
    if not call.trace.pointing or not same_places(call, x.axes[dim], call.trace.pointing.pop()):
        call.keep(x.axes[dim], "picks one channel")
    axes = list(x.axes)
    del axes[dim]
    return Value(tuple(axes))


@register_rule("aten::unbind")
def unbind(call: Call, x: Value, dim: int = 0) -> list[Value]:
    """Every index of an axis on its own."""
    return [select(call, x, dim, 0)] * len(call.shapes)


@register_rule("aten::index")
def index(call: Call, x: Value, indices: Sequence[Value | None]) -> Value:
    """Picks by index tensors along some axes, which stay; their result takes the place of the first, if adjacent."""
    at = _indexed_axes(call, x, indices)
    if at is None:
        return unknown(call, x, indices)[0]
    picking = [picks for picks in indices if picks is not None]
    for axis, picks in zip_longest(at, picking):  # a mask takes the place of several axes, and has no places
        if picks is None or not same_places(call, x.axes[axis], picks.points):
            # A table has entries, not channels.
            call.keep(x.axes[axis], "" if x.name else "picks channels by index")
    for ids in (ids for picks in values_in(indices) for ids in picks.axes):
        call.keep(ids)
    rest = [ids for axis, ids in enumerate(x.axes) if axis not in at]
    picked = len(call.shape) - len(rest)
    first = at[0] if at == list(range(at[0], at[-1] + 1)) else 0
    shape = call.shape[first : first + picked]
    return Value((*rest[:first], *map(fixed, shape), *rest[first:]))


def _indexed_axes(call: Call, x: Value, indices: Sequence[Value | None]) -> list[int] | None:
    """The axes that index tensors take the place of: one for each, or as many as a mask has; None if it is not clear."""
    ranks = [0 if picks is None else len(picks.axes) for picks in indices]
    for masks in (False, True):
        at: list[int] = []
        made = axis = 0
        for picks, rank in zip(indices, ranks, strict=True):
            wide = max(1, rank) if masks else 1
            if picks is not None:
                at += range(axis, axis + wide)
                made = max(made, 1 if masks else rank)
            axis += 1 if picks is None else wide
        if len(x.axes) - len(at) + made == len(call.shape):
            return at
    return None


@register_rule("aten::index_put")
def index_put(
    call: Call, x: Value, indices: Sequence[Value | None], values: Value, *_: Any, **__: Any
) -> Value:
    """Writes at places along the first axes, which stay; the later ones are also those of what is written."""
    picks = values_in(indices)
    # A mask takes the place of as many axes as it has.
    first = sum(1 if pick is None else max(1, len(pick.axes)) for pick in indices)
    for ids in x.axes[:first]:
        call.keep(ids, "picks channels by index")
    for ids in (ids for pick in picks for ids in pick.axes):
        call.keep(ids)
    later = len(x.axes) - min(first, len(x.axes))
    for back, ids in enumerate(reversed(values.axes), 1):
        if back <= later and len(ids) == len(x.axes[-back]):
            call.link(ids, x.axes[-back])
        else:
            call.keep(ids)
    return Value(x.axes)


@register_rule("aten::im2col")
def im2col(call: Call, x: Value, kernel: Sequence[int], *_: Any) -> Value:
    """x (..., C, H, W) -> (..., C * kernel elements, places)."""
    for ids in x.axes[-2:]:
        call.keep(ids)
    channels = np.repeat(x.axes[-3], math.prod(kernel))
    return Value((*x.axes[:-3], channels, fixed(call.shape[-1])))


@register_rule("aten::col2im")
def col2im(call: Call, x: Value, size: Sequence[int], kernel: Sequence[int], *_: Any) -> Value:
    """x (..., C * kernel elements, places) -> (..., C, H, W)."""
    each = math.prod(kernel)
    channels = x.axes[-2][::each]
    call.link(x.axes[-2], np.repeat(channels, each))
    call.keep(x.axes[-1])
    return Value((*x.axes[:-2], channels, *map(fixed, call.shape[-2:])))


@register_rule("aten::channel_shuffle", "aten::native_channel_shuffle")
def channel_shuffle(call: Call, x: Value, groups: int) -> Value:
    """x (N, C, ...): the groups are interleaved, and lose the same local channels."""
    ids = x.axes[1]
    call.link(ids, np.tile(ids[: len(ids) // groups], groups))
    return x.with_axis(1, ids.reshape(groups, -1).T.ravel())


@register_rule("aten::pixel_shuffle")
def pixel_shuffle(call: Call, x: Value, factor: int) -> Value:
    """x (..., C * factor ** 2, H, W) -> (..., C, H * factor, W * factor)."""
    ids = x.axes[-3][:: factor**2]
    call.link(x.axes[-3], np.repeat(ids, factor**2))
    return Value((*x.axes[:-3], ids, *map(fixed, call.shape[-2:])))


@register_rule("aten::pixel_unshuffle")
def pixel_unshuffle(call: Call, x: Value, factor: int) -> Value:
    """x (..., C, H, W) -> (..., C * factor ** 2, H / factor, W / factor)."""
    return Value((*x.axes[:-3], np.repeat(x.axes[-3], factor**2), *map(fixed, call.shape[-2:])))


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
