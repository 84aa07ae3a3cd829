"""What a stream keeps of the rows it has seen, on the CPU and on a GPU: O(b) candidates for the b best."""

from __future__ import annotations

import torch
from torch import Tensor

from prunefuse import ops

# Candidates beyond 2b that are gathered before the best are kept. The operator takes 2048 rows at a time, and wants room
# for some of them. A GPU sorts all rows rather than wait to learn how many pass a filter: there fewer, larger sorts are
# cheaper.
_SLACK_CPU, _SLACK_GPU = 3 * 2048, 1 << 20


class CpuCandidates:
    """Candidates on the CPU: one native call for each batch."""

    device = torch.device("cpu")

    def __init__(self, b: int) -> None:
        self._b = b
        self._utilities = torch.empty(2 * b + _SLACK_CPU)
        self._indices = torch.empty(len(self._utilities), dtype=torch.int64)
        self._threshold = torch.full((1,), -torch.inf)
        self._counts = torch.tensor([0, 0, -1])  # candidates, unselectable, highest index seen

    def counts(self) -> tuple[int, int]:
        """How many rows were NaN, and the highest index seen."""
        _, unselectable, highest = self._counts.tolist()
        return unselectable, highest

    def add_counts(self, unselectable: int, highest: int) -> None:
        """Counts rows that were seen elsewhere."""
        self._counts[1] += unselectable
        self._counts[2].clamp_(min=highest)

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
        """Indices and utilities of the b best, or of as many as there are, best first, equals by lower index."""
        count = int(self._counts[0])
        utilities, indices = self._utilities[:count], self._indices[:count]
        if not (indices[1:] >= indices[:-1]).all():  # `ops.top_b` resolves ties by position
            indices, order = indices.sort(stable=True)
            utilities = utilities[order]
        positions, utilities = ops.top_b(utilities, min(self._b, count))
        return indices[positions], utilities


class GpuCandidates:
    """Candidates on a GPU, NaN among them: nothing waits for the device but `counts` and `best`."""

    def __init__(self, b: int, device: torch.device) -> None:
        self._b, self.device = b, device
        self._utilities: list[Tensor] = []
        self._indices: list[Tensor] = []
        self._candidates = 0
        self._unselectable = torch.zeros((), dtype=torch.int64, device=device)
        self._highest: int | Tensor = -1  # a number as long as no index had to be looked at
        # Equal utilities stand in the order of their indices, which is what `ops.top_b` resolves ties by.
        self._in_order = True

    def counts(self) -> tuple[int, int]:
        """As on the CPU; waits for the device."""
        return int(self._unselectable), int(self._highest)

    def add_counts(self, unselectable: int, highest: int) -> None:
        """As on the CPU; waits for the device."""
        self._unselectable += unselectable
        self._highest = max(int(self._highest), highest)

    def add(self, utilities: Tensor, indices: Tensor | None) -> None:
        """As on the CPU; without indices it waits for the device if some were given before."""
        # Copies: what we were given may be written to, or be part of something large, after we return.
        if indices is None:
            start = int(self._highest) + 1
            self._highest = start + len(utilities) - 1
            indices = torch.arange(start, start + len(utilities), device=self.device)
        elif len(indices):
            indices = indices.to(self.device, torch.int64, copy=True)
            # A number stays on the host: copying it to the device would wait.
            highest, before = indices.max(), self._highest
            self._highest = highest.maximum(before) if isinstance(before, Tensor) else highest.clamp(before)
            self._in_order = False  # it may be so, but to find out is to wait
        else:
            return
        self._unselectable = self._unselectable + utilities.isnan().sum()
        self._utilities.append(utilities.clone())
        self._indices.append(indices)
        self._candidates += len(utilities)
        if self._candidates >= 8 * self._b + _SLACK_GPU:
            self._cut()

    def best(self) -> tuple[Tensor, Tensor]:
        """As on the CPU; waits for the device."""
        if not self._utilities:
            return torch.empty(0, dtype=torch.int64, device=self.device), torch.empty(0, device=self.device)
        self._cut()
        found = int((~self._utilities[0].isnan()).sum())  # NaN are last
        # Copies: the caller may write to them.
        return self._indices[0][:found].clone(), self._utilities[0][:found].clone()

    def _cut(self) -> None:
        """Keeps the best b candidates, or all if there are fewer: by utility, equals by index, NaN last."""
        utilities, indices = torch.cat(self._utilities), torch.cat(self._indices)
        if not self._in_order:
            indices, order = indices.sort(stable=True)
            utilities = utilities[order]
        self._candidates = min(self._b, len(utilities))
        positions, best = ops.top_b(utilities, self._candidates)
        # Position -1, of a NaN, has any index.
        self._utilities, self._indices, self._in_order = [best], [indices[positions]], True
