"""From utilities to a batch: the best, a random batch that prefers the good, or equally many of every class."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from prunefuse.selection.top_b import top_b

Stochastic: TypeAlias = Literal["none", "power", "softmax", "softrank"]
STOCHASTIC: tuple[str, ...] = get_args(Stochastic)


def perturbed(utilities: Tensor, kind: str, beta: float, generator: torch.Generator) -> Tensor:
    """Utilities whose b largest are a random batch (Kirsch et al. 2023, *Stochastic Batch Acquisition*).

    With g drawn from Gumbel(0, 1) for every row: ``softmax`` u + g/β, ``power`` ln u + g/β, ``softrank`` −ln r + g/β with
    r the rank of the utility, from 1. The larger β, the nearer to the b best.

    Args:
        utilities: (N,) floating.
        kind: one of `STOCHASTIC`; ``none`` leaves them as they are.
        beta: β, positive.
        generator: on the CPU.

    Returns:
        (N,), float64 but for ``none``; NaN where the utility is.

    Raises:
        ValueError: a negative utility with ``power``.
    """
    if kind == "none":
        return utilities
    u = utilities.double()
    if kind == "power":
        if bool((u < 0).any()):
            raise ValueError(
                f"stochastic: power needs utilities of at least 0, got {float(u.nan_to_num().min())}; "
                "softmax and softrank take any"
            )
        u = u.log()
    elif kind == "softrank":
        order = u.nan_to_num(nan=-torch.inf).sort(descending=True, stable=True).indices
        ranks = torch.empty_like(u)
        ranks[order] = torch.arange(1, len(u) + 1, dtype=u.dtype, device=u.device)
        u = torch.where(u.isnan(), u, -ranks.log())
    # Minus the logarithm of an exponential variable is a Gumbel variable.
    draws = torch.empty(len(u), dtype=torch.float64).exponential_(generator=generator)
    return u - draws.log().to(u.device) / beta


def best_of_each(utilities: Tensor, classes: Tensor, b: int) -> Tensor:
    """The best row of every class, then the second best of every class, and so on until there are b (ours).

    Args:
        utilities: (N,) floating; NaN is never picked.
        classes: (N,) integer, on the same device.
        b: how many.

    Returns:
        Rows (b,) int64 in pick order; of one turn the better first, equals by lower index.

    Raises:
        ValueError: fewer than b rows can be picked.
    """
    selectable = int((~utilities.isnan()).sum())
    order, _ = top_b(utilities, max(b, selectable))
    # Best first within a class, classes one after the other; a row's turn is its place in its class.
    kinds, grouped = classes[order].sort(stable=True)
    turns = torch.empty_like(order)
    turns[grouped] = torch.arange(len(order), device=order.device) - torch.searchsorted(kinds, kinds)
    best: Tensor = order[turns.sort(stable=True).indices[:b]]
    return best
