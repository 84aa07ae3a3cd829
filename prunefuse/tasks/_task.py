"""What the loop, training and scoring ask of a task, with what most tasks answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunefuse.ops.arrays import as_tensor
from prunefuse.ops.integers import shown

Metrics = dict[str, float | tuple[float, ...]]
"""By name; a tuple has one number for each class. The first one is what is told where one number is told."""


@dataclass(frozen=True)
class Loss:
    """What a recipe says of the loss.

    >>> from prunefuse.tasks import Loss
    >>> Loss(label_smoothing=0.1).name is None
    True

    Attributes:
        name: One of the task's ``losses``; None is the first.
        class_weights: (C,), or None.
        label_smoothing: Part of a label that is spread over all classes.
    """

    name: str | None = None
    class_weights: Tensor | None = None
    label_smoothing: float = 0.0


class Task:
    """What a network learns. A task of one's own is a subclass that says what differs from this one.

    >>> from prunefuse.tasks import Task
    >>> class Ranking(Task):
    ...     strategies = ("spread",)
    ...     def loss(self, outputs, targets, how): return (outputs - targets).square().mean()
    ...     def utilities(self, outputs, strategy, inputs): return outputs.std(1)
    ...     def measure(self, outputs, targets): return torch.stack([self.loss(outputs, targets, None), torch.tensor(1.0)])
    ...     def metrics(self, measured): return {"error": float(measured[0] / measured[1])}
    >>> Ranking().output({"logits": torch.zeros(5, 3)}).shape
    torch.Size([5, 3])

    N is the number of samples of a batch. Batches come one after another, so that nothing has the outputs of a whole pool.

    Attributes:
        strategies: Names that `utilities` knows, beside those that look at no outputs, such as random and k_center.
        losses: Names that a recipe may choose from, the first being what is taken by default.
        class_weights: Whether a recipe may weigh classes.
        label_smoothing: Whether a recipe may smooth labels.
    """

    strategies: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()
    class_weights: bool = False
    label_smoothing: bool = False

    def output(self, given: Any) -> Any:
        """What a model returned, as the other functions take it: float32, by default of one tensor.

        That is the tensor itself, the first of a tuple, ``logits`` or ``out`` of a mapping, or the attribute ``logits``.

        Raises:
            TypeError: There is none.
        """
        return logits_of(given).float()

    def width(self, outputs: Any) -> int:
        """How many numbers the network gives where it answers once: classes, labels, or numbers to predict.

        Raises:
            ValueError: The outputs are not such as this task has.
        """
        if not isinstance(outputs, Tensor) or outputs.ndim < 2:
            shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ValueError(f"factory must make a model with outputs (N, C, ...), got {shape}")
        return int(outputs.shape[1])

    def label(self, argument: str, sample: int, value: Any, *, width: int | None = None) -> Any:
        """The label of a sample, checked, in its one form; with ``width`` it is an answer to a question, and looked at closely.

        Raises:
            TypeError, ValueError: It is none; names the argument and the sample.
        """
        return self.numbers(argument, sample, value).float()

    def stored(self, argument: str, labels: Tensor, samples: Tensor) -> Tensor:
        """Labels (N, ...) that lie in one tensor, likewise, as a batch. Nothing waits for a device."""
        return labels.float()

    def targets(self, labels: Sequence[Any]) -> Any:
        """Labels in that form, as a batch."""
        return torch.stack(list(labels))

    def loss(self, outputs: Any, targets: Any, how: Loss) -> Tensor:
        """The mean loss of a batch, a scalar."""
        raise NotImplementedError(f"{type(self).__name__} must define loss")

    def divergence(self, outputs: Any, taught: Any, targets: Any, temperature: float) -> Tensor:
        """How far outputs are from those of a teacher, both divided by ``temperature``: a scalar, mean over a batch.

        By default half of the mean squared difference.
        """
        half: Tensor = (outputs - taught).div(temperature).square().mean() / 2
        return half

    def utilities(self, outputs: Any, strategy: str, inputs: Any) -> Tensor:
        """(N,), higher = label first, NaN = never, of outputs without labels. ``inputs`` are what the model was given."""
        raise NotImplementedError(f"{type(self).__name__} must define utilities")

    def measure(self, outputs: Any, targets: Any) -> Tensor:
        """(k,): what `metrics` needs of a batch. It is added up over batches."""
        raise NotImplementedError(f"{type(self).__name__} must define measure")

    def metrics(self, measured: Tensor) -> Metrics:
        """How good outputs are, of the sum of what `measure` gave. Higher is better for the first."""
        raise NotImplementedError(f"{type(self).__name__} must define metrics")

    def hits(self, outputs: Any, targets: Any) -> Tensor | None:
        """The first metric, summed over the samples of a batch, where that is cheaper than `measure`: training tells it."""
        return None

    def features(self, features: Tensor, inputs: Any) -> Tensor:
        """(N, d) of what enters the last layer, (N, ...); by default as it is, in one row."""
        return features.reshape(len(features), -1)

    def counts(self, labels: Any, width: int) -> Tensor | None:
        """(C,) how often each class occurs, for class weights, of labels as `targets` gives them; None if that is not known."""
        return None

    def text(self, label: Any, classes: Sequence[str] | None) -> str:
        """A label as people read it, for tables; by default its numbers, where they are few."""
        tensor = torch.as_tensor(label)
        if tensor.numel() > 64:
            return f"{tuple(tensor.shape)}"
        return ";".join(f"{value:g}" for value in tensor.flatten().tolist())

    def numbers(self, argument: str, sample: int, value: Any) -> Tensor:
        """A label that is made of numbers, as a tensor.

        Raises:
            TypeError: It is not; names the argument and the sample.
        """
        try:
            if hasattr(value, "__array_interface__"):  # an image of Pillow, such as a mask
                value = np.asarray(value)
            found: Tensor = (
                as_tensor("label", value) if hasattr(value, "__array__") else torch.as_tensor(value)
            )
        except (TypeError, ValueError, RuntimeError):
            kind = type(value).__name__
            got = shown(value) if isinstance(value, tuple | list) else kind
            raise TypeError(
                f"{argument} must have a label of numbers for sample {sample}, got {got}"
            ) from None
        return found

    def described(self) -> str:
        """What the task is, with its options, to compare with when a run goes on."""
        return repr(self) if type(self).__repr__ is not object.__repr__ else type(self).__qualname__


def metrics_of(task: Task, measured: Any) -> Metrics:
    """The metrics of a task, from the sum of what it measured, as numbers and tuples of numbers.

    Raises:
        TypeError: it gave something else; names the task's function.
    """
    given: Any = task.metrics(measured)
    kind = type(task).__name__
    expected = f"{kind}.metrics must give numbers, or one for each class, by name"
    if not isinstance(given, Mapping) or not given:
        got = "nothing" if isinstance(given, Mapping) else type(given).__name__
        raise TypeError(f"{expected}, got {got}")
    found: Metrics = {}
    for name, value in given.items():
        try:
            several = isinstance(value, tuple | list) or getattr(value, "ndim", 0) == 1
            found[str(name)] = tuple(map(float, value)) if several else float(value)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"{expected}, got {type(value).__name__} for {name}") from None
    return found


def require_measured(task: Task, given: Any) -> Tensor:
    """What a task measured of a batch; ``TypeError``, naming its function, unless it is a tensor, which can be added up."""
    if not isinstance(given, Tensor):
        got = type(given).__name__
        raise TypeError(f"{type(task).__name__}.measure must give a tensor, got {got}")
    return given


def require_scalar(task: Task, given: Any) -> Tensor:
    """The loss of a task; ``TypeError``, naming its function, unless it is a tensor of one number."""
    if not isinstance(given, Tensor) or given.numel() != 1:
        got = f"shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise TypeError(f"{type(task).__name__}.loss must give a tensor of one number, got {got}")
    return given


def logits_of(given: Any) -> Tensor:
    """The one tensor of what a model returned."""
    found = getattr(given, "logits", None)
    if isinstance(given, Tensor):
        return given
    if found is None and isinstance(given, Mapping):
        found = next((given[name] for name in ("logits", "out") if name in given), None)
        if found is None and len(given) == 1:
            found = next(iter(given.values()))
    elif found is None and isinstance(given, tuple | list) and given:
        found = given[0]
    if not isinstance(found, Tensor):
        raise TypeError(
            "model must return a tensor of logits, also first in a tuple, or as logits of a mapping or object, "
            f"got {type(given).__name__}"
        )
    return found


def require_axes(outputs: Any, axes: int, what: str) -> Tensor:
    """The outputs; ``ValueError``, which says ``what`` they must be, unless they are a tensor with so many axes."""
    if not isinstance(outputs, Tensor) or outputs.ndim != axes:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(f"factory must make a model with {what}, got outputs of shape {shape}")
    return outputs


def require_classes(argument: str, sample: int, labels: Tensor, width: int, ignored: int) -> None:
    """Raise ``ValueError``, naming argument and sample, unless labels are in [0, width) or ``ignored``."""
    outside = (labels != ignored) & ((labels < 0) | (labels >= width))
    if bool(outside.any()):
        raise ValueError(
            f"{argument} must have classes in [0, {width}) or {ignored} for sample {sample}, "
            f"got {shown(labels[outside][0])}"
        )


def mask_of(inputs: Any, shape: tuple[int, int], device: torch.device) -> Tensor:
    """(N, T) which tokens count: the ``attention_mask`` of what a model was given, else all."""
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if isinstance(mask, Tensor) and tuple(mask.shape) == shape:
        return mask.to(device) != 0
    return torch.ones(shape, dtype=torch.bool, device=device)
