"""Tensors without values that a run has left in caches outside of the model, as of functions: there they must not stay."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import FrameType, ModuleType
from typing import Any, TypeAlias

from torch import Tensor

Made: TypeAlias = list["weakref.ref[Tensor]"]
"""What a run has made, as far as it is still there."""
_DEPTH = 4  # containers in containers that are looked through


def forget(made: Made) -> None:
    """Take tensors out of caches of functions, dictionaries and modules, so that the next run makes them with values.

    Args:
        made: What was made. Nothing else may hold it any more, such as the copy of the model, or what it returned.
    """
    if not _alive(made):
        return
    gc.collect()
    tensors = _alive(made)
    own: set[int] = {id(tensors)}
    held: list[Any] = list(tensors)
    for _ in range(_DEPTH):
        if not held:
            return
        own.add(id(held))
        held = [x for holder in _holders(held, own) for x in _without(holder, held)]


def _alive(made: Made) -> list[Tensor]:
    return [tensor for reference in made if (tensor := reference()) is not None]


def _holders(held: Iterable[Any], own: set[int]) -> list[Any]:
    return [x for x in gc.get_referrers(*held) if id(x) not in own and not isinstance(x, FrameType)]


def _without(holder: Any, held: list[Any]) -> list[Any]:
    """Take things out of what holds them; what cannot be changed is given back, to be taken out in turn."""
    gone = {id(x) for x in held}
    if isinstance(holder, functools._lru_cache_wrapper):
        holder.cache_clear()
    elif isinstance(holder, dict):
        names = [name for name, x in holder.items() if id(x) in gone]
        for name in names:
            if "__name__" in holder and "__spec__" in holder:  # of a Python module
                holder[name] = None
            else:
                del holder[name]
    elif isinstance(holder, list):
        holder[:] = [x for x in holder if id(x) not in gone]
    elif isinstance(holder, tuple):
        return [holder]
    elif not isinstance(holder, ModuleType | type | Callable):
        with suppress(TypeError):
            for name, x in list(vars(holder).items()):
                if id(x) in gone:
                    setattr(holder, name, None)
    return []
