"""BADGE: a batch that is uncertain and diverse at once, by k-means++ over gradient embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from prunefuse.ops.reference import log_probabilities


def badge(logits: Tensor, features: Tensor, b: int, generator: torch.Generator) -> tuple[Tensor, int]:
    """Picks b rows by the k-means++ seeding over gradient embeddings (Ash et al. 2020, *Deep Batch Active Learning by
    Diverse, Uncertain Gradient Lower Bounds*).

    A row's embedding is the gradient of the cross-entropy with its own prediction ŷ as label, with respect to the last
    layer: (p − onehot(ŷ)) ⊗ h, of C·d numbers. It is never formed: ‖g − g'‖² follows from the two factors' products. The
    first pick has the largest embedding, as in the authors' code; each later one is drawn with probability proportional
    to its squared distance from the nearest pick. Where all that are left coincide with picks, the draw is uniform (ours).

    Args:
        logits: (N, C), floating.
        features: (N, d), floating, on the same device: what enters the last layer.
        b: how many rows to pick.
        generator: the source of randomness, on the CPU.

    Returns:
        Rows (b,) int64 on the CPU, in pick order, and the number of rows that cannot be picked: those with a NaN, without
        a logit above −inf, or with a feature that is not finite. Extra memory is O(N·C).

    Raises:
        ValueError: fewer than b rows can be picked.
    """
    residual = log_probabilities(logits.float(), False, 1.0).exp()
    h = features.float()
    valid = residual.isfinite().all(1) & h.isfinite().all(1)
    selectable = int(valid.sum())
    if b > selectable:
        raise ValueError(
            f"b is {b}, but only {selectable} of {len(residual)} rows can be picked (the others are not finite)"
        )
    residual, h = residual.where(valid[:, None], 0), h.where(valid[:, None], 0)
    top = residual.argmax(1, keepdim=True)
    # p1 - 1 as minus the sum of the others: precise where p1 is almost 1.
    residual.scatter_(1, top, 0).scatter_(1, top, -residual.sum(1, keepdim=True))
    norms = residual.square().sum(1) * h.square().sum(1)
    available = valid.cpu()
    nearest = torch.full((len(residual),), torch.inf, dtype=torch.float64)
    picks = torch.empty(b, dtype=torch.int64)
    for i in range(b):
        if i == 0:
            pick = int(norms.cpu().where(available, -1).argmax())
        else:
            pick = _draw(nearest.where(available, 0), available, generator)
        picks[i] = pick
        available[pick] = False
        products = (residual @ residual[pick]) * (h @ h[pick])
        distances = (norms + norms[pick] - 2 * products).clamp_min(0)
        nearest = torch.minimum(nearest, distances.cpu().double())
    return picks, len(residual) - selectable


def _draw(weights: Tensor, available: Tensor, generator: torch.Generator) -> int:
    """A row with probability proportional to its weight; uniform over the available ones where all weights are 0."""
    if not bool((weights > 0).any()):
        weights = available.double()
    cumulative = weights.cumsum(0)
    target = torch.rand(1, dtype=torch.float64, generator=generator) * cumulative[-1]
    row = int(torch.searchsorted(cumulative, target, right=True))
    # Rounding may have brought the target to the total.
    return min(row, int(weights.nonzero()[-1]))
