"""How the Python side of an operator is written: once, as a function of plain torch that computes what its kernels must.

The operator's schema stands in `csrc/library.cpp`, its kernels in `csrc/cpu` and `csrc/cuda`. Here `operator` makes the rest
of one function, its reference::

    @operator(fake=torch.empty_like, flops=lambda x: math.prod(x))
    def double(x: Tensor) -> Tensor:
        '''Twice x (N,).'''
        return 2 * x  # (N,)

``double(x)`` calls the kernel, with the reference's types and docstring; ``double.reference(x)`` runs the body above;
``double.flops((5,))`` says what a call costs. The tests hold the kernel to the reference and to the truth in float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

# This imports Triton, where it is installed: 0.08 s beside 1.3 s for torch.
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula

from prunefuse.ops import loader

P = ParamSpec("P")
R = TypeVar("R")
Shape = tuple[int, ...]


class Operator(Generic[P, R]):
    """`torch.ops.prunefuse.<name>`, called with the types of its reference.

    >>> from prunefuse import ops
    >>> ops.top_b.name, ops.top_b.flops((100,), 5)
    ('top_b', 0)

    Attributes:
        name: The operator's name in `torch.ops.prunefuse`.
        reference: What the kernels must compute, in plain torch: on any device, in any floating dtype, not fast.
        flops: What a call costs in floating-point operations, of the operator's arguments with shapes for tensors.
    """

    def __init__(self, name: str, reference: Callable[P, R], flops: Callable[..., int]) -> None:
        functools.update_wrapper(self, reference)
        self.name = name
        self.reference = reference
        self.flops = flops
        arguments = getattr(torch.ops.prunefuse, name).default._schema.arguments
        self._arguments = tuple(x.name for x in arguments)
        self._written = tuple(
            i for i, x in enumerate(arguments) if x.alias_info is not None and x.alias_info.is_write
        )

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls the kernel; RuntimeError, with the reason, where that of CUDA is needed and not there."""
        if loader.why_no_cuda and any(_on_cuda(argument) for argument in (*args, *kwargs.values())):
            loader.require_cuda(self.name)
        result: R = getattr(torch.ops.prunefuse, self.name)(*args, **kwargs)
        if self._written:
            # An operator on the stable ABI does not do this itself, and autograd relies on it.
            torch.autograd.graph.increment_version(self._all_written(args, kwargs))
        return result

    def _all_written(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        tensors: list[Tensor] = []
        for i in self._written:
            written = args[i] if i < len(args) else kwargs[self._arguments[i]]
            if isinstance(written, Tensor):
                tensors.append(written)
            else:
                tensors += written
        return tensors


OPERATORS: dict[str, Operator[..., Any]] = {}


def operator(
    *, fake: Callable[..., object], flops: Callable[..., int], name: str | None = None
) -> Callable[[Callable[P, R]], Operator[P, R]]:
    """Makes the operator named as the function that it decorates, and registers it in `OPERATORS` and with torch.

    Args:
        fake: gives results of the right shapes and dtypes, of any values, for torch.compile and torch.export.
        flops: what a call costs. It takes the operator's arguments by position, with shapes for tensors.
        name: of the operator, where it is not that of the function.
    """

    def make(reference: Callable[P, R]) -> Operator[P, R]:
        made = Operator(name or reference.__name__, reference, flops)
        torch.library.register_fake(f"prunefuse::{made.name}", fake)
        # Of the counter's keywords (`out_shape`) no formula makes use.
        register_flop_formula(getattr(torch.ops.prunefuse, made.name))(lambda *args, **_: flops(*args))
        OPERATORS[made.name] = made
        return made

    return make


def tell_counters() -> None:
    """Gives torch's counters that are at work the formulas registered since they were made: they hold a copy of the table."""
    for mode in _get_current_dispatch_mode_stack():
        counter = getattr(mode, "counter", None)
        if isinstance(counter, FlopCounterMode):
            counter.flop_registry = {**flop_registry, **counter.flop_registry}


def nothing(*_: object) -> None:
    """The fake of operators that only write to their arguments."""


def no_flops(*_: object) -> int:
    """Of operators that compare and move: neither counts."""
    return 0


def result_dtype(x: Tensor) -> torch.dtype:
    """float64 of float64, float32 of every other floating dtype."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _on_cuda(argument: object) -> bool:
    """Whether it is a tensor on CUDA, or a list with one first."""
    first = argument[0] if isinstance(argument, (list, tuple)) and argument else argument
    return isinstance(first, Tensor) and first.is_cuda
