"""Training a network by a recipe."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunefuse._seeds import derive, generator, isolated
from prunefuse.data._batches import Batch, Labeled, always_same, batch_count, read, shuffled
from prunefuse.data._drawing import Drawing, split_reading
from prunefuse.data._items import check_map_style
from prunefuse.data._labels import OwnLabels
from prunefuse.errors import TrainingDivergedError as TrainingDivergedError
from prunefuse.tasks._single_label import SingleLabel
from prunefuse.tasks._task import Loss, Metrics, Task, metrics_of, require_scalar
from prunefuse.training import _checkpoint
from prunefuse.training._adversarial import Adversarial
from prunefuse.training._checkpoint import Checkpoint, Moment
from prunefuse.training._clock import Clock
from prunefuse.training._distillation import Distillation
from prunefuse.training._graphs import Graphs, check_device
from prunefuse.training._modes import device_of, evaluating, reading_for, settled
from prunefuse.training._predict import Collate, first_of, forward, measure, predict, task_targets
from prunefuse.training._rates import LearningRates
from prunefuse.training._recipe import Recipe
from prunefuse.training._step import LossOf, Steps, Weight

Teach = Callable[[Any, Tensor], Any]
"""From inputs, and their positions in the data, to the teacher's outputs."""
_KEPT_BYTES = 1 << 28  # of a teacher's outputs that are computed once
_SINGLE_LABEL = SingleLabel()


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
        train_accuracy: The same of the accuracy, in [0, 1]; of another task its first metric, and so for the next two.
        test_accuracy: In [0, 1]. None unless a test set was given.
        seconds: Wall-clock time of the training, without evaluation.
        teacher_seconds: The part of ``seconds`` that the teacher's forward passes took.
        validation: Of the samples held out; None where there are none.
        test_metrics: All metrics on the test set, by name; None unless one was given.
    """

    epoch: int
    epochs: int
    lr: float
    loss: float
    train_accuracy: float
    test_accuracy: float | None
    seconds: float
    teacher_seconds: float
    validation: float | None = None
    test_metrics: Metrics | None = None


def best_epoch(history: Sequence[EpochResult]) -> EpochResult:
    """The epoch whose weights a training leaves: the first of the best on what is held out, else the last.

    >>> from prunefuse.training import EpochResult, best_epoch
    >>> of = lambda epoch, validation: EpochResult(epoch, 3, 0.1, 2.3, 0.1, None, 0.5, 0.0, validation)
    >>> best_epoch([of(1, 0.2), of(2, 0.4), of(3, 0.3)]).epoch
    2
    """
    scores = [one.validation for one in history]
    if not scores or scores[-1] is None:
        return history[-1]
    return max(history, key=lambda one: -math.inf if one.validation is None else _ranked(one.validation))


def _ranked(score: float) -> float:
    return -math.inf if math.isnan(score) else score


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
    on_batch: Callable[[Any, Any, Tensor], None] | None = None,
    on_epoch: Callable[[EpochResult], None] | None = None,
    checkpoint: Checkpoint | None = None,
    task: Task = _SINGLE_LABEL,
    collate: Collate | None = None,
    plain: Any = None,
    lr_factors: Mapping[str, Any] | None = None,
) -> list[EpochResult]:
    """Train ``model`` in place, leave it in training mode, and return what every epoch gave.

    The last epoch is the result, or with ``validation`` the best one.

    >>> model, data = torch.nn.Linear(4, 2), torch.utils.data.TensorDataset(torch.rand(8, 4), torch.arange(8) % 2)
    >>> [epoch.epoch for epoch in prunefuse.training.train(model, data, prunefuse.Recipe(epochs=2))]
    [1, 2]

    Args:
        model: A network, (N, ...) images to (N, C) logits or what the task has, on the device to train on.
        data: A map-style data set with items ``(image, label)``; `Labeled` puts other labels on one. Instead of an image there
            may be a dict, which the model is given by name, or a tuple. Items may be dicts with a label themselves.
        recipe: Epochs, batches, learning rate and so on.
        seed: Fixes order, augmentation and dropout; global generators are left as found. A CPU run with the
            same seed and number of threads is repeatable bit for bit.
        distillation: A teacher on the same device, and how to listen to it. The teacher sees the same augmented images, in
            evaluation mode, and is left in the mode it was in. Where data in memory are not augmented it sees them once.
        adversarial: Train on attacked images; not together with a teacher.
        test: If given, a data set evaluated after every epoch.
        workers: Processes that read and augment data sets that are not in memory.
        on_batch: Called in every step with the logits (B, C) that the step was taken from, detached, and the labels (B,).
            Both are on the model's device. The third argument is the samples' positions (B,) in ``data``, on the CPU.
            `Recorder.update` fits. `Adversarial` says whether the logits are those of attacked or of clean images.
        on_epoch: Called after every epoch that is trained here, not for those of a checkpoint.
        task: What the network learns: the loss, labels and metrics.
        collate: From a list of items to a batch, as a ``DataLoader`` takes it.
        plain: The samples of ``data`` without augmentation, which those held out for validation are read from.
        checkpoint: Where the training keeps what it needs to go on. If the file is there, the training goes on from it, with
            the same arguments as before. It ends with the same weights, on the CPU bit for bit.
        lr_factors: Factors of the learning rate for elements of parameters, by name of the parameter. They are 0 or more
            and broadcast to its shape; all else has 1. What a step adds is scaled, after momentum, moments and weight decay.
            So an element learns as in a parameter group with that learning rate.

    Returns:
        What every epoch gave, those of the checkpoint included.

    Raises:
        TrainingDivergedError: the loss is not finite.
        DamagedFileError: the file of ``checkpoint`` is not what was written.
        ValueError: ``data`` is empty, or has too few samples in a batch for the model's batch norm. Or ``distillation`` and
            ``adversarial`` are both given. Or the checkpoint is of another training. Or the task has no such loss.
    """
    check_map_style("data", data)
    if len(data) == 0:
        raise ValueError("data must have at least one sample to train on, got none")
    if distillation is not None and adversarial is not None:
        raise ValueError("adversarial must be None where there is a distillation, got both")
    if adversarial is not None and type(task) is not SingleLabel:
        raise ValueError(f"adversarial must be None with another task than classification, got {task!r}")
    targets = task_targets(task)
    how = _loss_of(task, recipe, data, targets, device_of(model))
    rows, held = _split(len(data), recipe, seed)
    device = device_of(model)
    check_device(recipe, device)
    given, recipe = recipe, settled(model, recipe)
    layout = torch.channels_last if recipe.channels_last else torch.preserve_format
    model.to(memory_format=layout).train()
    rates = None if lr_factors is None else LearningRates(model, lr_factors)
    order, attacks = generator(seed, "order"), generator(seed, "attacks")
    loss_of: LossOf = partial(_loss, recipe=recipe, distillation=distillation, task=task, how=how)
    if adversarial is not None:
        attack = partial(adversarial.loss, recipe=recipe, rng=attacks)

        def loss_of(
            model: nn.Module, inputs: Any, labels: Any, taught: Any, weight: Weight
        ) -> tuple[Tensor, Any]:
            return attack(model, inputs, labels)

    steps = Steps(model, recipe, loss_of, task, rates)
    samples = len(rows)
    epochs, steps_per_epoch = recipe.epochs_for(samples), batch_count(samples, recipe.batch_size)
    best: dict[str, Tensor] = {}
    history: list[EpochResult] = []
    ahead: deque[Tensor] = deque()  # positions of batches that are being read: worker processes run ahead
    orders: deque[Tensor] = (
        deque()
    )  # for each epoch that is being read, the state that its order was drawn from

    def batches() -> Iterator[Batch]:
        for _ in range(len(history), epochs):
            orders.append(order.get_state())
            for batch in shuffled(samples, recipe.batch_size, order):
                positions = rows[batch.positions] if len(held) else batch.positions
                ahead.append(positions)
                yield Batch(positions, batch.seed)

    def moment() -> Moment:
        # What the next epoch's order is drawn from: worker processes may have drawn it already.
        next_order = orders[0] if orders else order.get_state()
        identity = {
            "recipe": json.loads(json.dumps(asdict(recipe))),
            "seed": seed,
            "samples": len(data),
            "teacher": None if distillation is None else _teaching(distillation),
            "weights": sum(parameter.numel() for parameter in model.parameters()),
            "lr_factors": None if rates is None else rates.digest(),
        }
        return Moment(model, steps.optimizer, {"attacks": attacks}, next_order, device, identity, best)

    with isolated(derive(seed, "global"), device):
        if checkpoint is not None and (kept := _checkpoint.read(checkpoint, moment())) is not None:
            history += map(_restored, kept[0])
            order.set_state(kept[1])
        # One reader for all epochs, so that worker processes start once.
        reading = reading_for(model, targets, collate)
        drawing = split_reading(data, device, reading) if recipe.cuda_graphs else None
        do: _AsRead | _Recorded
        if drawing is not None and adversarial is None:
            do = _Recorded(steps, drawing, batches(), ahead, device)
        else:
            read_now = read(data, batches(), labels=True, device=device, workers=workers, reading=reading)
            do = _AsRead(steps, read_now, ahead)
            if recipe.cuda_graphs:
                do.reason = (
                    "attacks draw on the host" if adversarial else "batches are not made on the device"
                )
        teach: Teach | None = None
        for epoch in range(len(history), epochs):
            if _stops(history, recipe.patience):
                break
            start = time.perf_counter()
            teaching = Clock(device)
            if distillation is not None and teach is None:
                with teaching.running():
                    teach = _teach(distillation.teacher, data, given, task, collate, workers)
            total, measured = torch.zeros((), device=device), None  # summed over the samples
            lr = recipe.lr
            for step in range(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch):
                lr, done = recipe.lr_at(step, epochs * steps_per_epoch), step / (epochs * steps_per_epoch)
                weight = None if distillation is None else distillation.weight_at(done)
                positions, step_loss, outputs, labels, part = do(lr, weight, teach, teaching)
                total += step_loss * len(positions)
                measured = part if measured is None else measured + part
                if on_batch is not None:
                    on_batch(outputs, labels, positions)
            orders.popleft()
            if do.reason:
                warnings.warn(f"cuda_graphs: steps run one operator at a time, as {do.reason}", stacklevel=2)
                do.reason = ""
            loss = float(total / samples)
            if not math.isfinite(loss):
                raise TrainingDivergedError(
                    f"the training loss became {loss} in epoch {epoch + 1} of {epochs} (learning rate "
                    f"{lr:g}, batches of {recipe.batch_size}): lower lr, or look for such values in the data"
                )
            assert measured is not None
            correct = float(measured) / samples if steps.sums else first_of(metrics_of(task, measured))
            validated = None
            if len(held):
                asked: dict[str, Any] = {"recipe": recipe, "workers": workers, "task": task}
                asked |= {"collate": collate, "indices": held}
                validated = first_of(measure(model, data if plain is None else plain, **asked))
            seconds = time.perf_counter() - start
            accuracy = tested = None
            if test is not None:
                tested = measure(model, test, recipe=recipe, workers=workers, task=task, collate=collate)
                accuracy = first_of(tested)
            seen = (correct, accuracy, seconds, teaching.seconds, validated, tested)
            result = EpochResult(epoch + 1, epochs, lr, loss, *seen)
            history.append(result)
            if validated is not None and best_epoch(history) is result:
                best.update({name: value.detach().clone() for name, value in model.state_dict().items()})
            if on_epoch is not None:
                on_epoch(result)
            if checkpoint is not None and epoch + 1 < epochs and checkpoint.due():
                _checkpoint.write(checkpoint, moment(), [asdict(one) for one in history])
    if best:
        model.load_state_dict(best)
    return history


class _AsRead:
    """Does a step on each batch that is read; says positions, loss, outputs, labels and what is measured."""

    def __init__(self, steps: Steps, reader: Iterator[tuple[Any, Any]], ahead: deque[Tensor]) -> None:
        self._steps, self._reader, self._ahead = steps, reader, ahead
        self.reason = ""

    def __call__(
        self, lr: float, weight: float | None, teach: Teach | None, teaching: Clock
    ) -> tuple[Tensor, Tensor, Any, Any, Tensor]:
        inputs, labels = next(self._reader)
        positions, taught = self._ahead.popleft(), None
        if teach is not None:
            with teaching.running():
                taught = teach(inputs, positions)
        loss, outputs = self._steps(inputs, labels, taught, lr, weight)
        return positions, loss, outputs, labels, self._steps.measure(outputs, labels)


class _Recorded:
    """The same where whole steps are recorded, from the draws of the host on; the teacher's time is in that of the step."""

    def __init__(
        self,
        steps: Steps,
        drawing: Drawing,
        batches: Iterator[Batch],
        ahead: deque[Tensor],
        device: torch.device,
    ) -> None:
        self._steps, self._drawing, self._batches, self._ahead = steps, drawing, batches, ahead
        self._teach: Teach | None = None
        self._graphs = Graphs(self._work, device)

    @property
    def reason(self) -> str:
        return self._graphs.reason

    @reason.setter
    def reason(self, value: str) -> None:
        self._graphs.reason = value

    def _work(self, lr: Tensor, weight: Tensor, positions: Tensor, *drawn: Tensor) -> tuple[Any, ...]:
        inputs, labels = self._drawing.make(*drawn)
        taught = None if self._teach is None else self._teach(inputs, positions)
        loss, outputs = self._steps(inputs, labels, taught, lr, weight)
        return loss, outputs, labels, self._steps.measure(outputs, labels)

    def __call__(
        self, lr: float, weight: float | None, teach: Teach | None, teaching: Clock
    ) -> tuple[Tensor, Tensor, Any, Any, Tensor]:
        self._teach = teach
        drawn = self._drawing.draw(next(self._batches))
        positions = self._ahead.popleft()
        loss, outputs, labels, part = self._graphs((lr, weight or 0.0), (positions, *drawn))
        return positions, loss, outputs, labels, part


def _restored(fields: Mapping[str, Any]) -> EpochResult:
    """What an epoch gave, from a checkpoint, where tuples are lists."""
    tested = fields.get("test_metrics") or {}
    plain = {name: tuple(one) if isinstance(one, list) else one for name, one in tested.items()}
    return EpochResult(**{**fields, "test_metrics": plain or None})


def _split(samples: int, recipe: Recipe, seed: int) -> tuple[Tensor, Tensor]:
    """Positions to train on, and those held out."""
    held = recipe.held_out(samples)
    if recipe.validation and samples < 2:
        raise ValueError(f"data must have two samples or more, of which one is held out, got {samples}")
    order = (
        torch.randperm(samples, generator=generator(seed, "validation")) if held else torch.arange(samples)
    )
    return order[held:].sort().values, order[:held].sort().values


def _teaching(distillation: Distillation) -> list[Any]:
    """How a teacher is listened to, as checkpoints have it; those of before know no annealing."""
    told: list[Any] = [distillation.weight, distillation.temperature]
    return told if distillation.annealing == "none" else [*told, distillation.annealing]


def _stops(history: Sequence[EpochResult], patience: int) -> bool:
    """Whether none of the last epochs was the best one."""
    return bool(patience and history) and len(history) - best_epoch(history).epoch >= patience


def check_loss(task: Task, recipe: Recipe) -> None:
    """Raise ``ValueError``, naming the field of the recipe, for what a task has not."""
    kind = type(task).__name__
    if recipe.loss and recipe.loss not in task.losses:
        raise ValueError(
            f"loss must be one of {', '.join(task.losses) or 'none'} of {kind}, got {recipe.loss!r}"
        )
    if (recipe.class_weights or recipe.balance_classes) and not task.class_weights:
        raise ValueError(f"class_weights must be left out with {kind}, which has none, got some")
    if recipe.label_smoothing and not task.label_smoothing:
        raise ValueError(f"label_smoothing must be 0 with {kind}, got {recipe.label_smoothing}")


def _loss_of(task: Task, recipe: Recipe, data: Any, targets: Any, device: torch.device) -> Loss:
    check_loss(task, recipe)
    weights = None
    if recipe.class_weights:
        weights = torch.tensor(recipe.class_weights, device=device)
    elif recipe.balance_classes:
        given = data.labels if isinstance(data, Labeled) else OwnLabels(data, targets)(range(len(data)))
        labels = given if isinstance(given, Tensor) else targets.targets(list(given))
        width = int(labels.max()) + 1 if not labels.is_floating_point() else labels.shape[-1]
        counts = task.counts(labels, width)
        if counts is None:
            raise ValueError(f"balance_classes must be False with {type(task).__name__}, which counts none")
        counts = counts.double()
        weights = (
            torch.where(counts > 0, counts.sum() / (len(counts) * counts.clamp(min=1)), 1.0)
            .float()
            .to(device)
        )
    return Loss(recipe.loss or None, weights, recipe.label_smoothing)


def _loss(
    model: nn.Module,
    inputs: Any,
    labels: Any,
    taught: Any,
    weight: Weight,
    *,
    recipe: Recipe,
    distillation: Distillation | None,
    task: Task,
    how: Loss,
) -> tuple[Tensor, Any]:
    """The mean loss of a batch, and its outputs."""
    outputs = forward(model, inputs, recipe, task)
    how = _widened(how, task, outputs, counted=recipe.balance_classes)
    if distillation is None:
        return require_scalar(task, task.loss(outputs, labels, how)), outputs
    return distillation.mixed(outputs, taught, labels, task, how, 1.0 if weight is None else weight), outputs


def most_taught_once(data: Any, collate: Collate | None, of_one: Callable[[], Any]) -> int:
    """Of how many samples a teacher's outputs are computed once; 0 where samples differ each time they are read.

    Args:
        data: What is trained on.
        collate: As of `train`.
        of_one: Gives outputs of one sample; asked only where samples are the same.
    """
    outputs = of_one() if collate is None and always_same(data) else None
    return _KEPT_BYTES // max(1, outputs.nbytes) if isinstance(outputs, Tensor) else 0


def _teach(
    teacher: nn.Module, data: Any, recipe: Recipe, task: Task, collate: Collate | None, workers: int
) -> Teach:
    """What the teacher says of batches: computed once where samples are the same each time they are read."""
    recipe = settled(teacher, recipe)
    of_one = partial(predict, teacher, data, indices=[0], recipe=recipe, task=task)
    if len(data) <= most_taught_once(data, collate, of_one):
        known: Tensor = predict(teacher, data, recipe=recipe, workers=workers, task=task)
        return lambda _, positions: known[positions.to(known.device, non_blocking=True)]

    def teach(inputs: Any, _: Tensor) -> Any:
        with torch.no_grad(), evaluating(teacher):
            return forward(teacher, inputs, recipe, task)

    return teach


def _widened(how: Loss, task: Task, outputs: Any, *, counted: bool) -> Loss:
    """The loss with a weight for each class that the network has; where they are ``counted``, the last may have no labels."""
    if how.class_weights is None or (missing := task.width(outputs) - len(how.class_weights)) == 0:
        return how
    if missing < 0 or not counted:
        raise ValueError(
            f"class_weights must be one for each of {task.width(outputs)} classes, got {len(how.class_weights)}"
        )
    ones = torch.ones(missing, device=how.class_weights.device)
    return replace(how, class_weights=torch.cat((how.class_weights, ones)))
