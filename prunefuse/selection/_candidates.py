"""What a stream keeps of the rows it has seen: O(b) candidates for the b best, on the device of its batches."""

from __future__ import annotations

import torch
from torch import Tensor

from prunefuse import ops

# Candidates beyond 2b that are gathered before the best are kept. The operator takes 2048 rows at a time on the CPU, and
# wants room for some of them. On a GPU cutting down is the slow part of it: there it is done less often.
_SLACK_CPU, _SLACK_GPU = 3 * 2048, 1 << 17


class Candidates:
    """Candidates on one device: one call of an operator for each batch, which on a GPU does not wait for the device."""

    def __init__(self, b: int, device: torch.device) -> None:
        self._b, self.device = b, device
        size = 2 * b + (_SLACK_CPU if device.type == "cpu" else _SLACK_GPU)
        self._utilities = torch.empty(size, device=device)
        self._indices = torch.empty(size, dtype=torch.int64, device=device)
        self._threshold = torch.full((1,), -torch.inf, device=device)
        self._counts = torch.zeros(
            3, dtype=torch.int64, device=device
        )  # candidates, unselectable, highest index seen
        self._counts[2] = -1

    def counts(self) -> tuple[int, int]:
        """How many rows were NaN, and the highest index seen; waits for the device."""
        _, unselectable, highest = self._counts.tolist()
        return unselectable, highest

    def add_counts(self, unselectable: int, highest: int) -> None:
        """Counts rows that were seen elsewhere."""
        self._counts[1] += unselectable
        self._counts[2].clamp_(min=highest)

    def next_indices(self, rows: int) -> Tensor:
        """Indices of the rows that follow the highest, without waiting for the device."""
        return self._counts[2] + 1 + torch.arange(rows, device=self.device)

    def forget(self, unselectable: Tensor) -> None:
        """Leaves so many rows, a number on the device, out of those that were NaN."""
        self._counts[1] -= unselectable

    def add(self, utilities: Tensor, indices: Tensor | None) -> None:
        """Takes rows (N,), float32 or float64; their indices follow the highest if they are not given."""
        if utilities.dtype != self._utilities.dtype:
            utilities = utilities.double()
            self._utilities, self._threshold = self._utilities.double(), self._threshold.double()
        if indices is not None:
            indices = indices.to(self.device, torch.int64).contiguous()
        ops.keep_best_(
            self._utilities,
            self._indices,
            self._threshold,
            self._counts,
            self._b,
            utilities.contiguous(),
            indices,
        )

    def best(self) -> tuple[Tensor, Tensor]:
        """Indices and utilities of the b best, or of as many as there are, best first, equals by lower index.

        Waits for the device, to learn how many there are.
        """
        count = int(self._counts[0])
        utilities, indices = self._utilities[:count], self._indices[:count]
        # `ops.top_b` resolves ties by position. To find out whether they are in order a GPU would be waited for.
        if self.device.type != "cpu" or not bool((indices[1:] >= indices[:-1]).all()):
            indices, order = indices.sort(stable=True)
            utilities = utilities[order]
        positions, utilities = ops.top_b(utilities, min(self._b, count))
        return indices[positions], utilities
