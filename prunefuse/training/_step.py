"""One step of a training: forward, loss, backward and update; compiled or recorded where a recipe asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from prunefuse.data._items import length_of
from prunefuse.tasks._task import Task, require_measured
from prunefuse.training._rates import LearningRates
from prunefuse.training._recipe import Recipe

Weight = float | Tensor | None
"""That of the labels' loss beside a teacher's; None without a teacher."""
LossOf = Callable[[nn.Module, Any, Any, Any, Weight], tuple[Tensor, Any]]
"""From model, inputs, labels, the teacher's outputs and the labels' weight to the loss and the outputs."""


@dataclass
class Steps:
    """Does steps, and says of each the loss and the outputs, without waiting for the device.

    Attributes:
        model: What is trained.
        recipe: How.
        loss_of: The loss.
        task: What measures outputs.
        rates: Learning rates of single elements.
        sums: Whether the last measure was the first metric's sum alone, `Task.hits`.
    """

    model: nn.Module
    recipe: Recipe
    loss_of: LossOf
    task: Task
    rates: LearningRates | None = None
    sums: bool = False

    def __post_init__(self) -> None:
        self.optimizer = optimizer_of(self.model, self.recipe)
        self._parameters: list[Tensor] = list(self.model.parameters())
        self._momenta: list[Tensor] | None = None
        self._runs: nn.Module = self.model
        if self.recipe.compile:
            self._runs = cast(nn.Module, torch.compile(self.model))

    def __call__(
        self, inputs: Any, labels: Any, taught: Any, lr: float | Tensor, weight: Weight
    ) -> tuple[Tensor, Any]:
        """One step; returns the loss and the outputs that it was taken from."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        try:
            loss, outputs = self._gradients(inputs, labels, taught, weight)
        except RuntimeError as error:
            # Of what cannot be compiled; all of them are of torch's compiler, which is only now imported.
            if not self.recipe.compile or not isinstance(error, torch._dynamo.exc.TorchDynamoException):
                raise
            said = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ValueError(
                f"compile must be False for this model on this machine, got True: {said}"
            ) from error
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        if self.rates is not None:
            self.rates.note()
        self._update(lr)
        if self.rates is not None:
            self.rates.apply_()
        return loss.detach(), outputs.detach() if isinstance(outputs, Tensor) else outputs

    def _gradients(self, inputs: Any, labels: Any, taught: Any, weight: Weight) -> tuple[Tensor, Any]:
        try:
            loss, outputs = self.loss_of(self._runs, inputs, labels, taught, weight)
        except ValueError as error:
            # What torch says when there is one value for each channel of a batch norm.
            if length_of(inputs) > 1 or "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                "data and batch_size must be two or more samples for a model with batch norm, which cannot be trained on "
                f"one at a time, got batches of one (batch_size {self.recipe.batch_size})"
            ) from error
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()
        return loss, outputs

    def _update(self, lr: float | Tensor) -> None:
        """`torch.optim.Optimizer.step`, or its kernel alone once its arguments are known: small networks wait for Python."""
        gradients = [one.grad for one in self._parameters if one.grad is not None and not one.grad.is_sparse]
        if self._momenta is None or len(gradients) < len(self._parameters):
            self.optimizer.step()
            self._momenta = self._kept()
            return
        with torch.no_grad():
            torch._fused_sgd_(
                self._parameters,
                gradients,
                self._momenta,
                weight_decay=self.recipe.weight_decay,
                momentum=self.recipe.momentum,
                lr=cast(Any, lr),  # a number, too
                dampening=0.0,
                nesterov=self.recipe.nesterov,
                maximize=False,
                is_first_step=False,
            )

    def _kept(self) -> list[Tensor] | None:
        """The momenta of SGD, where every parameter has one, and one kernel takes all; None elsewhere."""
        kinds = {(one.dtype, one.device) for one in self._parameters}
        if not isinstance(self.optimizer, torch.optim.SGD) or len(kinds) != 1:
            return None
        if self.recipe.momentum == 0:
            return []
        kept = [self.optimizer.state.get(one, {}).get("momentum_buffer") for one in self._parameters]
        return None if any(one is None for one in kept) else kept

    @torch.no_grad()
    def measure(self, outputs: Any, labels: Any) -> Tensor:
        """The first metric of a batch, summed over its samples, where that is cheap, else what the task measures."""
        part = self.task.hits(outputs, labels)
        self.sums = part is not None
        return require_measured(self.task, self.task.measure(outputs, labels)) if part is None else part


def optimizer_of(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer of a recipe; what it keeps of parameters is made by its first step."""
    lr, parameters = recipe.lr, list(model.parameters())
    if recipe.optimizer == "adamw":
        betas, decay = (recipe.momentum, 0.999), recipe.weight_decay
        recorded = recipe.cuda_graphs and parameters[0].device.type == "cuda"
        options: dict[str, Any] = {"capturable": True} if recorded else {}
        return torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=decay, fused=True, **options)
    return torch.optim.SGD(
        parameters,
        lr=lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
