"""What a caller gives beside utilities or features: checked without waiting for a device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunefuse.ops.arrays import as_tensor, require_floating
from prunefuse.ops.integers import as_integers, rows_of_mask
from prunefuse.ops.transfer import upload


class NamedRows:
    """Rows that an argument names, by indices or a mask, on ``device``, such as the labeled ones. None is no row.

    Of indices on the CPU the range is checked at once. What lies on a device is looked at by `require` with the numbers of
    `extent`, which whoever waits for the device anyway brings along. A mask on a device is waited for.
    """

    def __init__(self, argument: str, given: Any, rows: int, device: torch.device, of: str) -> None:
        self._argument, self._rows, self._of = argument, rows, of
        array = torch.empty(0, dtype=torch.int64) if given is None else as_integers(argument, given)
        self._unseen = array.dtype != torch.bool and array.device.type != "cpu"
        if array.dtype == torch.bool:
            array = rows_of_mask(argument, array, rows, of)
        elif array.numel() and not self._unseen:
            self.require(float(array.min()), float(array.max()), array)
        self._array = upload(array, device)

    def __len__(self) -> int:
        return len(self._array)

    @property
    def valid(self) -> Tensor:
        """The rows, int64: where an index is out of range there will be an error, but not before others have been used."""
        return self._array.clamp(0, self._rows - 1) if self._rows else self._array[:0]

    def extent(self) -> tuple[Tensor, Tensor]:
        """The least and the largest index, on the device; 0 where there is none."""
        if not len(self._array):
            nothing = torch.zeros((), dtype=torch.int64, device=self._array.device)
            return nothing, nothing
        return self._array.min(), self._array.max()

    def require(self, low: float, high: float, array: Tensor | None = None) -> None:
        """ValueError where these, the `extent`, are no rows. Beyond 2^53 they are known but for rounding."""
        if 0 <= low <= high < self._rows or (array is None and not len(self)):
            return
        values = self._array if array is None else array
        got = int(values.min() if low < 0 else values.max())
        raise ValueError(f"{self._argument} must hold rows of {self._of} (0 to {self._rows - 1}), got {got}")

    def require_now(self) -> None:
        """`require`, which waits for indices that lie on a device."""
        if len(self) and self._unseen:
            self.require(*torch.stack(self.extent()).double().tolist())


def floating_rows(name: str, array: Any) -> Tensor:
    """A matrix of float32 or float64 with a column at least; 16-bit numbers are widened."""
    x = as_tensor(name, array)
    require_floating(name, x)
    if x.dim() != 2 or x.shape[1] == 0:
        raise ValueError(f"{name} must have shape (N, d), d at least 1, got {tuple(x.shape)}")
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def on_host(generator: torch.Generator | None) -> torch.Generator:
    """The generator, or one of seed 0; TypeError or ValueError where it is none of the CPU."""
    if generator is None:
        return torch.Generator().manual_seed(0)
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    if generator.device.type != "cpu":
        raise ValueError(f"generator must be on the CPU, got one on {generator.device}")
    return generator


def weights_of(weights: Any, rows: int, of: str, device: torch.device) -> Tensor | None:
    """Weights (N,) of the rows of an argument, on its device; their values are not looked at."""
    if weights is None:
        return None
    tensor = as_tensor("weights", weights)
    require_floating("weights", tensor)
    if tensor.shape != (rows,):
        raise ValueError(
            f"weights must have shape ({rows},), one for each row of {of}, got {tuple(tensor.shape)}"
        )
    return upload(tensor, device)
