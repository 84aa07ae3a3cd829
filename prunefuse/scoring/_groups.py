"""Scores of samples with many parts (labels, pixels, boxes): every part scored from one read, then reduced to one utility."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from prunefuse import ops
from prunefuse.ops._groups import REDUCTIONS
from prunefuse.ops.arrays import as_tensor, like, require_number
from prunefuse.scoring._scores import LOGIT_STRATEGIES, checked_logits, checked_names

PartReduction = Literal["mean", "max", "sum", "share", "count"]


def score_labels(
    logits: Any,
    strategy: str | tuple[str, ...] = "entropy",
    *,
    mask: Any = None,
    reduction: PartReduction = "mean",
    threshold: float | None = None,
    probabilities: bool = False,
    temperature: float = 1.0,
) -> Any:
    """Utilities of samples with several independent labels each, higher = label first.

    >>> logits = torch.tensor([[0.0, 0.0, 9.0], [9.0, 9.0, -9.0]])
    >>> prunefuse.score_labels(logits, "margin", reduction="sum").round(decimals=2).tolist()
    [2.0, 0.0]

    A label with logit x has the probability p = 1 / (1 + exp(−x / T)). It is scored as the two classes p and 1 − p:

    - ``"least_confidence"``: min(p, 1 − p).
    - ``"margin"``: 1 − \\|2p − 1\\|.
    - ``"entropy"``: −p ln p − (1 − p) ln(1 − p), in nats.
    - ``"energy"``: −T ln(1 + exp(x / T)). Its sum over labels is the negative joint energy.
    - ``"logit_margin"``: −\\|x\\|.

    Args:
        logits: (N, L), float16, bfloat16, float32 or float64, with any strides. A torch tensor (CPU or CUDA), a NumPy array
            or anything with DLPack. It is read once and never written.
        strategy: One name, or a tuple of names for several scores from that one read.
        mask: (N, L), bool or integer: which labels count. Others are ignored, whatever their logits hold. By default all
            count.
        reduction: ``"mean"``, ``"max"`` or ``"sum"`` over the labels that count. ``"share"`` and ``"count"`` say of how many
            the utility is above the threshold.
        threshold: Of ``"share"`` and ``"count"``, in the units of the strategy. It must be given there, and nowhere else.
        probabilities: The values are probabilities, not logits. One outside of [0, 1] counts as NaN.
        temperature: Divides the logits (for probabilities: the logarithms of p and 1 − p); positive.

    Returns:
        Utilities (N,), float64 for float64 input and float32 otherwise; a tensor on the input's device, or NumPy for NumPy.
        For a tuple of strategies, a dict by name. NaN where no label counts, or one that counts is NaN. Infinite logits are
        sure labels.

    Raises:
        TypeError: As `score`; or a mask that is neither bool nor integer.
        ValueError: As `score`; logits not of rank 2; a mask of another shape; an unknown reduction; a threshold that is
            missing, or not asked for.

    References:
        Wang et al. 2021, *Can multi-label classification networks know what they don't know?* (joint energy).
    """
    names = checked_names("strategy", strategy, LOGIT_STRATEGIES)
    x = checked_logits(logits, temperature)
    _require_shape("logits", x, ("N", "L"))
    limit = _checked_reduction(reduction, threshold)
    counts = _checked_mask(mask, x.shape, x.device)
    table = ops.score_groups(
        x.unsqueeze(2), None, counts, *_numbers(names, reduction, limit), torch.nan, True, bool(probabilities),
        float(temperature),
    )  # fmt: skip
    return _answer(logits, strategy, names, table)


def score_pixels(
    logits: Any,
    strategy: str | tuple[str, ...] = "entropy",
    *,
    mask: Any = None,
    reduction: PartReduction = "mean",
    threshold: float | None = None,
    independent: bool = False,
    probabilities: bool = False,
    temperature: float = 1.0,
) -> Any:
    """Utilities of images from the logits of their pixels, as segmentation gives them, higher = label first.

    >>> logits = torch.zeros(1, 2, 4, 4)  # two classes, all pixels undecided but for a quarter
    >>> logits[0, 1, :2, :2] = 9
    >>> prunefuse.score_pixels(logits, "margin", reduction="share", threshold=0.5).tolist()
    [0.75]

    Every pixel is scored as `score` scores a row, and the utilities of an image's pixels are reduced to one.

    Args:
        logits: (N, C, H, W), or (N, C, ...) with any number of further axes. Dtypes, arrays and what counts as NaN are those
            of `score`. They are read once, with the classes where they lie. They are copied first only where the strides of
            H and W do not join, as those of a crop.
        strategy: A name of `score`, or a tuple of names for several scores from that one read.
        mask: (N, H, W), bool or integer: which pixels count. Others, such as padding, are ignored, whatever their logits
            hold. By default all count.
        reduction: ``"mean"``, ``"max"`` or ``"sum"`` over the pixels that count. ``"share"`` and ``"count"`` say of how many
            the utility is above the threshold.
        threshold: Of ``"share"`` and ``"count"``, in the units of the strategy. It must be given there, and nowhere else.
        independent: Every class of a pixel is a label of its own, scored as `score_labels` does, and all are reduced
            together. Networks with one logit for the foreground need it.
        probabilities: As in `score`, or as in `score_labels` for independent classes.
        temperature: As in `score`.

    Returns:
        Utilities (N,) as `score` returns them. NaN for an image in which no pixel counts, or one that counts is NaN.

    Raises:
        TypeError: As `score`; or a mask that is neither bool nor integer.
        ValueError: As `score`; logits of rank below 3; a mask of another shape; an unknown reduction; a threshold that is
            missing, or not asked for.
        RuntimeError: There is no class.
    """
    names = checked_names("strategy", strategy, LOGIT_STRATEGIES)
    x = checked_logits(logits, temperature)
    if x.dim() < 3:
        raise ValueError(f"logits must have shape (N, C, H, W), got {tuple(x.shape)}")
    limit = _checked_reduction(reduction, threshold)
    counts = _checked_mask(mask, (x.shape[0], *x.shape[2:]), x.device)
    if counts is not None:
        counts = counts.flatten(1)
    pixels = x.flatten(2)  # (N, C, P)
    numbers = _numbers(names, reduction, limit)
    if not independent:
        table = ops.score_groups(
            pixels.transpose(1, 2), None, counts, *numbers, torch.nan, False, bool(probabilities), float(temperature)
        )  # fmt: skip
        return _answer(logits, strategy, names, table)
    if pixels.shape[1] == 0:
        raise RuntimeError(f"logits must have at least one class, got shape {tuple(x.shape)}")
    planes = pixels.flatten(0, 1).unsqueeze(2)  # (N C, P, 1)
    table = ops.score_groups(
        planes, None, counts, *numbers, torch.nan, True, bool(probabilities), float(temperature)
    )
    # As many pixels of each class count: the mean of the classes' means is that of all.
    classes = table.view(len(names), *pixels.shape[:2])  # (K, N, C)
    if reduction == "max":
        return _answer(logits, strategy, names, classes.amax(2))
    return _answer(
        logits, strategy, names, classes.mean(2) if reduction in ("mean", "share") else classes.sum(2)
    )


def score_boxes(
    logits: Any,
    offsets: Any = None,
    strategy: str | tuple[str, ...] = "entropy",
    *,
    reduction: PartReduction = "max",
    threshold: float | None = None,
    empty: float = 0.0,
    independent: bool = False,
    probabilities: bool = False,
    temperature: float = 1.0,
) -> Any:
    """Utilities of images from the classes of the boxes found in them, as detection gives them, higher = label first.

    >>> boxes = torch.tensor([[9.0, 0.0], [1.0, 1.0], [9.0, 0.0]])
    >>> prunefuse.score_boxes(boxes, [0, 2, 2, 3], "margin").round(decimals=3).tolist()  # 2, 0 and 1 boxes
    [1.0, 0.0, 0.0]

    Every box is scored as `score` scores a row, and the utilities of an image's boxes are reduced to one.

    Args:
        logits: (B, C), the boxes of all images, one image after the other; or a list with a tensor (b, C) for every image.
            Dtypes, arrays and what counts as NaN are those of `score`. An array is read once, a list is joined first.
        offsets: (N + 1,), integers: image i has the boxes from ``offsets[i]`` up to ``offsets[i + 1]``. They rise from 0 to
            B. None for a list. On a GPU they are not looked at, and held to that range.
        strategy: A name of `score`, or a tuple of names for several scores from that one read.
        reduction: ``"max"``, ``"mean"`` or ``"sum"`` over the boxes of an image. ``"share"`` and ``"count"`` say of how many
            the utility is above the threshold.
        threshold: Of ``"share"`` and ``"count"``, in the units of the strategy. It must be given there, and nowhere else.
        empty: The utility of images without boxes. At 0 there is nothing in them to be unsure of. ``math.inf`` has them
            labeled first, ``math.nan`` never. Energies and logit margins go below 0, so choose one for these.
        independent: Every class of a box is a label of its own, scored as `score_labels` does, and all are reduced together.
            Detectors trained with a sigmoid for each class need it.
        probabilities: As in `score`, or as in `score_labels` for independent classes.
        temperature: As in `score`.

    Returns:
        Utilities (N,) as `score` returns them, ``empty`` for images without boxes. NaN where a box of the image is NaN.

    Raises:
        TypeError: As `score`; or offsets that are not integers.
        ValueError: As `score`; logits not of rank 2; an unknown reduction; a threshold that is missing, or not asked for.
            Or offsets that are missing, or given beside a list; an empty list, or one with different classes.
        RuntimeError: Offsets do not rise from 0 to B. There is no class.
    """
    names = checked_names("strategy", strategy, LOGIT_STRATEGIES)
    limit = _checked_reduction(reduction, threshold)
    first = logits
    if isinstance(logits, (list, tuple)):
        if offsets is not None:
            raise ValueError("offsets must be None where logits are a list, got both")
        logits, offsets = _joined(logits, temperature)
        first = first[0]
    x = checked_logits(logits, temperature)
    _require_shape("logits", x, ("B", "C"))
    if offsets is None:
        raise ValueError("offsets must be given where logits are one array, got None")
    given = as_tensor("offsets", np.asarray(offsets) if isinstance(offsets, (list, tuple)) else offsets)
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise TypeError(f"offsets must be integers, got {given.dtype}")
    borders = given.to(x.device, torch.int64).contiguous()
    if independent:
        borders, x = borders * x.shape[1], x.reshape(-1, 1)
    table = ops.score_groups(
        x, borders, None, *_numbers(names, reduction, limit), require_number("empty", empty), bool(independent),
        bool(probabilities), float(temperature),
    )  # fmt: skip
    return _answer(first, strategy, names, table)


def _joined(parts: Sequence[Any], temperature: float) -> tuple[Tensor, Tensor]:
    """The images' boxes as one tensor, and where each image's begin and end."""
    if not parts:
        raise ValueError("logits must have a tensor for each image, got an empty list")
    tensors = [checked_logits(part, temperature, f"logits[{i}]") for i, part in enumerate(parts)]
    for i, tensor in enumerate(tensors):
        _require_shape(f"logits[{i}]", tensor, ("b", "C"))
        same = (tensor.shape[1], tensor.dtype, tensor.device)
        expected = (tensors[0].shape[1], tensors[0].dtype, tensors[0].device)
        if same != expected:
            raise ValueError(
                f"logits[{i}] must have the classes, dtype and device of logits[0], {expected}, got {same}"
            )
    return torch.cat(tensors), torch.tensor([0, *(len(t) for t in tensors)]).cumsum(0)


def _require_shape(argument: str, x: Tensor, axes: tuple[str, ...]) -> None:
    if x.dim() != len(axes):
        raise ValueError(f"{argument} must have shape ({', '.join(axes)}), got {tuple(x.shape)}")


def _checked_reduction(reduction: str, threshold: float | None) -> float:
    """The threshold, 0 where there is none."""
    if reduction not in get_args(PartReduction):
        raise ValueError(f"reduction must be one of {', '.join(get_args(PartReduction))}, got {reduction!r}")
    if (threshold is not None) != (reduction in ("share", "count")):
        expected = "None" if threshold is not None else "a number"
        raise ValueError(f"threshold must be {expected} for the reduction {reduction!r}, got {threshold!r}")
    if threshold is None:
        return 0.0
    limit = require_number("threshold", threshold)
    if limit != limit:
        raise ValueError("threshold must be a number, got nan")
    return limit


def _checked_mask(mask: Any, shape: Sequence[int], device: torch.device) -> Tensor | None:
    """Which parts count, as bool of that shape on the device; None where all do."""
    if mask is None:
        return None
    given = as_tensor("mask", mask)
    if given.is_floating_point() or given.is_complex():
        raise TypeError(f"mask must be bool or integer, got {given.dtype}")
    if tuple(given.shape) != tuple(shape):
        raise ValueError(f"mask must have shape {tuple(shape)}, got {tuple(given.shape)}")
    return (given if given.dtype == torch.bool else given != 0).to(device)


def _numbers(names: tuple[str, ...], reduction: str, threshold: float) -> tuple[list[int], int, float]:
    return [LOGIT_STRATEGIES[name] for name in names], REDUCTIONS[reduction], threshold


def _answer(array: Any, strategy: str | tuple[str, ...], names: tuple[str, ...], table: Tensor) -> Any:
    if isinstance(strategy, str):
        return like(array, table[0])
    return {name: like(array, row) for name, row in zip(names, table, strict=True)}
