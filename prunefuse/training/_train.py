"""Training a classifier by a recipe."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunefuse._seeds import derive, generator, isolated
from prunefuse.data._batches import Batch, batch_count, read, shuffled
from prunefuse.data._items import check_map_style
from prunefuse.errors import TrainingDivergedError as TrainingDivergedError
from prunefuse.training import _checkpoint
from prunefuse.training._adversarial import Adversarial
from prunefuse.training._checkpoint import Checkpoint, Moment
from prunefuse.training._clock import Clock
from prunefuse.training._distillation import Distillation
from prunefuse.training._modes import device_of, evaluating, takes_ids
from prunefuse.training._predict import evaluate, forward
from prunefuse.training._recipe import Recipe

LossOf = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]  # model, images, labels -> loss, logits


@dataclass(frozen=True)
class EpochResult:
    """What one epoch of training gave.

    >>> from prunefuse.training import EpochResult
    >>> EpochResult(1, 20, 0.1, 2.3, 0.11, None, 0.5, 0.0).epoch
    1

    Attributes:
        epoch: Counted from 1.
        epochs: How many there are.
        lr: Learning rate of the last step.
        loss: Mean over the samples, as they were trained on.
        train_accuracy: The same of the accuracy, in [0, 1].
        test_accuracy: In [0, 1]. None unless a test set was given.
        seconds: Wall-clock time of the training, without evaluation.
        teacher_seconds: The part of ``seconds`` that the teacher's forward passes took.
    """

    epoch: int
    epochs: int
    lr: float
    loss: float
    train_accuracy: float
    test_accuracy: float | None
    seconds: float
    teacher_seconds: float


def train(
    model: nn.Module,
    data: Any,
    recipe: Recipe,
    *,
    seed: int = 0,
    distillation: Distillation | None = None,
    adversarial: Adversarial | None = None,
    test: Any = None,
    workers: int = 0,
    on_batch: Callable[[Tensor, Tensor, Tensor], None] | None = None,
    on_epoch: Callable[[EpochResult], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> list[EpochResult]:
    """Train ``model`` in place, leave it in training mode, and return what every epoch gave. The last epoch is the result.

    >>> model, data = torch.nn.Linear(4, 2), torch.utils.data.TensorDataset(torch.rand(8, 4), torch.arange(8) % 2)
    >>> [epoch.epoch for epoch in prunefuse.training.train(model, data, prunefuse.Recipe(epochs=2))]
    [1, 2]

    Args:
        model: A classifier, (N, ...) images to (N, C) logits, on the device to train on.
        data: A map-style data set with items ``(image, label)``; `Labeled` puts other labels on one.
        recipe: Epochs, batches, learning rate and so on.
        seed: Fixes order, augmentation and dropout; global generators are left as found. A CPU run with the
            same seed and number of threads is repeatable bit for bit.
        distillation: A teacher on the same device, and how to listen to it. The teacher sees the same augmented images, in
            evaluation mode, and is left in the mode it was in.
        adversarial: Train on attacked images; not together with a teacher.
        test: If given, a data set evaluated after every epoch.
        workers: Processes that read and augment data sets that are not in memory.
        on_batch: Called in every step with the logits (B, C) that the step was taken from, detached, and the labels (B,).
            Both are on the model's device. The third argument is the samples' positions (B,) in ``data``, on the CPU.
            `Recorder.update` fits. `Adversarial` says whether the logits are those of attacked or of clean images.
        on_epoch: Called after every epoch that is trained here, not for those of a checkpoint.
        checkpoint: Where the training keeps what it needs to go on. If the file is there, the training goes on from it, with
            the same arguments as before. It ends with the same weights, on the CPU bit for bit.

    Returns:
        What every epoch gave, those of the checkpoint included.

    Raises:
        TrainingDivergedError: the loss is not finite.
        DamagedFileError: the file of ``checkpoint`` is not what was written.
        ValueError: ``data`` is empty, or has too few samples in a batch for the model's batch norm. Or ``distillation`` and
            ``adversarial`` are both given. Or the checkpoint is of another training.
    """
    check_map_style("data", data)
    if len(data) == 0:
        raise ValueError("data must have at least one sample to train on, got none")
    if distillation is not None and adversarial is not None:
        raise ValueError("adversarial must be None where there is a distillation, got both")
    device = device_of(model)
    layout = torch.channels_last if recipe.channels_last else torch.preserve_format
    model.to(memory_format=layout).train()
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    order, attacks = generator(seed, "order"), generator(seed, "attacks")
    attacked: LossOf | None = None
    if adversarial is not None:
        attacked = partial(adversarial.loss, recipe=recipe, rng=attacks)
    epochs, steps_per_epoch = recipe.epochs_for(len(data)), batch_count(len(data), recipe.batch_size)
    history: list[EpochResult] = []
    ahead: deque[Tensor] = deque()  # positions of batches that are being read: worker processes run ahead
    orders: deque[Tensor] = (
        deque()
    )  # for each epoch that is being read, the state that its order was drawn from

    def batches() -> Iterator[Batch]:
        for _ in range(len(history), epochs):
            orders.append(order.get_state())
            for batch in shuffled(len(data), recipe.batch_size, order):
                ahead.append(batch.positions)
                yield batch

    def moment() -> Moment:
        # What the next epoch's order is drawn from: worker processes may have drawn it already.
        next_order = orders[0] if orders else order.get_state()
        identity = {
            "recipe": json.loads(json.dumps(asdict(recipe))),
            "seed": seed,
            "samples": len(data),
            "teacher": None if distillation is None else [distillation.weight, distillation.temperature],
            "weights": sum(parameter.numel() for parameter in model.parameters()),
        }
        return Moment(model, optimizer, {"attacks": attacks}, next_order, device, identity)

    with isolated(derive(seed, "global"), device):
        if checkpoint is not None and (kept := _checkpoint.read(checkpoint, moment())) is not None:
            history += [EpochResult(**fields) for fields in kept[0]]
            order.set_state(kept[1])
        # One reader for all epochs, so that worker processes start once.
        reader = read(data, batches(), labels=True, device=device, workers=workers, ids=takes_ids(model))
        for epoch in range(len(history), epochs):
            start = time.perf_counter()
            teaching = Clock(device)
            loss_of = attacked or partial(_loss, recipe=recipe, distillation=distillation, teaching=teaching)
            total = torch.zeros(2, device=device)  # loss and correct answers, summed over the samples
            lr = recipe.lr
            for step in range(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch):
                images, labels = next(reader)
                assert labels is not None
                lr = recipe.lr_at(step, epochs * steps_per_epoch)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                step_total, logits = _step(model, optimizer, images, labels, recipe, loss_of)
                total += step_total
                positions = ahead.popleft()
                if on_batch is not None:
                    on_batch(logits, labels, positions)
            orders.popleft()
            loss, correct = (total / len(data)).tolist()
            if not math.isfinite(loss):
                raise TrainingDivergedError(
                    f"the training loss became {loss} in epoch {epoch + 1} of {epochs} (learning rate "
                    f"{lr:g}, batches of {recipe.batch_size}): lower lr, or look for such values in the data"
                )
            seconds = time.perf_counter() - start
            accuracy = None
            if test is not None:
                accuracy = evaluate(model, test, recipe=recipe, workers=workers)
            result = EpochResult(epoch + 1, epochs, lr, loss, correct, accuracy, seconds, teaching.seconds)
            history.append(result)
            if on_epoch is not None:
                on_epoch(result)
            if checkpoint is not None and epoch + 1 < epochs and checkpoint.due():
                _checkpoint.write(checkpoint, moment(), [asdict(one) for one in history])
    return history


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    loss_of: LossOf,
) -> tuple[Tensor, Tensor]:
    """One optimizer step; returns (summed loss, number correct) and the logits without waiting for the device."""
    try:
        loss, logits = loss_of(model, images, labels)
    except ValueError as error:
        # What torch says when there is one value for each channel of a batch norm.
        if len(images) > 1 or "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            "data and batch_size must be two or more samples for a model with batch norm, which cannot be trained on "
            f"one at a time, got batches of one (batch_size {recipe.batch_size})"
        ) from error
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        correct = (logits.argmax(1) == labels).sum()
        return torch.stack((loss.detach() * len(labels), correct)), logits.detach()


def _loss(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    recipe: Recipe,
    distillation: Distillation | None,
    teaching: Clock,
) -> tuple[Tensor, Tensor]:
    """The mean loss of a batch, and its logits."""
    logits = forward(model, images, recipe)
    if distillation is None:
        return functional.cross_entropy(logits, labels), logits
    with teaching.running(), torch.no_grad(), evaluating(distillation.teacher):
        taught = forward(distillation.teacher, images, recipe)
    return distillation.loss(logits, taught, labels), logits
