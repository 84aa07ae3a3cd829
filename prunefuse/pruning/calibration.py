"""Calibration inputs: a user's data, other data, or noise, in batches that are read several times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

BATCH = 64


class Batches:
    """The inputs of a model, batch by batch, as often as wanted, on one device."""

    def __init__(self, calibration: Tensor | Iterable[Any], inputs: int, device: torch.device) -> None:
        if isinstance(calibration, Tensor):
            calibration = calibration.split(BATCH)
        if isinstance(calibration, Iterator) or not isinstance(calibration, Iterable):
            raise TypeError(
                "calibration: expected a tensor or something that gives batches as often as it is read (a list, a "
                f"data loader), got {type(calibration).__name__}"
            )
        self._source = calibration
        self._inputs = inputs
        self._device = device

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """The first tensors of every batch: labels behind them are dropped."""
        empty = True
        for batch in self._source:
            tensors = (batch,) if isinstance(batch, Tensor) else tuple(batch)[: self._inputs]
            if len(tensors) != self._inputs or not all(isinstance(x, Tensor) for x in tensors):
                got = ", ".join(type(x).__name__ for x in tensors)
                raise TypeError(f"calibration: expected batches of {self._inputs} tensors, got ({got})")
            yield tuple(x.to(self._device) for x in tensors)
            empty = False
        if empty:
            raise ValueError("calibration: expected at least one batch, got none")


def noise_like(
    example_inputs: Tensor | Sequence[Tensor], samples: int = 2048, *, seed: int = 0
) -> list[tuple[Tensor, ...]]:
    """Standard normal inputs, for calibration without data.

    Args:
        example_inputs: The inputs of the model's forward, with the batch on axis 0; only shapes and dtypes matter.
        samples: How many.
        seed: Of the generator; the global one is left alone.

    Returns:
        Batches of up to 64.

    Raises:
        ValueError: an input is not of a floating-point dtype: noise would not be like it.
    """
    examples = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    for x in examples:
        if not x.is_floating_point():
            raise ValueError(
                f"example_inputs: expected floating-point tensors, got {x.dtype}; calibrate with data"
            )
    generator = torch.Generator().manual_seed(seed)
    sizes = [min(BATCH, samples - start) for start in range(0, samples, BATCH)]
    return [
        tuple(torch.randn((size, *x.shape[1:]), generator=generator).to(x.dtype) for x in examples)
        for size in sizes
    ]
