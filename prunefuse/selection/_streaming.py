"""The b best rows of a pool that comes in batches, in O(b) memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunefuse import _files as files
from prunefuse import ops
from prunefuse.ops.arrays import as_tensor, require_count, require_floating
from prunefuse.ops.integers import as_integers
from prunefuse.ops.transfer import upload
from prunefuse.scoring import score
from prunefuse.scoring._scores import LOGIT_STRATEGIES
from prunefuse.selection._candidates import Candidates

# The second has rows that are excluded.
_FORMATS = ("prunefuse.StreamingTopB/1", "prunefuse.StreamingTopB/2")


class StreamingTopB:
    """The b rows of highest utility of a stream of logits: what `top_b` picks of the whole.

    >>> keeper = prunefuse.StreamingTopB(2, "margin")
    >>> for logits in torch.tensor([[[3.0, 0.0]], [[0.0, 0.0]], [[1.0, 0.0]]]): keeper.update(logits)
    >>> keeper.result()[0].tolist()
    [1, 2]

    Any cut of the stream into batches, any order of them and any merging give the same result. Memory is O(b) beside the
    batch. Give batches whole: a batch costs some microseconds of its own, whatever its size.

    Args:
        b: How many rows to keep, at least 1.
        strategy: A name that `score` knows; or a function from the logits given to `update`, as they were given, to
            utilities. These are a floating array (N,), higher = label first, and NaN is never selected.
        probabilities, temperature: As for `score`; only for a strategy by name.
        exclude: Indices in the data set that are never kept, as any integer sequence or array, or a mask of the data set.

    Raises:
        TypeError: An argument is not of its type.
        ValueError: An argument has a value that it cannot have.
    """

    def __init__(
        self,
        b: int,
        strategy: str | Callable[[Any], Any] = "entropy",
        *,
        probabilities: bool = False,
        temperature: float = 1.0,
        exclude: Any = None,
    ) -> None:
        self._b = require_count("b", b, 1)
        if isinstance(strategy, str):
            score(torch.zeros(0, 1), strategy, temperature=temperature)  # a wrong one is an error now
            self._numbers = [LOGIT_STRATEGIES[strategy]]
        elif not callable(strategy):
            raise TypeError(f"strategy must be a name or a function of the logits, got {strategy!r}")
        elif probabilities or temperature != 1.0:
            raise ValueError(
                "probabilities and temperature are for strategies by name: the function gets the input"
            )
        self._strategy = strategy
        self._probabilities, self._temperature = bool(probabilities), float(temperature)
        self._excluded = _indices(exclude)
        self._rows = 0
        self._numpy = False  # the latest batch was NumPy
        self._kept = Candidates(self._b, torch.device("cpu"))

    @property
    def b(self) -> int:
        """How many rows are kept."""
        return self._b

    @property
    def rows(self) -> int:
        """How many rows were seen."""
        return self._rows

    @property
    def unselectable(self) -> int:
        """How many rows were seen that cannot be selected, their utility being NaN. Waits for the GPU, if there is one.

        Rows that are excluded do not count.
        """
        return self._kept.counts()[0]

    def update(self, logits: Any, indices: Any = None) -> None:
        """Take the next batch. On a GPU nothing waits for the device, but for indices that lie elsewhere and are copied.

        Args:
            logits: What `score` takes, (N, C); for a strategy that is a function, what that takes, with N as its length.
            indices: (N,), integers: the rows' indices in the data set, in any order. Left out they are consecutive, from
                one more than the highest so far (0 at first). Rows are not looked up by index. An index that is given twice
                stands for two rows, and both may be picked.

        Raises:
            TypeError: logits is not a floating array (for a function: what it returned), or indices are not integers.
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
        if len(self._excluded):
            where = (
                self._kept.next_indices(rows) if given is None else given.to(utilities.device, torch.int64)
            )
            at = torch.searchsorted(self._excluded, where).clamp_(max=len(self._excluded) - 1)
            hidden = self._excluded[at] == where
            self._kept.add(utilities.where(~hidden, torch.nan), given)
            self._kept.forget(hidden.sum())
        else:
            self._kept.add(utilities, given)
        self._rows += rows

    def merge(self, other: StreamingTopB) -> None:
        """Take what another one has kept, as if its stream had come here; the other stays as it is.

        Raises:
            TypeError: other is not a StreamingTopB.
            ValueError: It keeps another number of rows, ranks them by another strategy, or excludes others.
        """
        if not isinstance(other, StreamingTopB):
            raise TypeError(f"other must be a StreamingTopB, got {type(other).__name__}")
        if other._settings() != self._settings():
            raise ValueError(
                f"other must be of the same settings, {self._settings()}, got {other._settings()}"
            )
        if not torch.equal(other._excluded.cpu(), self._excluded.cpu()):
            raise ValueError(
                f"other must exclude the same {len(self._excluded)} rows, got one that excludes {len(other._excluded)}"
            )
        if self._rows == 0:
            self._move(other._kept.device)
        self._rows += other._rows
        self._numpy = self._numpy or other._numpy
        self._take(other._kept)

    def result(self) -> tuple[Any, Any]:
        """The best rows so far; the stream may go on afterwards. Waits for the GPU, if there is one.

        Returns:
            Indices (b,) int64 and their utilities (b,), best first, equals by lower index. Utilities are float64 if any
            batch was scored in float64, and float32 otherwise. Both are on the device of the latest batch, or NumPy if that
            was NumPy.

        Raises:
            ValueError: Fewer than b rows can be selected; the message says how many.
        """
        indices, utilities = self._kept.best()
        if len(indices) < self._b:
            # As many as there are: none has been given up.
            why = " (the others are NaN or excluded)" if len(self._excluded) else " (the others are NaN)"
            raise ValueError(
                f"b is {self._b}, but only {len(indices)} of the {self._rows} rows seen can be selected"
                + (why if len(indices) < self._rows else "")
            )
        return (indices.numpy(), utilities.numpy()) if self._numpy else (indices, utilities)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a safetensors file, whole or not at all; `load` goes on from it exactly.

        Raises:
            OSError: The file cannot be written.
        """
        indices, utilities = self._kept.best()
        unselectable, highest = self._kept.counts()
        state = {
            **self._settings(),
            "strategy": self._strategy if isinstance(self._strategy, str) else None,
            "rows": self._rows,
            "unselectable": unselectable,
            "highest": highest,
            "numpy": self._numpy,
        }
        tensors = {"indices": indices, "utilities": utilities}
        if len(self._excluded):  # which readers of the first format do not know
            tensors["exclude"] = self._excluded
        metadata = {"format": _FORMATS["exclude" in tensors], "state": json.dumps(state)}
        files.save_tensors(path, tensors, metadata)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], strategy: Callable[[Any], Any] | None = None
    ) -> StreamingTopB:
        """The keeper that was saved to `path`, with its rows on the CPU until the next batch.

        Args:
            path: A file written by `save`.
            strategy: The function it was made with, which a file cannot hold; None for a strategy by name.

        Raises:
            OSError: The file cannot be read.
            ValueError: It was not written by `save`, or the strategy is missing or one too many.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(os.fspath(path), framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") not in _FORMATS:
                    raise ValueError(f"{path} is not a saved StreamingTopB of format {' or '.join(_FORMATS)}")
                indices, utilities = file.get_tensor("indices"), file.get_tensor("utilities")
                excluded = file.get_tensor("exclude") if metadata["format"] == _FORMATS[True] else None
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
        state = json.loads(metadata["state"])
        if (state["strategy"] is None) != (strategy is not None):
            saved = "the function" if strategy is None else f"None, for {state['strategy']!r}"
            raise ValueError(f"strategy must be {saved} that {path} was saved with, got {strategy!r}")
        keeper = cls(
            state["b"],
            strategy or state["strategy"],
            probabilities=state["probabilities"],
            temperature=state["temperature"],
            exclude=excluded,
        )
        keeper._rows, keeper._numpy = state["rows"], state["numpy"]
        keeper._kept.add(utilities, indices)
        keeper._kept.add_counts(state["unselectable"], state["highest"])
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
            # What `score` does, without checking again what was checked: small batches would feel it.
            x = as_tensor("logits", logits)
            require_floating("logits", x)
            return ops.score(x, self._numbers, self._probabilities, self._temperature)[0]
        utilities = as_tensor("strategy's utilities", self._strategy(logits))
        require_floating("strategy's utilities", utilities)
        if utilities.shape != (len(logits),):
            raise ValueError(
                f"strategy must return {len(logits)} utilities, one for each row, got shape {tuple(utilities.shape)}"
            )
        return utilities if utilities.dtype in (torch.float32, torch.float64) else utilities.float()

    def _move(self, device: torch.device) -> None:
        """The candidates go to the device of the batch that comes."""
        if device != self._kept.device:
            before = self._kept
            self._kept = Candidates(self._b, device)
            self._excluded = upload(self._excluded, device)
            self._take(before)

    def _take(self, other: Candidates) -> None:
        indices, utilities = other.best()
        self._kept.add(utilities.to(self._kept.device), indices)
        self._kept.add_counts(*other.counts())


def _indices(exclude: Any) -> Tensor:
    """Indices of a data set of any size, each once and rising, on the CPU."""
    if exclude is None:
        return torch.empty(0, dtype=torch.int64)
    array = as_integers("exclude", exclude).cpu()
    if array.dtype == torch.bool:
        return array.nonzero()[:, 0]
    if array.numel() and int(array.min()) < 0:
        raise ValueError(f"exclude must hold indices of the data set, from 0 on, got {int(array.min())}")
    unique: Tensor = array.unique()
    return unique
