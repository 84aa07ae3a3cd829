"""What a model is called with and what it returns: tensors in objects of any kind."""

from __future__ import annotations

import collections.abc
import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import FunctionType, MethodType, ModuleType
from typing import Any, TypeAlias, get_origin

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

Structure: TypeAlias = Any
"""How inputs are given to a model, as JSON has it; see `Inputs.structure`."""

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_CLOSED = (nn.Module, type, FunctionType, MethodType, ModuleType)


@dataclass(frozen=True)
class TensorSpec:
    """An input of a model: its shape, and the name of its dtype.

    >>> prunefuse.pruning.TensorSpec.of(torch.zeros(2, 3))
    TensorSpec(shape=(2, 3), dtype='float32')
    """

    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, tensor: Tensor) -> TensorSpec:
        """What ``tensor`` is like."""
        return cls(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    def empty(self, device: torch.device | str) -> Tensor:
        """A tensor like it, its values undefined."""
        return torch.empty(self.shape, dtype=getattr(torch, self.dtype), device=device)


def tensors_in(value: Any, closed: Callable[[Any], bool] = lambda _: False) -> list[Tensor]:
    """The tensors in a value: in containers, dataclasses and other objects, in the order in which these hold them.

    Args:
        value: Anything.
        closed: Which objects are not looked into.
    """
    return list(_tensors(value, closed, set(), set()))


def outputs_in(value: Any) -> list[Tensor]:
    """The tensors that a model returns; those of caches, which it reads in the next forward, are its own."""
    return tensors_in(value, _is_cache)


def _is_cache(value: Any) -> bool:
    return any("cache" in kind.__name__.lower() for kind in type(value).__mro__)


def _tensors(value: Any, closed: Callable[[Any], bool], inside: set[int], seen: set[int]) -> Iterator[Tensor]:
    """Objects are looked into once, containers each time that they occur; ``inside``: those that are being looked into."""
    if isinstance(value, Tensor):
        yield value
    elif not isinstance(value, _PLAIN) and id(value) not in inside and not closed(value):
        again = isinstance(value, Mapping | list | tuple)
        if not again and (isinstance(value, _CLOSED) or id(value) in seen):
            return
        inside.add(id(value))
        seen.add(id(value))
        for part in _parts(value):
            yield from _tensors(part, closed, inside, seen)
        inside.remove(id(value))


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, PackedSequence):  # its lengths are on the CPU, wherever the others are
        return [value.data, value.sorted_indices, value.unsorted_indices]
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    names = [name for kind in type(value).__mro__ for name in _slots(kind) if hasattr(value, name)]
    return [*(getattr(value, name) for name in names), *getattr(value, "__dict__", {}).values()]


def _slots(kind: type) -> Sequence[str]:
    slots = kind.__dict__.get("__slots__", ())
    return [
        x for x in ((slots,) if isinstance(slots, str) else slots) if x not in ("__dict__", "__weakref__")
    ]


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy of a value with other tensors in it; what holds none is itself."""
    if isinstance(value, Tensor):
        return change(value)
    tensors = {id(x): x for x in tensors_in(value)}
    # deepcopy takes what its memo already holds for an object.
    return copy.deepcopy(value, {key: change(x) for key, x in tensors.items()}) if tensors else value


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a model is called with: arguments in order and by name, of any structure.

    Attributes:
        args: Those in order.
        kwargs: Those by name.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @cached_property
    def tensors(self) -> list[Tensor]:
        """The tensors in them, in order."""
        return [x for value in (*self.args, *self.kwargs.values()) for x in tensors_in(value)]

    @property
    def batch(self) -> int:
        """How many inputs these are: axis 0 of the first tensor."""
        return self.tensors[0].shape[0] if self.tensors[0].ndim else 1

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """The same with other tensors; nothing that holds some is shared."""
        return Inputs(
            tuple(_changed(value, change) for value in self.args),
            {name: _changed(value, change) for name, value in self.kwargs.items()},
        )

    def on_meta(self) -> Inputs:
        """The same without values."""
        return self.map(lambda x: torch.empty_like(x, device="meta"))

    def run(self, model: nn.Module) -> Any:
        """What a model returns for them."""
        return model(*self.args, **self.kwargs)

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """What the tensors are like."""
        return tuple(map(TensorSpec.of, self.tensors))

    @property
    def structure(self) -> Structure:
        """How the tensors are given to a model, as JSON has it; None where each is an argument, in order.

        ``[arguments in order, {name: argument}]``. Numbers, texts and None are themselves, and lists are lists. Of others
        there is a dictionary with one key: ``{"tensor": place}``, ``{"tuple": [...]}``, ``{"dict": [[key, value], ...]}``,
        or the name of the class of another object, whose content is not told: ``{"object": name}``.
        """
        if not self.kwargs and all(isinstance(x, Tensor) for x in self.args):
            return None
        places = iter(range(len(self.tensors)))
        args = [_described(x, places) for x in self.args]
        return [args, {name: _described(x, places) for name, x in self.kwargs.items()}]

    @staticmethod
    def like(specs: Sequence[TensorSpec], structure: Structure) -> Inputs | None:
        """Inputs without values, as `specs` and `structure` say of others; None if there was an object with tensors.

        Raises:
            ValueError: They say nothing.
        """
        tensors = [spec.empty("meta") for spec in specs]
        if structure is None:
            return Inputs(tuple(tensors), {})
        try:
            args, kwargs = structure
            return Inputs(
                tuple(_built(x, tensors) for x in args), {k: _built(x, tensors) for k, x in kwargs.items()}
            )
        except _NotTold:
            return None
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise ValueError(f"structure must say how inputs are given, got {structure!r:.80}") from error


class _NotTold(Exception):
    """An object has a place in a structure, and that is all."""


def _described(value: Any, places: Iterator[int]) -> Structure:
    if isinstance(value, Tensor):
        return {"tensor": next(places)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:
        return [_described(x, places) for x in value]
    if type(value) is tuple:
        return {"tuple": [_described(x, places) for x in value]}
    if type(value) is dict and all(type(key) in (bool, int, float, str) for key in value):
        return {"dict": [[key, _described(x, places)] for key, x in value.items()]}
    for _ in tensors_in(value):
        next(places)
    return {"object": f"{type(value).__module__}.{type(value).__qualname__}"}


def _built(described: Structure, tensors: Sequence[Tensor]) -> Any:
    if isinstance(described, list):
        return [_built(x, tensors) for x in described]
    if not isinstance(described, dict):
        return described
    ((kind, content),) = described.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(_built(x, tensors) for x in content)
    if kind == "dict":
        return {key: _built(x, tensors) for key, x in content}
    if kind == "object":
        raise _NotTold
    raise ValueError(kind)


def checked_inputs(model: nn.Module, example_inputs: Any, example_kwargs: Mapping[str, Any] | None) -> Inputs:
    """What a user gives as the inputs of a model.

    A tuple or list is arguments in order, where the forward takes so many; but a list of tensors is one argument where the
    forward says that its first is a list. A dictionary, or what behaves like one, is arguments by name where the forward
    takes these. Else they are one argument, as any other object is.

    Raises:
        TypeError: There is no tensor in them, or names are no strings.
        ValueError: No tensor has elements, or one that is an argument of its own has none.
    """
    kwargs: dict[str, Any] = {}
    if example_kwargs is not None:
        if not isinstance(example_kwargs, Mapping) or not all(
            isinstance(name, str) for name in example_kwargs
        ):
            raise TypeError(
                f"example_kwargs must be a dictionary from names to inputs, got {type(example_kwargs).__name__}"
            )
        kwargs.update(example_kwargs)
    args: tuple[Any, ...] = (example_inputs,)
    in_order = isinstance(example_inputs, list | tuple)
    if (example_inputs is None and kwargs) or (in_order and not example_inputs):
        args = ()
    elif _is_the_list(model, example_inputs) and _takes(model, args, kwargs):
        pass
    elif in_order and (_takes(model, example_inputs, kwargs) or not _takes(model, args, kwargs)):
        args = tuple(example_inputs)
    elif isinstance(example_inputs, Mapping) and _takes(model, (), {**example_inputs, **kwargs}):
        args, kwargs = (), {**example_inputs, **kwargs}
    inputs = Inputs(args, kwargs)
    if not inputs.tensors and (args or kwargs):
        got = type(example_inputs).__name__
        if in_order:
            got += f" of {', '.join(type(x).__name__ for x in example_inputs)}"
        raise TypeError(f"example_inputs must be a tensor, or hold some, got {got}")
    whole = all(x.numel() for x in args if isinstance(x, Tensor))
    if not whole or not any(x.numel() for x in inputs.tensors):
        raise ValueError("example_inputs must be at least one tensor, and none without elements")
    return inputs


def list_as_argument(model: nn.Module, example_inputs: Any) -> bool:
    """Whether a user may have meant a list, which is arguments in order, as the one argument of a forward."""
    return isinstance(example_inputs, list) and _takes(model, (example_inputs,), {})


def _is_the_list(model: nn.Module, value: Any) -> bool:
    """Whether a value is a list of tensors, and the forward says that its first argument is a list."""
    if not isinstance(value, list) or not value or not all(isinstance(x, Tensor) for x in value):
        return False
    try:
        first = next(iter(inspect.signature(model.forward).parameters.values()), None)
    except (TypeError, ValueError):
        return False
    says = None if first is None else first.annotation
    if isinstance(says, str):
        return says.split("[")[0].rpartition(".")[2].lower() in ("list", "sequence")
    return get_origin(says) in (list, collections.abc.Sequence) or says is list


def _takes(model: nn.Module, args: Sequence[Any], kwargs: Mapping[Any, Any]) -> bool:
    """Whether a model's forward has these parameters."""
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return False
    return True
