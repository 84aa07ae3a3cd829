"""Metrics of class predictions, from sums over batches."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from prunefuse.tasks._task import Loss, Metrics


def mean_of(values: Tensor) -> float:
    """The mean; 0 of nothing."""
    return float(values.mean()) if len(values) else 0.0


BINS = 15
"""Of confidence, equally wide, for the expected calibration error."""


def cross_entropy_of(outputs: Tensor, targets: Tensor, how: Loss, ignored: int) -> Tensor:
    """The mean cross-entropy of the places that count; 0 where none does. Nothing waits for a device.

    Args:
        outputs: (N, C, ...) logits.
        targets: (N, ...) class indices.
        how: What the recipe says.
        ignored: The label of places that do not count.
    """
    some = (targets != ignored).any()
    loss = functional.cross_entropy(
        outputs,
        targets.where(some, 0),
        weight=how.class_weights,
        label_smoothing=how.label_smoothing,
        ignore_index=ignored,
    )
    return loss * some


def class_sums(outputs: Tensor, targets: Tensor, ignored: int | None = None) -> Tensor:
    """(3 * C + 3 * BINS + 1,) float64 sums: of each class those found, those predicted and those there are; of each bin of
    confidence those in it, those right and the confidence; and how many labels are no class.

    Args:
        outputs: (N, C, ...) logits.
        targets: (N, ...) class indices.
        ignored: The label of places that do not count.
    """
    classes = outputs.shape[1]
    highest, predicted = outputs.max(1)
    confidence = (highest - outputs.logsumexp(1)).exp().double().flatten()
    predicted, labels = predicted.flatten(), targets.flatten()
    inside = (labels >= 0) & (labels < classes)
    wrong = ~inside if ignored is None else ~inside & (labels != ignored)
    right = (predicted == labels).double()
    bins = (confidence * BINS).long().clamp_(0, BINS - 1) + 3 * classes
    labels = labels.clamp(0, classes - 1)
    where = torch.cat((labels, predicted + classes, labels + 2 * classes, bins, bins + BINS, bins + 2 * BINS))
    counted = inside.double()
    values = torch.cat((right, counted, counted, counted, right, confidence * counted))
    sums = torch.zeros(3 * classes + 3 * BINS + 1, dtype=torch.float64, device=outputs.device)
    sums.index_add_(0, where, values)
    sums[-1] = wrong.sum()
    return sums


def class_metrics(sums: Tensor, first: str = "accuracy") -> Metrics:
    """Metrics of such sums; ``first`` comes first.

    ``accuracy``; ``balanced_accuracy``, the mean recall of the classes that there are; ``f1``, the mean of theirs (macro);
    ``mean_iou``, likewise; ``ece``, the expected calibration error (Guo et al. 2017); and ``recall`` and ``iou`` of each class,
    NaN where there is none.

    Raises:
        ValueError: labels are no classes.
    """
    classes = (len(sums) - 3 * BINS - 1) // 3
    host = sums.cpu()
    found, predicted, there = host[: 3 * classes].view(3, classes)
    _, right, confidence = host[3 * classes : -1].view(3, BINS)
    if (outside := int(host[-1])) > 0:
        raise ValueError(
            f"data must have labels in [0, {classes}), as the model has {classes} outputs, got {outside} outside"
        )
    known, samples = there > 0, float(there.sum())
    recall = found / there
    f1 = 2 * found / (predicted + there)
    iou = found / (predicted + there - found)
    metrics: Metrics = {
        "accuracy": float(found.sum()) / max(samples, 1.0),
        "balanced_accuracy": mean_of(recall[known]),
        "f1": mean_of(f1[known]),
        "mean_iou": mean_of(iou[known]),
        "ece": float((right - confidence).abs().sum()) / max(samples, 1.0),
        "recall": tuple(recall.tolist()),
        "iou": tuple(iou.where(known, torch.nan).tolist()),
    }
    return {first: metrics.pop(first), **metrics}
