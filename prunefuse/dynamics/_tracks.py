"""What is kept for each score: tensors that a batch is added to, and that give the score.

Tensors of samples + 1 entries have a last one for the rows that a batch on a GPU must leave out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from prunefuse import ops
from prunefuse.dynamics._options import (
    Aum,
    Dual,
    DynamicUncertainty,
    El2n,
    Forgetting,
    Grand,
    Loss,
    Score,
    Tdds,
)


@dataclass(frozen=True)
class Batch:
    """``samples`` (B,) int64 with -1 for rows left out, ``places`` the same with the last entry instead."""

    samples: Tensor
    places: Tensor
    probability: Tensor  # float64, precise near 0 and near 1
    statistics: dict[str, Tensor]  # by `ops.DYNAMICS`
    logits: Tensor | None
    features: Tensor | None


class Track(ABC):
    """One score of all samples.

    Attributes:
        tensors: The state, by name.
        needs: What it takes of a batch beside the probability: "", "loss", "logits" or "features".
        least: Epochs recorded before any sample can have the score.
        why: What that number comes from.
    """

    needs = "logits"

    def __init__(self, tensors: dict[str, Tensor], least: int, why: str) -> None:
        self.tensors, self.least, self.why = tensors, least, why

    def wants(self, epoch: int) -> bool:
        """Whether a batch of this epoch, from 1, counts."""
        return True

    @abstractmethod
    def add(self, batch: Batch) -> None:
        """Take in one batch."""

    @abstractmethod
    def score(self) -> Tensor:
        """(samples,), float64; NaN where it is not defined yet."""


class _Windows(Track):
    """Dynamic uncertainty, and DUAL."""

    needs = ""

    def __init__(self, option: DynamicUncertainty | Dual, samples: int, device: torch.device) -> None:
        self.option = option
        size = option.window + option.omitted
        omitted = f" and {option.omitted} left out" if option.omitted else ""
        super().__init__(
            _history(samples, size, device), size, f"a window of {option.window} epochs{omitted}"
        )

    def wants(self, epoch: int) -> bool:
        last = self.option.trajectory if isinstance(self.option, Dual) else None
        return last is None or epoch <= last

    def add(self, batch: Batch) -> None:
        divisor = float(self.option.window - self.option.ddof)
        history = (self.tensors["ring"], self.tensors["counts"], self.tensors["sums"])
        ops.push_(*history, batch.probability, batch.samples, self.option.window, divisor, 1.0, 1.0)

    def score(self) -> Tensor:
        windows = self.tensors["counts"] - self.least + 1
        total = self.tensors["sums"][1 if isinstance(self.option, Dual) else 0]
        return torch.where(windows > 0, total / windows, torch.nan)


class _Tdds(Track):
    def __init__(self, option: Tdds, samples: int, classes: int, device: torch.device) -> None:
        self.option = option
        # No logarithm of a probability is 1: the operator's sign for a sample that was not seen yet.
        kept = torch.ones(samples, classes, dtype=getattr(torch, option.dtype), device=device)
        tensors = {"kept": kept, **_history(samples, option.window - 1, device)}
        super().__init__(tensors, option.window, f"a window of {option.window} epochs")

    def wants(self, epoch: int) -> bool:
        return self.option.trajectory is None or epoch <= self.option.trajectory

    def add(self, batch: Batch) -> None:
        assert batch.logits is not None
        divergence = ops.divergence_(self.tensors["kept"], batch.logits, batch.samples, self.option.epsilon)
        changed = torch.where(divergence < 0, -1, batch.samples)
        history = (self.tensors["ring"], self.tensors["counts"], self.tensors["sums"])
        beta = float(self.option.beta)
        ops.push_(*history, divergence, changed, self.option.window - 1, 1.0, 1 - beta, beta)

    def score(self) -> Tensor:
        full = self.tensors["counts"] >= self.option.window - 1
        return torch.where(full, self.tensors["sums"][0], torch.nan)


class _Mean(Track):
    """EL2N, GraNd, AUM, loss."""

    def __init__(self, option: El2n | Grand | Aum | Loss, samples: int, device: torch.device) -> None:
        self.option = option
        epochs = option.epochs if isinstance(option, El2n | Grand) else None
        self.epochs = epochs
        if isinstance(option, Grand):
            self.needs = "features"
        elif isinstance(option, Loss):
            self.needs = "loss"
        tensors = {
            "sum": torch.zeros(samples + 1, dtype=torch.float64, device=device),
            "counts": torch.zeros(samples + 1, dtype=torch.int64, device=device),
        }
        least = min(epochs) if epochs else 1
        super().__init__(tensors, least, f"epoch {least}")

    def wants(self, epoch: int) -> bool:
        return self.epochs is None or epoch in self.epochs

    def add(self, batch: Batch) -> None:
        total, counts = self.tensors["sum"], self.tensors["counts"]
        if isinstance(self.option, Loss) and self.option.of == "last":
            total.index_copy_(0, batch.places, batch.statistics["loss"].double())
            counts.index_fill_(0, batch.places, 1)
            return
        total.index_add_(0, batch.places, self._values(batch))
        counts.index_add_(0, batch.places, torch.ones_like(batch.places))

    def _values(self, batch: Batch) -> Tensor:
        if isinstance(self.option, Aum):
            return batch.statistics["margin"].double()
        if isinstance(self.option, Loss):
            return batch.statistics["loss"].double()
        el2n = batch.statistics["el2n"].double()
        if isinstance(self.option, El2n):
            return el2n
        assert batch.features is not None
        squares = batch.features.double().square().sum(1)
        return el2n * (squares + 1 if self.option.bias else squares).sqrt()

    def score(self) -> Tensor:
        counts = self.tensors["counts"][:-1]
        return torch.where(counts > 0, self.tensors["sum"][:-1] / counts, torch.nan)


class _Forgetting(Track):
    def __init__(self, samples: int, device: torch.device) -> None:
        def entries() -> Tensor:
            return torch.zeros(samples + 1, dtype=torch.float64, device=device)

        tensors = {"events": entries(), "correct": entries(), "learned": entries(), "counts": entries()}
        super().__init__(tensors, 2, "two epochs to compare")

    def add(self, batch: Batch) -> None:
        now, places = batch.statistics["correct"].double(), batch.places
        before, learned = self.tensors["correct"][places], self.tensors["learned"][places]
        # A row without a distribution is neither right nor wrong: NaN from then on.
        events = ((before == 1) & (now == 0)).double() + 0 * now
        self.tensors["events"].index_add_(0, places, events)
        self.tensors["learned"].index_copy_(0, places, torch.maximum(learned, now))
        self.tensors["correct"].index_copy_(0, places, now)
        self.tensors["counts"].index_add_(0, places, torch.ones_like(now))

    def score(self) -> Tensor:
        events, learned, counts = (self.tensors[n][:-1] for n in ("events", "learned", "counts"))
        result = torch.where(learned == 0, torch.inf, events)
        return torch.where(counts < 2, torch.nan, result)


def track_of(option: Score, samples: int, classes: int | None, device: torch.device) -> Track:
    """An empty one."""
    if isinstance(option, DynamicUncertainty | Dual):
        return _Windows(option, samples, device)
    if isinstance(option, Tdds):
        if classes is None:
            raise ValueError("classes must be given for tdds, which keeps a number for each of them")
        return _Tdds(option, samples, classes, device)
    if isinstance(option, Forgetting):
        return _Forgetting(samples, device)
    return _Mean(option, samples, device)


def _history(samples: int, size: int, device: torch.device) -> dict[str, Tensor]:
    """A ring of each sample's latest values, how many it has had, and the sums over its windows (`ops.push_`)."""
    return {
        "ring": torch.zeros(samples, size, dtype=torch.float64, device=device),
        "counts": torch.zeros(samples, dtype=torch.int64, device=device),
        "sums": torch.zeros(2, samples, dtype=torch.float64, device=device),
    }
