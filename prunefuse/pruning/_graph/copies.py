"""Copies of a model: cut, or without values."""

from __future__ import annotations

import copy
import copyreg
import hashlib
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain, zip_longest
from types import FunctionType, MethodType, ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunefuse._inputs import tensors_in


def all_names(model: nn.Module) -> dict[str, tuple[str, Tensor]]:
    """Every name of every parameter and buffer -> (the first name of that tensor, the tensor)."""
    first: dict[int, str] = {}
    named: Iterable[tuple[str, Tensor]]
    if any(getattr(type(model), name) is not getattr(nn.Module, name) for name in _NAMING):
        named = chain(
            model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
        )
    else:  # the same, going through the modules once
        modules = [
            (f"{path}." if path else "", module)
            for path, module in model.named_modules(remove_duplicate=False)
        ]
        named = (
            (prefix + name, tensor)
            for held in ("_parameters", "_buffers")
            for prefix, module in modules
            for name, tensor in getattr(module, held).items()
            if tensor is not None
        )
    return {name: (first.setdefault(id(tensor), name), tensor) for name, tensor in named}


_NAMING = ("named_parameters", "named_buffers", "named_modules", "_named_members")


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a model, each once, under its first name."""
    return {name: tensor for name, (first, tensor) in all_names(model).items() if name == first}


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over tensor names, shapes and ties, and module types; values, dtypes and devices do not count."""
    lines = [f"{name} {first} {list(tensor.shape)}" for name, (first, tensor) in all_names(model).items()]
    lines += [f"{path} {type(module).__name__}" for path, module in model.named_modules()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


_CLOSED = (nn.Module, type, FunctionType, MethodType, ModuleType)
_OWN = frozenset(vars(nn.Module()))
"""What every module keeps its parameters, buffers, modules and hooks in."""


_HOLD = (Tensor, Mapping, list, tuple)


def held_attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The attributes of a module that are tensors, or can hold some, and neither parameters nor buffers.

    Also those of plain objects that are its attributes, whose name has a dot, as in ``"helper.cache"``.
    """
    for name, value in vars(module).items():
        if name in _OWN:
            continue
        if isinstance(value, _HOLD):
            yield name, value
        elif hasattr(value, "__dict__") and not isinstance(value, _CLOSED):
            yield from ((f"{name}.{inner}", x) for inner, x in vars(value).items() if isinstance(x, _HOLD))


def attribute_of(module: nn.Module, name: str) -> Any:
    """An attribute of a module, or of an object that is one; None if there is none."""
    value: Any = module
    for part in name.split("."):
        value = getattr(value, "__dict__", {}).get(part)
    return value


def placed(name: str, modules: Collection[str]) -> tuple[str, str]:
    """Module path and attribute, maybe of an object that the module holds, of a name that has both."""
    path = name.rpartition(".")[0]
    while path not in modules:
        path = path.rpartition(".")[0]
    return path, name[len(path) + 1 :]


def held_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors in `held_attributes` of all modules: module path and attribute, tensor.

    In lists, tuples and dictionaries their place stands behind the name, as in ``"encoder.cache[0]"``.
    """
    for path, module in model.named_modules():
        for name, value in held_attributes(module):
            for place, tensor in enumerate(tensors_in(value)):
                yield f"{path}.{name}" + ("" if tensor is value else f"[{place}]"), tensor


class _Detached(TorchFunctionMode):
    """While it lasts, ``deepcopy`` of a tensor that autograd made gives its values, where PyTorch refuses."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A copy of a model, also of one that holds computed tensors, such as a ``weight`` that a hook makes anew."""
    with _Detached():
        result: nn.Module = _copied(model, {} if memo is None else memo)
        return result


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """What ``deepcopy`` gives, sooner: modules, and the containers in them, are most of a model and say nothing new."""
    kind = type(value)
    if kind in _WHOLE:
        return value
    if id(value) in memo:
        return memo[id(value)]
    result: Any
    if kind is dict or kind is OrderedDict:
        result = memo[id(value)] = kind()
        for key, x in value.items():
            result[_copied(key, memo)] = _copied(x, memo)
    elif kind is list:
        result = memo[id(value)] = []
        result.extend(_copied(x, memo) for x in value)
    elif isinstance(value, nn.Module) and (state := _state(value)) is not None:
        # Where deepcopy, too, holds what must live as long as the copying.
        memo.setdefault(id(memo), []).append(state)
        result = memo[id(value)] = object.__new__(kind)
        result.__setstate__({name: _copied(x, memo) for name, x in state.items()})
    else:
        result = copy.deepcopy(value, memo)
    return result


def _state(module: nn.Module) -> dict[str, Any] | None:
    """The attributes by which Python copies a module; None if its type has a word on how it is copied."""
    kind: Any = type(module)
    if not _is_copied_by_attributes(kind) or "__deepcopy__" in vars(module):
        return None
    state: Any = module.__getstate__() if hasattr(module, "__getstate__") else vars(module)
    return state if type(state) is dict else None


@cache
def _is_copied_by_attributes(kind: type) -> bool:
    """Whether Python copies modules of a type by their attributes, or what the type says are these."""
    own = ("__deepcopy__", "__getnewargs__", "__getnewargs_ex__", "__slots__")
    return (
        not any(hasattr(kind, name) for name in own)
        and kind not in copyreg.dispatch_table
        and all(
            getattr(kind, name, None) is getattr(object, name, None)
            for name in ("__new__", "__reduce_ex__", "__reduce__", "__getattribute__")
        )
    )


_WHOLE = frozenset((type(None), bool, int, float, complex, str, bytes, type, FunctionType, torch.dtype))
"""Types of what has no parts."""


def cut(
    model: nn.Module,
    kept: Mapping[str, Sequence[Tensor | None]],
    attributes: Mapping[str, Mapping[str, int | tuple[int, ...]]],
    values: bool | Literal["meta"] = True,
) -> nn.Module:
    """A copy of ``model`` with these indices of every axis of its tensors (None = all), and these attributes.

    Without ``values``, its parameters and buffers have shapes only: fake tensors on their devices, or those of the meta device.
    """
    if values == "meta":
        bare = {
            id(tensor): _bare(
                tensor, [n if one is None else len(one) for n, one in zip_longest(tensor.shape, kept[name])]
            )
            for name, tensor in named_tensors(model).items()
        }
        for _, tensor in held_tensors(model):
            if id(tensor) not in bare:
                bare[id(tensor)] = torch.empty_like(tensor, device="meta")
        result = copied(model, bare)
        set_attributes(result, attributes)
        return result
    from torch._subclasses.fake_tensor import FakeTensorMode

    # deepcopy takes what its memo already holds for an object: hand it the cut tensors, and every module that
    # refers to one (tied weights do so twice) receives it.
    memo: dict[int, Any] = {}
    mode = None if values else FakeTensorMode(allow_non_fake_inputs=True)
    for name, tensor in named_tensors(model).items():
        if mode is not None:
            with mode:
                memo[id(tensor)] = cut_tensor(mode.from_tensor(tensor, static_shapes=True), kept[name])
        elif (small := cut_tensor(tensor, kept[name])) is not tensor:
            memo[id(tensor)] = small
    result = copied(model, memo)
    set_attributes(result, attributes)
    return result


def _bare(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """A tensor like it on the meta device, with this shape."""
    small = torch.empty(tuple(shape), dtype=tensor.dtype, device="meta")
    return nn.Parameter(small, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else small


def cut_tensor(tensor: Tensor, kept: Sequence[Tensor | None]) -> Tensor:
    """A parameter or buffer with these indices of its axes; itself if these are all."""
    small = tensor.detach()
    for axis, indices in enumerate(kept):
        if indices is not None:
            small = small.index_select(axis, indices.to(tensor.device))
    if small.shape == tensor.shape:
        return tensor
    # index_select writes rows; channels-last weights stay so.
    layout = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    if layout != list(range(tensor.ndim)):
        small = torch.empty_permuted(small.shape, layout, dtype=small.dtype, device=small.device).copy_(small)
    return nn.Parameter(small, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else small


def hollow(model: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers have no values and take no memory; other tensors are copied."""
    return cut(model, dict.fromkeys(named_tensors(model), ()), {}, values=False)


UNSET, ABSENT, EMPTY = (), (0,), (-1,)
"""What a plan says, in place of sizes, of an attribute that a forward makes again: it is None, not there, or empty."""


def _emptied(held: Any) -> Any:
    """A container like this one with nothing in it."""
    if not isinstance(held, Mapping | list | tuple):
        return held  # of a model that has run no forward
    empty = copy.copy(held)
    if isinstance(empty, tuple):
        return ()
    empty.clear()  # type: ignore[union-attr]
    return empty


def set_attributes(small: nn.Module, attributes: Mapping[str, Mapping[str, int | tuple[int, ...]]]) -> None:
    modules = dict(small.named_modules(remove_duplicate=False))
    for path, mine in attributes.items():
        for name, value in mine.items():
            owner: Any = modules.get(path)
            held, _, attribute = name.rpartition(".")
            if value in (
                UNSET,
                ABSENT,
                EMPTY,
            ):  # what an earlier forward has made, for the next to make again
                if held:
                    owner = getattr(owner, held, None)
                if value == ABSENT:
                    getattr(owner, "__dict__", {}).pop(attribute, None)
                elif owner is not None:
                    old = getattr(owner, attribute, None)
                    setattr(owner, attribute, None if value == UNSET else _emptied(old))
                continue
            if hasattr(owner, held):  # an object that other modules may hold as well
                setattr(owner, held, copy.copy(getattr(owner, held)))
                owner = getattr(owner, held)
            before = getattr(owner, attribute, None)
            if before is None and value == 0:  # the size of something cached, before there was any
                continue
            new = list(value) if isinstance(before, list) and isinstance(value, tuple) else value
            if type(before) is not type(new):
                raise ValueError(
                    f"attributes must be of the model's types, got {value!r} for {name!r} of {path!r}, which is {before!r}: "
                    "the plan is damaged"
                )
            if held:
                vars(owner)[attribute] = new  # it may be frozen
            else:
                setattr(owner, attribute, new)
