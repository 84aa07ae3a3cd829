"""The b best rows of a pool that comes in batches, in O(b) memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunefuse import files, ops
from prunefuse.ops.arrays import as_tensor, require_count, require_floating
from prunefuse.scoring import score

_FORMAT = "prunefuse.StreamingTopB/1"
# A filter runs over at least so many rows, and over as many as came before: its threshold then rises while a large batch
# goes through, and the cost of a step is spread over many rows. At most so many, to stay in cache.
_FILTER_ROWS, _FILTER_ROWS_AT_MOST = 8192, 1 << 17
# Candidates beyond b that are gathered before the best b are kept. The GPU sorts all rows rather than wait to learn how
# many pass a filter: there fewer, larger sorts are cheaper.
_SLACK_CPU, _SLACK_GPU = 4096, 1 << 20


class StreamingTopB:
    """Keeps the b rows with the highest utility of a stream of logits; what it keeps is what `top_b` picks of the whole.

    Any cut of the stream into batches, any order of them and any merging give the same result. Memory is O(b) beside the
    batch. Give batches whole: a batch costs some microseconds of its own, whatever its size.

    Args:
        b: how many rows to keep, at least 1.
        strategy: a name that `score` knows, or a function from the logits given to `update`, as they were given, to
            utilities: a floating array (N,), higher = label first, NaN never selected.
        probabilities, temperature: as for `score`; only for a strategy by name.

    Raises:
        TypeError, ValueError: an argument is not of its type, or not a value it can have.
    """

    def __init__(
        self,
        b: int,
        strategy: str | Callable[[Any], Any] = "entropy",
        *,
        probabilities: bool = False,
        temperature: float = 1.0,
    ) -> None:
        self._b = require_count("b", b, 1)
        if isinstance(strategy, str):
            score(torch.zeros(0, 1), strategy, temperature=temperature)  # a wrong one is an error now
        elif not callable(strategy):
            raise TypeError(f"strategy must be a name or a function of the logits, got {strategy!r}")
        elif probabilities or temperature != 1.0:
            raise ValueError(
                "probabilities and temperature are for strategies by name: the function gets the input"
            )
        self._strategy = strategy
        self._probabilities, self._temperature = bool(probabilities), float(temperature)
        self._rows = 0
        self._unselectable = torch.zeros((), dtype=torch.int64)
        self._highest: int | Tensor = -1  # of the indices seen
        self._numpy = False  # the latest batch was NumPy
        self._device = torch.device("cpu")  # of the latest batch
        # Candidates, in parts; on a GPU some may be NaN. While `_in_order`, equal utilities stand in the order of their
        # indices, which is what `ops.top_b` resolves ties by.
        self._utilities: list[Tensor] = []
        self._indices: list[Tensor] = []
        self._candidates = 0
        self._in_order = True
        self._threshold: float | None = None  # b candidates are at least so useful; None until that is known

    @property
    def b(self) -> int:
        """How many rows are kept."""
        return self._b

    @property
    def rows(self) -> int:
        """Rows seen."""
        return self._rows

    @property
    def unselectable(self) -> int:
        """Rows seen that cannot be selected, their utility being NaN. Waits for the GPU, if there is one."""
        return int(self._unselectable)

    def update(self, logits: Any, indices: Any = None) -> None:
        """Take the next batch. On a GPU nothing waits for the device, once the first batch has been there.

        Args:
            logits: what `score` takes, (N, C); for a strategy that is a function, what that takes, with N as its length.
            indices: (N,), integers, the rows' indices in the data set, in any order. Left out: consecutive, from one more
                than the highest so far (0 at first), which waits for the GPU if earlier ones were given there. Rows are not
                looked up by index: an index that is given twice stands for two rows, and both may be picked.

        Raises:
            TypeError: logits is not a floating array (for a function: what it returned), or indices not integers.
            ValueError: indices or the utilities of a function are not N.
            RuntimeError: logits is not of rank 2 or has no class.
        """
        given = None if indices is None else as_tensor("indices", indices)
        if given is not None and (
            given.dtype.is_floating_point or given.dtype.is_complex or given.dtype == torch.bool
        ):
            raise TypeError(f"indices must be integers, got {given.dtype}")
        utilities = self._scored(logits)
        rows = len(utilities)
        if given is not None and given.shape != (rows,):
            raise ValueError(f"indices must have shape ({rows},), one for each row, got {tuple(given.shape)}")
        if rows == 0:
            return
        self._numpy = isinstance(logits, np.ndarray)
        self._move(utilities.device)
        start = int(self._highest) + 1 if given is None else 0
        if utilities.is_cpu:
            own = None if given is None else given.to("cpu", torch.int64).numpy()
            self._filter(utilities.numpy(), start, own)
            self._highest = start + rows - 1 if own is None else max(int(self._highest), int(own.max()))
        else:
            # Copies: what we were given may be written to, or be part of something large, after we return.
            if given is None:
                indices = torch.arange(start, start + rows, device=self._device)
                self._highest = start + rows - 1
            else:
                indices = given.to(self._device, torch.int64, copy=True)
                # A number stays on the host: copying it to the device would wait.
                highest, before = indices.max(), self._highest
                self._highest = (
                    highest.maximum(before) if isinstance(before, Tensor) else highest.clamp(before)
                )
                self._in_order = False  # it may be so, but to find out is to wait
            self._unselectable = self._unselectable + utilities.isnan().sum()
            self._add(utilities.clone(), indices)
        self._rows += rows

    def merge(self, other: StreamingTopB) -> None:
        """Take what another one has kept, as if its stream had come here; the other stays as it is.

        Raises:
            TypeError: other is not a StreamingTopB.
            ValueError: it keeps another number of rows, or ranks them by another strategy.
        """
        if not isinstance(other, StreamingTopB):
            raise TypeError(f"other must be a StreamingTopB, got {type(other).__name__}")
        if other._settings() != self._settings():
            raise ValueError(
                f"other must be of the same settings, {self._settings()}, got {other._settings()}"
            )
        if self._rows == 0:
            self._move(other._device)
        indices, utilities = other._selected()
        self._rows += other._rows
        self._numpy = self._numpy or other._numpy
        self._unselectable = self._unselectable + other.unselectable
        self._highest = max(int(self._highest), int(other._highest))
        self._in_order = False
        self._add(utilities.to(self._device), indices.to(self._device))

    def result(self) -> tuple[Any, Any]:
        """The best rows so far; the stream may go on afterwards.

        Returns:
            indices (b,) int64 and their utilities (b,), best first, equals by lower index; float64 if any batch was scored
            in float64 and float32 otherwise; on the device of the latest batch, or NumPy if that was NumPy.

        Raises:
            ValueError: fewer than b rows can be selected; the message says how many.
        """
        indices, utilities = self._selected()
        if len(indices) < self._b:
            selectable = self._rows - self.unselectable
            raise ValueError(
                f"b is {self._b}, but only {selectable} of the {self._rows} rows seen can be selected"
                + (" (the others are NaN)" if selectable < self._rows else "")
            )
        indices, utilities = indices.clone(), utilities.clone()  # the caller may write to them
        return (indices.numpy(), utilities.numpy()) if self._numpy else (indices, utilities)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a safetensors file, atomically; `load` goes on from it exactly.

        Raises:
            OSError: the file cannot be written.
        """
        indices, utilities = self._selected()
        state = {
            **self._settings(),
            "strategy": self._strategy if isinstance(self._strategy, str) else None,
            "rows": self._rows,
            "unselectable": self.unselectable,
            "highest": int(self._highest),
            "numpy": self._numpy,
        }
        metadata = {"format": _FORMAT, "state": json.dumps(state)}
        files.save_tensors(path, {"indices": indices, "utilities": utilities}, metadata)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], strategy: Callable[[Any], Any] | None = None
    ) -> StreamingTopB:
        """The keeper that was saved to `path`, with its rows on the CPU until the next batch.

        Args:
            path: a file written by `save`.
            strategy: the function it was made with, which a file cannot hold; None for a strategy by name.

        Raises:
            OSError: the file cannot be read.
            ValueError: it was not written by `save`, or the strategy is missing or one too many.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(os.fspath(path), framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise ValueError(f"{path} is not a saved StreamingTopB of format {_FORMAT}")
                indices, utilities = file.get_tensor("indices"), file.get_tensor("utilities")
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
        state = json.loads(metadata["state"])
        if (state["strategy"] is None) != (strategy is not None):
            need = (
                "a function, which load needs"
                if strategy is None
                else f"{state['strategy']!r}, not a function"
            )
            raise ValueError(f"strategy: {path} was saved with {need}")
        keeper = cls(
            state["b"],
            strategy or state["strategy"],
            probabilities=state["probabilities"],
            temperature=state["temperature"],
        )
        keeper._rows, keeper._highest, keeper._numpy = state["rows"], state["highest"], state["numpy"]
        keeper._unselectable = torch.tensor(state["unselectable"])
        keeper._add(utilities, indices)
        return keeper

    def _settings(self) -> dict[str, Any]:
        return {
            "b": self._b,
            "strategy": self._strategy,
            "probabilities": self._probabilities,
            "temperature": self._temperature,
        }

    def _scored(self, logits: Any) -> Tensor:
        if isinstance(self._strategy, str):
            named: Tensor = score(
                as_tensor("logits", logits),
                self._strategy,
                probabilities=self._probabilities,
                temperature=self._temperature,
            )
            return named
        utilities = as_tensor("strategy's utilities", self._strategy(logits))
        require_floating("strategy's utilities", utilities)
        if utilities.shape != (len(logits),):
            raise ValueError(
                f"strategy must return {len(logits)} utilities, one for each row, got shape {tuple(utilities.shape)}"
            )
        return utilities if utilities.dtype in (torch.float32, torch.float64) else utilities.float()

    def _filter(self, utilities: np.ndarray, start: int, indices: np.ndarray | None) -> None:
        """Add the rows above the threshold. NumPy: its comparisons of a batch take a third of torch's time."""
        if nan := int(np.count_nonzero(utilities != utilities)):
            self._unselectable = self._unselectable + nan
        highest, first = int(self._highest), 0
        while first < len(utilities):
            last = first + min(max(_FILTER_ROWS, self._rows + first), _FILTER_ROWS_AT_MOST)
            values = utilities[first:last]
            if self._threshold is None:
                passed = values == values
            elif indices is None:
                passed = values > self._threshold  # b candidates as useful have lower indices
            else:
                passed = values >= self._threshold
            rows = np.flatnonzero(passed)
            if len(rows):
                own = rows + (start + first) if indices is None else indices[first:last][rows]
                if indices is not None and self._in_order:
                    self._in_order = bool(own[0] > highest and (own[1:] > own[:-1]).all())
                    highest = int(own[-1])
                self._add(torch.from_numpy(values[rows]), torch.from_numpy(own))
            first = last

    def _add(self, utilities: Tensor, indices: Tensor) -> None:
        self._utilities.append(utilities)
        self._indices.append(indices)
        self._candidates += len(utilities)
        if not utilities.is_cpu:
            if self._candidates >= 8 * self._b + _SLACK_GPU:
                self._cut()
        elif self._candidates >= 4 * self._b + _SLACK_CPU:
            self._trim()
            if self._candidates > 2 * self._b + _SLACK_CPU // 2:  # ties: only a cut says which of them stay
                self._cut()

    def _trim(self) -> None:
        """Drops candidates, on the CPU, that are below the b-th in utility: what a cut does but for its sort and ties."""
        utilities, indices = torch.cat(self._utilities).numpy(), torch.cat(self._indices).numpy()
        at = len(utilities) - self._b
        lowest = np.partition(utilities, at)[at]
        rows = np.flatnonzero(utilities >= lowest)
        self._utilities = [torch.from_numpy(utilities[rows])]
        self._indices = [torch.from_numpy(indices[rows])]
        self._candidates = len(rows)
        self._threshold = float(lowest)

    def _cut(self) -> None:
        """Keeps the best b candidates, or all if there are fewer: by utility, equals by index, NaN last."""
        if not self._utilities:
            self._utilities = [torch.empty(0, device=self._device)]
            self._indices = [torch.empty(0, dtype=torch.int64, device=self._device)]
            return
        utilities, indices = torch.cat(self._utilities), torch.cat(self._indices)
        if not self._in_order:
            indices, order = indices.sort(stable=True)
            utilities = utilities[order]
        self._candidates = min(self._b, len(utilities))
        positions, best = ops.top_b(utilities, self._candidates)
        # Position -1, of a NaN, has any index.
        self._utilities, self._indices, self._in_order = [best], [indices[positions]], True

    def _selected(self) -> tuple[Tensor, Tensor]:
        """Indices and utilities of the best b, or of all that can be selected if they are fewer, in order. Waits for a GPU."""
        self._cut()
        found = min(self._b, self._rows - self.unselectable)
        return self._indices[0][:found], self._utilities[0][:found]

    def _move(self, device: torch.device) -> None:
        """Candidates and counts go to the device of the batch that comes."""
        if device != self._device:
            indices, utilities = self._selected()
            self._device = device
            self._utilities, self._indices = [utilities.to(device)], [indices.to(device)]
            self._candidates = len(indices)
            self._unselectable, self._highest = self._unselectable.to(device), int(self._highest)
