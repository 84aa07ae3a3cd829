"""Scores of token sequences: every token scored from one read, then reduced to one utility per sequence."""

from __future__ import annotations

from typing import Any, Literal, get_args, overload

import torch
from torch import Tensor

from prunefuse.ops.arrays import as_tensor, like
from prunefuse.scoring._scores import LOGIT_STRATEGIES, checked_logits, checked_names, score

Reduction = Literal["mean", "max", "sum"]


@overload
def score_tokens(
    logits: Any,
    strategy: str = "entropy",
    *,
    mask: Any = None,
    reduction: Reduction = "mean",
    probabilities: bool = False,
    temperature: float = 1.0,
) -> Any: ...


@overload
def score_tokens(
    logits: Any,
    strategy: tuple[str, ...],
    *,
    mask: Any = None,
    reduction: Reduction = "mean",
    probabilities: bool = False,
    temperature: float = 1.0,
) -> dict[str, Any]: ...


def score_tokens(
    logits: Any,
    strategy: str | tuple[str, ...] = "entropy",
    *,
    mask: Any = None,
    reduction: Reduction = "mean",
    probabilities: bool = False,
    temperature: float = 1.0,
) -> Any:
    """Utilities of token sequences, from the `score` of their tokens, higher = label first.

    >>> logits, mask = torch.zeros(1, 3, 2), torch.tensor([[True, True, False]])
    >>> prunefuse.score_tokens(logits, "margin", mask=mask, reduction="sum").tolist()
    [2.0]

    Args:
        logits: (N, T, V): N sequences of up to T tokens, each with logits over V classes or words. Dtypes, arrays and what
            counts as NaN are those of `score`. They are read once, and copied first only where strides allow no (N·T, V)
            view.
        strategy: A name of `score`, or a tuple of names for several scores from that one read.
        mask: (N, T), bool or integer, on any device: which tokens count. Others are ignored, whatever their logits hold. By
            default all count.
        reduction: ``"mean"``, ``"max"`` or ``"sum"`` over the tokens that count.
        probabilities: As in `score`.
        temperature: As in `score`.

    Returns:
        Utilities (N,) as `score` returns them. NaN for a sequence in which no token counts, or one that counts is NaN.

    Raises:
        TypeError: As `score`; or a mask that is neither bool nor integer.
        ValueError: As `score`; a mask that is not (N, T); an unknown reduction; logits not of rank 3.
        RuntimeError: There is no class.
    """
    names = checked_names("strategy", strategy, LOGIT_STRATEGIES)
    x = checked_logits(logits, temperature)
    if x.dim() != 3:
        raise ValueError(f"logits must have shape (N, T, V), got {tuple(x.shape)}")
    require_reduction(reduction)
    counts = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    if mask is not None:
        counts = checked_mask(mask, x.shape[:2]).to(x.device)
    rows = x.flatten(0, 1)
    utilities = score(rows, names, probabilities=probabilities, temperature=temperature)
    reduced = {name: reduce_tokens(utilities[name].view(x.shape[:2]), counts, reduction) for name in names}
    if isinstance(strategy, str):
        return like(logits, reduced[strategy])
    return {name: like(logits, value) for name, value in reduced.items()}


def require_reduction(reduction: Any) -> None:
    """Raises ValueError where it is none."""
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be one of {', '.join(get_args(Reduction))}, got {reduction!r}")


def checked_mask(mask: Any, shape: tuple[int, ...]) -> Tensor:
    """Which tokens count, (N, T) bool where the mask is; TypeError or ValueError for what is no mask of that shape."""
    given = as_tensor("mask", mask)
    if given.is_floating_point() or given.is_complex():
        raise TypeError(f"mask must be bool or integer, got {given.dtype}")
    if given.shape != shape:
        raise ValueError(f"mask must have shape {tuple(shape)}, got {tuple(given.shape)}")
    return given != 0


def reduce_tokens(utilities: Tensor, counts: Tensor, reduction: str) -> Tensor:
    """Utilities (N,) of sequences from those (N, T) of their tokens; NaN where no token counts."""
    tokens = counts.sum(1)
    if reduction == "max":
        # A column more, so that there is a maximum where T is 0.
        padded = torch.nn.functional.pad(utilities.where(counts, -torch.inf), (0, 1), value=-torch.inf)
        result = padded.amax(1)
    else:
        result = utilities.where(counts, 0).sum(1)
    if reduction == "mean":
        result = result / tokens
    return result.where(tokens > 0, torch.nan)
