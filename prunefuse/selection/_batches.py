"""From utilities to a batch: the best, a random batch that prefers the good, or equally many of every class."""

from __future__ import annotations

import torch
from torch import Tensor

from prunefuse._names import STOCHASTIC as STOCHASTIC
from prunefuse._names import Stochastic as Stochastic
from prunefuse.errors import TooFewRowsError
from prunefuse.ops.transfer import upload
from prunefuse.selection._top_b import best_first, require_selected


def perturbed(utilities: Tensor, kind: str, beta: float, generator: torch.Generator) -> Tensor:
    """Utilities whose b largest are a random batch (Kirsch et al. 2023, *Stochastic Batch Acquisition*).

    With g drawn from Gumbel(0, 1) for every row: ``softmax`` u + g/β, ``power`` ln u + g/β, ``softrank`` −ln r + g/β with
    r the rank of the utility, from 1. The larger β, the nearer to the b best.

    Never waits for a device. The numbers are drawn on the CPU whatever the device, so that a seed gives one batch everywhere,
    and go over through pinned memory: 8 bytes a row, once, where drawing on the device would save some milliseconds for a
    million rows and give other batches.

    Args:
        utilities: (N,) floating.
        kind: one of `STOCHASTIC`; ``none`` leaves them as they are.
        beta: β, positive.
        generator: on the CPU.

    Returns:
        (N,), float64 but for ``none``; NaN where the utility is, and with ``power`` where it is negative, which whoever
        calls this has to refuse (`require_not_negative`).
    """
    if kind == "none":
        return utilities
    u = utilities.double()
    if kind == "power":
        u = u.log()
    elif kind == "softrank":
        order = u.nan_to_num(nan=-torch.inf).sort(descending=True, stable=True).indices
        ranks = torch.empty_like(u)
        ranks[order] = torch.arange(1, len(u) + 1, dtype=u.dtype, device=u.device)
        u = torch.where(u.isnan(), u, -ranks.log())
    # Minus the logarithm of an exponential variable is a Gumbel variable.
    draws = torch.empty(len(u), dtype=torch.float64).exponential_(generator=generator)
    return u - upload(draws.log(), u.device) / beta


def require_not_negative(least: float) -> None:
    """ValueError where the least utility, which is to be raised to a power, is negative."""
    if least < 0:
        raise ValueError(
            f"utilities must be at least 0 for stochastic power, got {least}; softmax and softrank take any"
        )


def best_of_each(utilities: Tensor, classes: Tensor, b: int) -> Tensor:
    """The best row of every class, then the second best of every class, and so on until there are b.

    On a GPU it waits for the device once, at the end, to see whether there were b.

    Args:
        utilities: (N,) floating; NaN is never picked.
        classes: (N,) integer, on the same device.
        b: how many.

    Returns:
        Rows (b,) int64 in pick order; of one turn the better first, equals by lower index.

    Raises:
        ValueError: fewer than b rows can be picked.
    """
    rows = turn_by_turn(utilities, classes, b)
    require_selected(rows, len(utilities))
    return rows


def turn_by_turn(utilities: Tensor, classes: Tensor, b: int) -> Tensor:
    """`best_of_each` without waiting for a device: where fewer than b rows can be picked, -1 at the end."""
    if b > len(utilities):
        raise TooFewRowsError(
            f"b must be at most the number of rows, {len(utilities)}, got {b}", len(utilities), len(utilities)
        )
    order, _ = best_first(utilities, len(utilities))
    # What cannot be picked, -1 at the end of the order, is a class of its own, whose turn never comes.
    nothing = order < 0
    of_row = classes[order.clamp_min(0)].masked_fill(nothing, torch.iinfo(classes.dtype).max)
    # Best first within a class, classes one after the other; a row's turn is its place in its class.
    kinds, grouped = of_row.sort(stable=True)
    turns = torch.empty_like(order)
    turns[grouped] = torch.arange(len(order), device=order.device) - torch.searchsorted(kinds, kinds)
    turns.masked_fill_(nothing, len(order))
    best: Tensor = order[turns.sort(stable=True).indices[:b]]
    return best
