"""What a pruned model may cost, and the ratio that brings it there."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from prunefuse._inputs import Inputs
from prunefuse._options import require
from prunefuse.pruning._graph.couplings import Ids
from prunefuse.pruning._graph.trace import Trace

QUANTITIES = ("parameters", "flops", "memory", "latency")
_UNITS = {"parameters": "", "flops": "", "memory": " bytes", "latency": " s"}


@dataclass(frozen=True)
class Target:
    """What a pruned model may cost at most, of a quantity.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 100), torch.nn.ReLU(), torch.nn.Linear(100, 2))
    >>> plan = prunefuse.plan_pruning(model, torch.zeros(1, 4), target=prunefuse.Target("flops", 0.5))
    >>> plan.flops
    (1200, 600)

    The quantities:

    - ``"parameters"``: how many there are.
    - ``"flops"``: per input, 2 for each multiply-add of convolutions, linear maps and products of computed tensors, as in
      attention.
    - ``"memory"``: bytes of parameters and buffers, and the largest sum of activations that are alive at once for the
      example inputs. A tensor lives from the operator that writes it to the last operator that reads it. What an operator
      or an allocator needs beside is not counted.
    - ``"latency"``: seconds of one forward with the example inputs in evaluation mode, on this machine.

    Attributes:
        quantity: One of these.
        fraction: Of the dense model's, between 0 and 1.
        at_most: An absolute amount instead.
        repeats: For latency: forwards of the dense and of the pruned model, in turns. Their medians count.
    """

    quantity: str
    fraction: float | None = None
    at_most: float | None = None
    repeats: int = 15

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            TypeError: an amount is no number.
            ValueError: an unknown quantity, an amount outside its range, or both or neither of them.
        """
        allowed = ", ".join(map(repr, QUANTITIES))
        require(self.quantity in QUANTITIES, "target.quantity", f"one of {allowed}", self.quantity)
        if (self.fraction is None) == (self.at_most is None):
            got = "neither" if self.fraction is None else "both"
            raise ValueError(f"target must have one of fraction and at_most, got {got}")
        for name, value in (("fraction", self.fraction), ("at_most", self.at_most)):
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, float | int | Real):
                raise TypeError(f"target.{name} must be a number, got {type(value).__name__}")
            largest, bounds = (
                (1, "above 0 and below 1") if name == "fraction" else (math.inf, "a positive number")
            )
            require(0 < value < largest, f"target.{name}", bounds, value)
        require(self.repeats >= 1, "target.repeats", "at least 1", self.repeats)

    def limit(self, dense: float) -> float:
        """The amount that is allowed, where the dense model needs ``dense``."""
        return float(self.at_most) if self.at_most is not None else dense * float(self.fraction or 0)

    def describe(self, dense: float, reached: float) -> str:
        """What was asked for and what is reached."""
        form = ".3g" if self.quantity == "latency" else ",.0f"
        unit = _UNITS[self.quantity]
        return (
            f"{self.quantity} at most {self.limit(dense):{form}}{unit}: {dense:{form}} -> {reached:{form}}{unit} "
            f"({reached / dense:.3f})"
        )


class Unreachable(ValueError):
    """No ratio brings the cost below its limit; the smallest that was traced is ``least``."""

    def __init__(self, least: float) -> None:
        super().__init__(f"{least:g} is the least")
        self.least = least


def find_ratio(cost: Callable[[Fraction], float], limit: float, steps: int = 16) -> Fraction:
    """The smallest ratio, in units of ``2 ** -steps``, with a cost of at most ``limit``, by bisection.

    Raises:
        Unreachable: the largest ratio, ``1 - 2 ** -steps``, costs more.
    """
    low, high = 0, 2**steps - 1
    if (least := cost(Fraction(high, 2**steps))) > limit:
        raise Unreachable(least)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(Fraction(middle, 2**steps)) <= limit else (middle, high)
    return Fraction(high, 2**steps)


class Costs:
    """Parameters, FLOPs and memory of a model of which some coupled channels are kept, from its trace alone."""

    def __init__(self, traced: Trace, component: Ids, tensors: Mapping[str, Tensor], batch: int) -> None:
        self._batch = batch
        self._labels: list[Ids] = []
        self._number: dict[int, int] = {}  # id of an array of node ids -> its place in _labels
        self._component = component
        self._tensors = {name: self._axes(traced.tensors[name].axes) for name in tensors}
        self._parameters = [name for name, x in tensors.items() if isinstance(x, nn.Parameter)]
        self._products = [(product.times, self._axes(product.axes)) for product in traced.products]
        self._bytes = {name: x.element_size() for name, x in tensors.items()}
        floating = [x.element_size() for x in tensors.values() if x.is_floating_point()]
        self._activation_bytes = floating[0] if floating else 4
        self._alive = self._lifetimes(traced)
        self._starts = np.cumsum([0, *(len(labels) for labels in self._labels)])[:-1]
        self._flat = np.concatenate([np.zeros(0, dtype=np.int64), *self._labels])

    def amount(self, quantity: str, keep: npt.NDArray[np.bool_]) -> int:
        """Parameters, FLOPs per input or bytes, with these coupled channels."""
        sizes: list[int] = (
            np.add.reduceat(keep[self._flat].astype(np.int64), self._starts).tolist()
            if len(self._flat)
            else []
        )
        if quantity == "flops":
            products = (times * math.prod(sizes[a] for a in axes) for times, axes in self._products)
            return 2 * sum(products) // self._batch
        elements = {name: math.prod(sizes[a] for a in axes) for name, axes in self._tensors.items()}
        if quantity == "parameters":
            return sum(elements[name] for name in self._parameters)
        stored = sum(elements[name] * self._bytes[name] for name in elements)
        now = peak = 0
        for started, ended in self._alive:
            now += sum(math.prod(sizes[a] for a in axes) for axes in started)
            peak = max(peak, now)
            now -= sum(math.prod(sizes[a] for a in axes) for axes in ended)
        return stored + peak * self._activation_bytes

    def _axes(self, axes: tuple[Ids, ...]) -> tuple[int, ...]:
        for ids in axes:
            if id(ids) not in self._number:
                self._number[id(ids)] = len(self._labels)
                self._labels.append(self._component[ids])
        return tuple(self._number[id(ids)] for ids in axes)

    def _lifetimes(self, traced: Trace) -> list[tuple[list[tuple[int, ...]], list[tuple[int, ...]]]]:
        """For every call the shapes, as numbers of axes, of the tensors that start there and that end there."""
        named = {id(value) for value in traced.tensors.values()}
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        shapes: dict[int, tuple[int, ...]] = {}
        for number, call in enumerate(traced.calls):
            for value in (*call.inputs, *call.outputs):
                if id(value) not in named:
                    first.setdefault(id(value), number)
                    last[id(value)] = number
                    shapes[id(value)] = self._axes(value.axes)
        alive: list[tuple[list[tuple[int, ...]], list[tuple[int, ...]]]] = [([], []) for _ in traced.calls]
        for key, shape in shapes.items():
            alive[first[key]][0].append(shape)
            alive[last[key]][1].append(shape)
        return alive


class Latency(NamedTuple):
    """Median seconds of a forward of the dense and the pruned model, and what half the runs of it differ by, at most."""

    dense: float
    small: float
    noise: float

    def describe(self, repeats: int) -> str:
        """How it was measured."""
        threads = torch.get_num_threads()
        return (
            f"medians of {repeats} forwards in turns, {threads} thread{'s' * (threads > 1)}; the middle half of "
            f"the runs spans {self.noise:.1%} of the median"
        )


def measure(dense: nn.Module, small: nn.Module, inputs: Inputs, repeats: int) -> Latency:
    """Time both models in turns, so that a noisy machine troubles both alike."""
    taken: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for run in range(repeats + 2):
            for model, mine in zip((dense, small), taken, strict=True):
                start = time.perf_counter()
                inputs.run(model)
                if inputs.tensors[0].is_cuda:
                    torch.cuda.synchronize(inputs.tensors[0].device)
                if run >= 2:  # the first runs allocate memory and choose kernels
                    mine.append(time.perf_counter() - start)
    spans = [float(np.subtract(*np.percentile(mine, [75, 25]))) / float(np.median(mine)) for mine in taken]
    return Latency(float(np.median(taken[0])), float(np.median(taken[1])), max(spans))
