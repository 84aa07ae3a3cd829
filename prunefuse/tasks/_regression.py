"""Numbers to predict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from prunefuse.ops.integers import shown
from prunefuse.tasks._task import Loss, Metrics, Task, require_axes


@dataclass(frozen=True)
class Regression(Task):
    """Outputs are (N, D) numbers, or (N,) for one; so are labels. The loss is the mean squared error.

    >>> from prunefuse.tasks import Regression
    >>> task = Regression()
    >>> task.metrics(task.measure(torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0], [2.0]])))["mae"]
    0.5

    Strategies are ``variance`` of passes with dropout, and greedy sampling: ``k_center`` in the inputs or features,
    ``greedy_outputs`` and ``greedy_both``. Losses are ``mse``, ``mae`` and ``huber``.

    References:
        Wu, Lin and Huang 2019, *Active Learning for Regression Using Greedy Sampling*.
    """

    losses = ("mse", "mae", "huber")

    def output(self, given: Any) -> Any:
        found = super().output(given)
        return found[:, None] if found.ndim == 1 else found

    def width(self, outputs: Any) -> int:
        return require_axes(outputs, 2, "outputs (N, D)").shape[1]

    def label(self, argument: str, sample: int, value: Any, *, width: int | None = None) -> Any:
        found = self.numbers(argument, sample, value).float().reshape(-1)
        if width is not None and len(found) != width:
            raise ValueError(f"{argument} must have {width} numbers for sample {sample}, got {shown(value)}")
        if not bool(found.isfinite().all()):
            raise ValueError(f"{argument} must have finite numbers for sample {sample}, got {shown(value)}")
        return found

    def stored(self, argument: str, labels: Tensor, samples: Tensor) -> Tensor:
        return labels.float().reshape(len(labels), -1)

    def loss(self, outputs: Tensor, targets: Tensor, how: Loss) -> Tensor:
        if how.name == "mae":
            return functional.l1_loss(outputs, targets)
        return (
            functional.huber_loss(outputs, targets)
            if how.name == "huber"
            else functional.mse_loss(outputs, targets)
        )

    def measure(self, outputs: Tensor, targets: Tensor) -> Tensor:
        y, error = targets.double(), outputs.double() - targets.double()
        sums = (y.sum(0), y.square().sum(0), error.square().sum(0), error.abs().sum(0))
        return torch.cat([*sums, y.new_tensor([len(y)])])

    def metrics(self, measured: Tensor) -> Metrics:
        host = measured.cpu()
        n = float(host[-1])
        y, squares, squared, absolute = host[:-1].view(4, -1)
        spread = squares - y * y / n
        # Of numbers that are all the same nothing is explained, but by a network that says just these.
        r2 = torch.where(spread > 0, 1 - squared / spread, (squared == 0).double())
        return {
            "r2": float(r2.mean()),
            "rmse": float(squared.mean() / n) ** 0.5,
            "mae": float(absolute.mean()) / n,
        }
