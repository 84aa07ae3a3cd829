"""Acquisition strategies by token: what each needs from the network, and which samples it labels next.

Utilities are higher = label first for every strategy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from prunefuse.scoring import score
from prunefuse.selection.k_center import k_center_greedy
from prunefuse.selection.top_b import top_b

Needs = Literal["nothing", "logits", "features"]


@dataclass(frozen=True)
class Pool:
    """What a strategy chooses from. Indices are int64 CPU tensors of indices into the data set.

    ``outputs`` has float rows: for a strategy that needs ``logits`` one (C,) row for each of ``unlabeled``;
    for one that needs ``features`` one (d,) row for each of ``labeled``, then one for each of ``unlabeled``;
    None for one that needs nothing. ``generator`` is the strategy's only source of randomness.
    """

    unlabeled: Tensor
    labeled: Tensor
    outputs: Tensor | None
    generator: torch.Generator


@dataclass(frozen=True)
class Picks:
    """``indices`` into the data set in pick order (int64, CPU), their utilities (None where there are none).

    ``unselectable`` counts the unlabeled samples that could not be picked: their utility was NaN, or a feature
    not finite.
    """

    indices: Tensor
    utilities: Tensor | None = None
    unselectable: int = 0


@dataclass(frozen=True)
class Strategy:
    """``pick(pool, b)`` chooses ``b`` unlabeled samples; ValueError if fewer can be chosen."""

    token: str
    needs: Needs
    pick: Callable[[Pool, int], Picks]


def _random(pool: Pool, b: int) -> Picks:
    if b > len(pool.unlabeled):
        raise ValueError(f"b: expected at most the {len(pool.unlabeled)} unlabeled samples, got {b}")
    return Picks(pool.unlabeled[torch.randperm(len(pool.unlabeled), generator=pool.generator)[:b]])


def _highest(token: str, pool: Pool, b: int) -> Picks:
    """The ``b`` most useful samples by a score of their logits, most useful first."""
    assert pool.outputs is not None
    utilities = score(pool.outputs, token)
    rows, best = top_b(utilities, b)
    return Picks(pool.unlabeled[rows.cpu()], best.cpu(), int(utilities.isnan().sum()))


def _k_center(pool: Pool, b: int) -> Picks:
    """Greedy k-center on the features: each pick is the sample farthest from all labeled and picked ones."""
    assert pool.outputs is not None
    if b > len(pool.unlabeled):
        raise ValueError(f"b: expected at most the {len(pool.unlabeled)} unlabeled samples, got {b}")
    known = len(pool.labeled)
    rows = k_center_greedy(pool.outputs, b, labeled=torch.arange(known))
    unselectable = int((~pool.outputs[known:].isfinite().all(1)).sum())
    return Picks(pool.unlabeled[rows.cpu() - known], None, unselectable)


STRATEGIES: dict[str, Strategy] = {
    s.token: s
    for s in (
        Strategy("random", "nothing", _random),
        Strategy("least_confidence", "logits", partial(_highest, "least_confidence")),
        Strategy("margin", "logits", partial(_highest, "margin")),
        Strategy("entropy", "logits", partial(_highest, "entropy")),
        Strategy("k_center", "features", _k_center),
    )
}


def strategy(token: str) -> Strategy:
    """The strategy called ``token``; ValueError for an unknown one."""
    if token not in STRATEGIES:
        raise ValueError(f"strategy: expected one of {', '.join(STRATEGIES)}, got {token!r}")
    return STRATEGIES[token]
