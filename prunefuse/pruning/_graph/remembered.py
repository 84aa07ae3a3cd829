"""What cached functions remember of a run without values, which would be wrong in every later one."""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import CellType, FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

_Cached = type(functools.lru_cache(int))
_EMPTY = CellType()
_LIBRARIES = frozenset((*sys.stdlib_module_names, "torch", "numpy", "scipy", "sympy", "prunefuse"))


@contextmanager
def forgetting(model: nn.Module) -> Iterator[None]:
    """After a run without values, clear the functions with ``lru_cache`` that hold tensors of it.

    They are those that the classes of the model's modules can name: in their Python modules, in modules that these import
    whole, in classes there, behind a decorator; and those that a module holds.
    """
    kinds = {base for module in model.modules() for base in type(module).__mro__}
    functions = _named_from(frozenset(kind.__module__ for kind in kinds))
    held = [x for module in model.modules() for x in vars(module).values() if type(x) is _Cached]
    functions = tuple({id(function): function for function in (*functions, *held)}.values())
    before = [function.cache_info().misses for function in functions]
    try:
        yield
    finally:
        for function, misses in zip(functions, before, strict=True):
            if function.cache_info().misses != misses and _holds_no_values(function, 3):
                function.cache_clear()


@functools.lru_cache(64)
def _named_from(modules: frozenset[str]) -> tuple[Any, ...]:
    names = [name for name in modules if _may_cache(name)]
    own = [sys.modules[name] for name in names if name in sys.modules]
    imported = [
        x for module in own for x in vars(module).values() if type(x) is ModuleType and _may_cache(x.__name__)
    ]
    spaces = (vars(module) for module in {id(x): x for x in (*own, *imported)}.values())
    return tuple(function for space in spaces for function in _cached_in(space.values(), classes=True))


def _may_cache(module: str) -> bool:
    return module.partition(".")[0] not in _LIBRARIES


def _cached_in(values: Iterable[Any], classes: bool) -> Iterator[Any]:
    for value in list(values):
        value = value.__func__ if type(value) in (staticmethod, classmethod) else value
        if type(value) is _Cached:
            yield value
        elif type(value) is FunctionType:
            cells = [cell.cell_contents for cell in value.__closure__ or () if cell != _EMPTY]
            yield from (x for x in cells if type(x) is _Cached)
        elif classes and isinstance(value, type) and _may_cache(value.__module__):
            yield from _cached_in(vars(value).values(), classes=False)


def _holds_no_values(held: Any, depth: int) -> bool:
    """Whether a tensor without values is among the results of a cached function, or in a container there."""
    parts = gc.get_referents(held)
    return any(isinstance(x, FakeTensor) or (isinstance(x, Tensor) and x.is_meta) for x in parts) or (
        depth > 0 and any(_holds_no_values(x, depth - 1) for x in parts if isinstance(x, tuple | list | dict))
    )
