"""Rows that a caller names, such as those that are labeled or never to be picked: checked without waiting for a device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunefuse.ops.integers import as_integers, rows_of_mask
from prunefuse.ops.transfer import upload


class NamedRows:
    """Rows of an argument, indices or a mask, on ``device``. None is no row.

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
