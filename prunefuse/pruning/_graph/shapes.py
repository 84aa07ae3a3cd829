"""What operators give without values: the shape that they gave for such inputs before, which PyTorch finds slowly in Python."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor

Kind: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
"""The shape, strides and type of a tensor."""

_MOST = 1 << 16
_found: dict[Any, Kind] = {}
"""Operator and arguments -> what it gives; for all models, as these have much in common."""


def kind_of(tensor: Tensor) -> Kind:
    """What a tensor without values is known by."""
    return tensor.shape, tensor.stride(), tensor.dtype


def bare_tensor(kind: Kind) -> Tensor:
    """A new tensor without values."""
    shape, strides, dtype = kind
    with torch._C._DisablePythonDispatcher():
        return torch.empty_strided(shape, strides, dtype=dtype, device="meta")


class Asked:
    """A call whose result is asked for: the operator, then its arguments, one by one.

    Args:
        func: The operator.
    """

    __slots__ = ("_func", "_key", "_like")

    def __init__(self, func: Any) -> None:
        self._func = func
        self._key: list[Any] | None = None
        self._like: list[Kind] = []
        if _makes_new(func) and not torch._C._is_any_autocast_enabled():
            self._key = [func, torch.get_default_dtype()]

    def of_tensor(self, tensor: Tensor) -> None:
        """A tensor is the next argument, or the next in a container."""
        if self._key is not None:
            if tensor.is_meta:
                self._key.append((tensor.shape, tensor.stride(), tensor.dtype))
            else:
                self._key = None

    def of_container(self, kind: type, size: Any) -> None:
        """So many arguments follow."""
        if self._key is not None:
            self._key.append((kind, size))

    def of_other(self, kind: type, value: Any) -> None:
        """The next argument is no plain tensor."""
        if self._key is not None:
            if kind in _PLAIN:
                self._key.append((kind, value))
            else:
                self._key = None

    def known(self) -> Tensor | None:
        """The result, if such a call was made before."""
        if self._key is None:
            return None
        kind = _found.get(tuple(self._key))
        return None if kind is None else bare_tensor(kind)

    def note(self, result: Any) -> None:
        """Remember the result."""
        if self._key is not None and type(result) is Tensor and result.is_meta:
            if len(_found) >= _MOST:
                _found.clear()
            _found[tuple(self._key)] = kind_of(result)


def like_input(func: Any, args: Any) -> Tensor | None:
    """What norms and dropout give, which is like their input, if their arguments fit; None for others."""
    kind = _LIKE_INPUT.get(func)
    if kind is None or not args or not isinstance(args[0], Tensor) or not args[0].is_meta:
        return None
    return torch.empty_like(args[0]) if _fit(kind, *args) else None


def _fit(kind: str, x: Tensor, *args: Any) -> bool:
    """Whether the other arguments of a norm fit its input; where they do not, the operator says why."""
    if kind == "dropout":
        return True
    if x.ndim < 2 or len(args) < 3:
        return False
    if kind == "layer_norm":
        size = tuple(args[0])
        return tuple(x.shape[x.ndim - len(size) :]) == size and _have_shape(args[1:3], size)
    if kind == "group_norm":
        return bool(x.shape[1] % args[0] == 0) and _have_shape(args[1:3], x.shape[1:2])
    return _have_shape(args[:4], x.shape[1:2])


def _have_shape(tensors: Iterable[Any], shape: tuple[int, ...]) -> bool:
    return all(x is None or (isinstance(x, Tensor) and tuple(x.shape) == tuple(shape)) for x in tensors)


@cache
def _makes_new(func: Any) -> bool:
    """Whether an operator gives one new tensor and writes into none."""
    schema = getattr(func, "_schema", None)
    if schema is None or schema.is_mutable or len(schema.returns) != 1:
        return False
    return schema.returns[0].alias_info is None


_LIKE_INPUT = {
    getattr(torch.ops.aten, name).default: kind
    for name, kind in {
        **{name: name for name in ("batch_norm", "instance_norm", "layer_norm", "group_norm")},
        **dict.fromkeys(("dropout", "alpha_dropout", "feature_dropout"), "dropout"),
    }.items()
}

_PLAIN = frozenset(
    (bool, int, float, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
)
