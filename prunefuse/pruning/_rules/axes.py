"""The rules of operators that work along some axes, which stay, and do the same to every index of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prunefuse.pruning._graph.couplings import Ids, Value, fixed
from prunefuse.pruning._graph.trace import Call
from prunefuse.pruning._rules.registry import broadcast, register_rule, unknown, values_in

_ALONG = "works along a channel axis"
_PICKS = "picks channels by index"
_MORE = "adds up channels, of which there are more"


def along(
    call: Call,
    x: Value,
    dims: Any,
    why: str = _ALONG,
    unlike: str = "",
    *,
    experts: bool = False,
    least: int = 0,
) -> list[Value]:
    """All outputs have the axes of x; those in ``dims`` (None or empty: all) at any size, or not at all.

    ``unlike`` says why a statistic changes where all channels are there twice, if it does. With ``experts`` it may work along
    experts of which a router chooses: gives something of each, or chooses ``least``.
    """
    rank = len(x.axes)
    axes = [dims] if isinstance(dims, int) else dims
    inside = {dim % rank for dim in axes} if rank and axes else set(range(rank))
    if call.normalizes:
        near = unlike != _MORE
        call.takes_statistics(*(x.axes[axis] for axis in sorted(inside)), unlike=unlike, near=near)
    for axis in inside:
        if experts:
            call.keep_unless_experts(x.axes[axis], why, least)
        elif not call.normalizes:
            call.keep(x.axes[axis], why)
    follows = experts and not least and call.trace.routing  # the outputs are of the same experts
    return [
        Value(
            tuple(
                ids if axis not in inside or follows else fixed(shape[axis])
                for axis, ids in enumerate(x.axes)
            )
        )
        if len(shape) == rank
        else Value(tuple(ids for axis, ids in enumerate(x.axes) if axis not in inside))
        for shape in call.shapes
    ]


@register_rule(
    *("aten::" + name for name in ("sum", "nansum", "prod", "logsumexp", "any", "all", "count_nonzero")),
    *("aten::" + name for name in ("amax", "amin", "aminmax", "argmax", "argmin", "max", "min")),
    *("aten::" + name for name in ("median", "nanmedian", "var", "std", "var_mean", "std_mean")),
)
def reduction(call: Call, x: Value, dim: Any = None, *more: Any, **options: Any) -> Sequence[Value]:
    """Reduced axes stay whole: the result depends on every one of their channels; but a norm's is over what is left."""
    if isinstance(dim, Value):  # the larger or smaller of two tensors
        return [broadcast(call, x, dim)]
    if call.op == "aten::sum" and (dims := _weighted(call, x, dim)):
        call.sums((x, sorted(dims)))
        return [
            Value(tuple(fixed(1) if axis in dims else ids for axis, ids in enumerate(x.axes)))
            if len(call.shape) == len(x.axes)
            else Value(tuple(ids for axis, ids in enumerate(x.axes) if axis not in dims))
        ]
    # The largest of experts is of those that are left, and so is a sum of what each gives.
    why, of_experts = "reduces over channels", call.op in ("aten::max", "aten::argmax", "aten::sum")
    of_experts &= not call.normalizes
    unlike, over = _unlike(call.op, more, options), None if isinstance(dim, bool) else dim
    return along(call, x, over, why, unlike, experts=of_experts, least=1)


def _unlike(op: str, more: Sequence[Any], options: Mapping[str, Any]) -> str:
    """Why a statistic changes where all channels are there twice; "" if it does not."""
    name = op.rpartition("::")[2]
    if name in ("mean", "ReduceMean"):
        return ""
    if name not in ("var", "std", "var_mean", "std_mean"):
        return _MORE
    unbiased = next((x for x in more[:1] if isinstance(x, bool)), options.get("unbiased"))
    correction = options.get("correction", 0 if unbiased is False else 1)
    return "" if correction == 0 else "divides by one less than the number of channels (unbiased)"


def _weighted(call: Call, x: Value, dim: Any) -> set[int]:
    """The axes of a sum, if it is over what was multiplied by a parameter with all of them: a linear map to one number."""
    made = next(
        (record for record in reversed(call.trace.calls) if any(x is y for y in record.outputs)), None
    )
    dims = {d % len(x.axes) for d in ([dim] if isinstance(dim, int) else dim or ())} if x.axes else set()
    if made is None or made.op != "aten::mul" or not dims:
        return set()
    wide = [
        value
        for value in made.inputs
        if len(value.axes) == len(x.axes) and all(len(value.axes[d]) == len(x.axes[d]) for d in dims)
    ]
    sources = [value if value.name is not None else call.trace.origin(value) for value in wide]
    return dims if len(wide) == 2 and any(source.name is not None for source in sources) else set()


@register_rule(
    "aten::linalg_vector_norm", "aten::linalg_norm", "aten::norm", "aten::quantile", "aten::nanquantile"
)
def reduction_of_order(
    call: Call, x: Value, order: Any = 2, dim: Any = None, *_: Any, **__: Any
) -> Sequence[Value]:
    """A reduction, whose first argument is no axis."""
    if isinstance(order, Value) and order.axes:  # several quantiles: a new axis in front
        return unknown(call, x, order)
    return reduction(call, x, dim)


@register_rule(
    *("aten::" + name for name in ("cumprod", "cummax", "cummin", "logcumsumexp", "flip")),
    *("aten::" + name for name in ("sort", "argsort", "msort", "mode")),
)
def along_axis(call: Call, x: Value, dim: Any = -1, *_: Any, **kwargs: Any) -> Sequence[Value]:
    """Order and position along one axis or several matter."""
    return along(call, x, kwargs.get("dim", dim) if not isinstance(dim, bool) else -1)


@register_rule("aten::cumsum")
def cumsum(call: Call, x: Value, dim: int, **_: Any) -> list[Value]:
    """Sums up to every index, as of how many tokens each expert has: one that nobody chooses has none."""
    return along(call, x, dim, experts=True)


@register_rule("aten::topk")
def topk(call: Call, x: Value, count: int, dim: int = -1, *_: Any, **__: Any) -> list[Value]:
    """So many largest values along one axis, and their places."""
    return along(call, x, dim, experts=True, least=count)


@register_rule(*("aten::" + name for name in ("kthvalue", "fft_fft", "fft_ifft", "fft_rfft", "fft_irfft")))
def count_along_axis(
    call: Call, x: Value, count: Any = None, dim: int = -1, *_: Any, **__: Any
) -> list[Value]:
    """So many results of one axis."""
    return along(call, x, dim)


@register_rule(*("aten::fft_" + name for name in ("fft2", "ifft2", "rfft2", "irfft2")))
def transform_of_planes(call: Call, x: Value, sizes: Any = None, dim: Any = (-2, -1), *_: Any) -> list[Value]:
    """A Fourier transform of two axes."""
    return along(call, x, dim)


@register_rule(*("aten::linalg_" + name for name in ("matrix_exp", "householder_product")))
def orthogonal(call: Call, *args: Any, **_: Any) -> Value:
    """What makes orthogonal weights: a part of one is none."""
    if "parametrizations" not in call.module:
        return unknown(call, *args)[0]
    for value in values_in(args):
        for ids in value.axes:
            call.keep(ids, "a part of an orthogonal weight is not orthogonal, so it stays whole")
    return call.fixed_output()


@register_rule("aten::roll")
def roll(call: Call, x: Value, shifts: Any, dims: Any = ()) -> list[Value]:
    """Moves elements round along some axes."""
    return along(call, x, dims, "rolls a channel axis")


@register_rule("aten::tril", "aten::triu")
def triangle(call: Call, x: Value, *_: Any) -> list[Value]:
    """Zero on one side of a diagonal of the last two axes."""
    return along(call, x, (-2, -1))


@register_rule("aten::softmax", "aten::log_softmax", "aten::_softmax", "aten::_log_softmax")
def softmax(call: Call, x: Value, dim: int, *_: Any, **__: Any) -> list[Value]:
    """Normalizes over one axis."""
    return along(call, x, dim, "normalizes over channels", experts=True)


@register_rule("aten::diagonal")
def diagonal(call: Call, x: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    """Two axes become one, the last."""
    (rest,) = along(call, x, (dim1, dim2))
    return Value((*rest.axes, fixed(call.shape[-1])))


@register_rule("aten::view_as_real")
def as_real(call: Call, x: Value) -> Value:
    """The parts of every number are a new last axis."""
    return Value((*x.axes, fixed(2)))


@register_rule("aten::view_as_complex")
def as_complex(call: Call, x: Value) -> Value:
    """The last axis holds the parts of a number."""
    call.keep(x.axes[-1], _ALONG)
    return Value(x.axes[:-1])


@register_rule("aten::bucketize")
def bucketize(call: Call, x: Value, bounds: Value, **_: Any) -> Value:
    """Compares every element with all bounds."""
    for ids in bounds.axes:
        call.keep(ids)
    return Value(x.axes)


@register_rule("aten::unfold")
def windows(call: Call, x: Value, dim: int, size: int, step: int) -> Value:
    """Windows of an axis, whose elements are a new last axis."""
    call.keep(x.axes[dim], _ALONG)
    return Value((*x.with_axis(dim, fixed(call.shape[dim])).axes, fixed(size)))


@register_rule("aten::index_select")
def index_select(call: Call, x: Value, dim: int, picks: Value) -> list[Value]:
    """Picks by one list of indices along one axis."""
    call.keep(picks.axes[0])
    if same_places(call, x.axes[dim], picks.points):
        return [x.with_axis(dim, fixed(call.shape[dim]))]
    return along(call, x, dim, "" if x.name else _PICKS)


def same_places(call: Call, ids: Ids, points: Ids | None) -> bool:
    """Whether an axis is picked from by places of one as long, which are then coupled; else these stay.

    The places may be of one more, which is none of them.
    """
    if points is None:
        return False
    if len(points) == len(ids) + 1 and not points[-1]:
        points = points[:-1]
    if len(points) != len(ids):
        call.keep(points)
        return False
    call.link(points, ids)
    return True


@register_rule("aten::gather")
def gather(call: Call, x: Value, dim: int, picks: Value, **_: Any) -> Value:
    """Every index of the other axes picks along one axis for itself."""
    return _for_itself(call, dim, picks, x)


@register_rule("aten::scatter", "aten::scatter_add", "aten::scatter_reduce")
def scatter(call: Call, x: Value, dim: int, picks: Value, source: Any = None, *_: Any, **__: Any) -> Value:
    """Every index of the other axes of the source says where along one axis it goes."""
    _for_itself(call, dim, picks, x, *([source] if isinstance(source, Value) else []))
    return Value(x.axes)


def _for_itself(call: Call, dim: int, picks: Value, *others: Value) -> Value:
    """The axes of the picks; but for one they belong to those of the others, and stay where these are longer."""
    for place, value in enumerate(others if picks.axes else ()):
        for axis, (mine, ids) in enumerate(zip(picks.axes, value.axes, strict=True)):
            along_it = axis == dim % len(picks.axes)
            if not along_it and len(mine) == len(ids) and mine.any() == ids.any():
                call.link(mine, ids)
            elif along_it and not place and same_places(call, ids, picks.points):
                call.keep(mine)
            else:
                call.keep(mine)
                call.keep(ids, _PICKS)
    return Value(picks.axes)


@register_rule("aten::masked_scatter")
def masked_scatter(call: Call, x: Value, mask: Value, source: Value) -> Value:
    """Puts the elements of a source, in their order, where a mask holds; if it is alike along the last axis, whole rows."""
    alike = (
        len(mask.axes) == len(x.axes) and call.trace.couplings.is_open(mask.axes[-1]) and bool(source.axes)
    )
    rows = alike and len(source.axes[-1]) == len(x.axes[-1]) == len(mask.axes[-1])
    if rows:
        call.link(x.axes[-1], mask.axes[-1])
        call.link(x.axes[-1], source.axes[-1])
    for value in (x, mask, source):
        for ids in value.axes[:-1] if rows else value.axes:
            call.keep(ids, _PICKS)
    return Value(x.axes)


@register_rule("aten::index_add", "aten::index_copy", "aten::index_fill", "aten::index_reduce")
def index_write(
    call: Call, x: Value, dim: int, picks: Value, source: Any = None, *_: Any, **__: Any
) -> Value:
    """Writes to some indices of one axis the values of a source."""
    (out,) = along(call, x, dim, _PICKS)
    for ids in picks.axes:
        call.keep(ids)
    if isinstance(source, Value) and source.axes:
        call.keep(source.axes[dim], _PICKS)
        for axis, ids in enumerate(source.axes):
            if axis != dim % len(source.axes):
                call.link(x.axes[axis], ids)
    return out


@register_rule(
    *(f"aten::{kind}_pool{d}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for d in (1, 2, 3)),
    *(f"aten::{kind}{d}d" for kind in ("upsample_nearest", "_upsample_nearest_exact") for d in (1, 2, 3)),
    *("aten::upsample_" + name for name in ("linear1d", "bilinear2d", "bicubic2d", "trilinear3d")),
    *("aten::" + name for name in ("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")),
    *("aten::" + name for name in ("max_pool2d_with_indices", "max_pool3d_with_indices")),
)
def spatial(call: Call, x: Value, *_: Any, **__: Any) -> list[Value]:
    """Pooling and resizing: the last one, two or three axes change, the channels before them do not."""
    return over_space(call, x, next(int(c) for c in reversed(call.op) if c.isdigit()))


def over_space(call: Call, x: Value, dims: int) -> list[Value]:
    """Pooling and resizing of so many of the last axes."""
    return along(call, x, range(-dims, 0), "pools or resizes a channel axis")


@register_rule("aten::max_unpool2d", "aten::max_unpool3d")
def unpool(call: Call, x: Value, picks: Value, *_: Any) -> list[Value]:
    """Every channel has places of its own to go to."""
    for left, right in zip(x.axes, picks.axes, strict=True):
        call.link(left, right)
    return over_space(call, x, int(call.op[-2]))


@register_rule(*("aten::" + name for name in ("nonzero", "nonzero_numpy", "argwhere", "masked_select")))
def places(call: Call, x: Value, *masks: Value) -> list[Value]:
    """What is found depends on the values along all axes."""
    for ids in (ids for value in (x, *masks) for ids in value.axes):
        call.keep_unless_experts(ids, _PICKS)
    if call.op == "aten::nonzero" and len(x.axes) == 1 and x.axes[0].any():
        return [Value(call.fixed_output().axes, points=x.axes[0])]
    return [call.fixed_output(i) for i in range(len(call.shapes))]


@register_rule("aten::_pack_padded_sequence")
def pack(call: Call, x: Value, lengths: Value, *_: Any) -> list[Value]:
    """x (B, T, ...) or (T, B, ...) -> (steps of all sequences, ...), and how many sequences have each step."""
    for ids in (*x.axes[:2], *lengths.axes):
        call.keep(ids, _ALONG)
    return [Value((fixed(call.shape[0]), *x.axes[2:])), call.fixed_output(1)]


@register_rule("aten::_pad_packed_sequence")
def unpack(call: Call, x: Value, sizes: Value, *_: Any) -> list[Value]:
    """The inverse of `pack`, and the lengths of the sequences."""
    for ids in (x.axes[0], *sizes.axes):
        call.keep(ids, _ALONG)
    return [Value((*map(fixed, call.shape[:2]), *x.axes[1:])), call.fixed_output(1)]


@register_rule("aten::grid_sampler", "aten::grid_sampler_2d", "aten::grid_sampler_3d")
def grid_sampler(call: Call, x: Value, grid: Value, *_: Any) -> Value:
    """x (N, C, ...), grid (N, out..., dimensions) -> (N, C, out...): all channels from the same places."""
    for ids in x.axes[2:]:
        call.keep(ids, "pools or resizes a channel axis")
    for ids in grid.axes[1:]:
        call.keep(ids)
    call.link(x.axes[0], grid.axes[0])
    return Value((*x.axes[:2], *map(fixed, call.shape[2:])))
