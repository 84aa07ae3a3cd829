"""Utilities of rows of logits, reduced over groups of rows: the labels of a sample, the pixels or the boxes of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from prunefuse.ops._operator import Shape, operator, result_dtype
from prunefuse.ops._scores import FLOPS_PER_LOGIT, score

# By the operator's numbers.
REDUCTIONS = {"mean": 0, "max": 1, "sum": 2, "share": 3, "count": 4}


def flops_of_groups(logits: Shape, *_: object) -> int:
    """One read of logits (G, R, C) or (B, C)."""
    return FLOPS_PER_LOGIT * math.prod(logits)


def _empty_results(
    logits: Tensor, offsets: Tensor | None, mask: Tensor | None, strategies: Sequence[int], *_: object
) -> Tensor:
    groups = logits.shape[0] if offsets is None else offsets.shape[0] - 1
    return logits.new_empty((len(strategies), groups), dtype=result_dtype(logits))


def reduce_rows(utilities: Tensor, reduction: str, threshold: float, empty: float) -> Tensor:
    """Utilities (K, R) of the rows of one group as one for each strategy (K,)."""
    if utilities.shape[1] == 0:
        return utilities.new_full(utilities.shape[:1], empty)  # (K,)
    above = (utilities > threshold).to(utilities.dtype)  # (K, R)
    above = torch.where(utilities.isnan(), torch.nan, above)  # (K, R)
    if reduction in ("share", "count"):
        return above.mean(1) if reduction == "share" else above.sum(1)  # (K,)
    if reduction == "max":
        return utilities.amax(1)  # (K,)
    return utilities.mean(1) if reduction == "mean" else utilities.sum(1)  # (K,)


@operator(fake=_empty_results, flops=flops_of_groups)
def score_groups(
    logits: Tensor,
    offsets: Tensor | None,
    mask: Tensor | None,
    strategies: Sequence[int],
    reduction: int,
    threshold: float,
    empty: float,
    labels: bool,
    probabilities: bool,
    temperature: float,
) -> Tensor:
    """Utilities (K, G) of groups of rows, logits (G, R, C) or (B, C) with offsets (G + 1,) (`csrc/library.cpp`).

    >>> from prunefuse import ops
    >>> undecided = torch.zeros(2, 3, 1)  # two samples with three labels
    >>> ops.score_groups(undecided, None, None, [0], 2, 0.0, 0.0, True, False, 1.0).tolist()  # least confidence, sum
    [[1.5, 1.5]]
    """
    rows = logits.flatten(0, -2)  # (G R, C), or (B, C)
    if labels:
        rows = torch.cat([rows, 1 - rows if probabilities else torch.zeros_like(rows)], 1)  # (G R, 2)
    utilities = score.reference(rows, strategies, probabilities, temperature)  # (K, G R)
    if offsets is not None:
        borders = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        groups = [utilities[:, begin:end] for begin, end in borders]  # G of (K, R of the group)
    else:
        groups = list(utilities.view(len(strategies), *logits.shape[:2]).unbind(1))  # G of (K, R)
    if mask is not None and groups:
        of_group = mask.repeat_interleave(len(groups) // len(mask), 0)  # (G, R)
        groups = [group[:, counts] for group, counts in zip(groups, of_group, strict=True)]
    name = next(name for name, number in REDUCTIONS.items() if number == reduction)
    reduced = [reduce_rows(group, name, threshold, empty) for group in groups]  # G of (K,)
    if not reduced:
        return utilities.new_empty((len(strategies), 0), dtype=result_dtype(logits))
    return torch.stack(reduced, 1).to(result_dtype(logits))  # (K, G)
