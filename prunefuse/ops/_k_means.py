"""Picks that are far from each other, drawn: k-means++ on outer products."""

from __future__ import annotations

import torch
from torch import Tensor

from prunefuse.ops._k_center import k_center_flops
from prunefuse.ops._operator import operator


@operator(
    fake=lambda residuals, features, draws, *_, **__: features.new_empty(draws.shape, dtype=torch.int64),
    # A row's two factors are multiplied with those of the picks.
    flops=lambda residuals, features, draws, *_, **__: k_center_flops(
        features[0], residuals[1] + features[1], draws[0]
    ),
)
def k_means_plus_plus(
    residuals: Tensor, features: Tensor, draws: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Rows (b,) in pick order, padded with -1, by k-means++ on outer products of residuals (N, C) and features (N, d).

    >>> from prunefuse import ops
    >>> ops.k_means_plus_plus(torch.ones(3, 1), torch.tensor([[1.0], [1.0], [9.0]]), torch.tensor([0.0, 0.2]).double())
    tensor([2, 0])

    draws (b,) are uniform numbers in [0, 1), of which the first is used with weights (N,) alone (`csrc/library.cpp`).
    Others are an error on the CPU. On CUDA, where to look would wait for the device, they draw some row. The reference
    forms the outer products.
    """
    embeddings = (residuals[:, :, None] * features[:, None, :]).flatten(1)  # (N, C * d)
    available = residuals.square().sum(1).isfinite() & features.square().sum(1).isfinite()  # (N,)
    factors = torch.ones(len(features), dtype=torch.float64, device=features.device)  # (N,)
    if weights is not None:
        factors = weights
        available &= factors.isfinite() & (factors >= 0)
    norms = embeddings.square().sum(1).where(available, -1)  # (N,)
    nearest = torch.full_like(norms, torch.inf, dtype=torch.float64)  # (N,), squared, from the picks so far
    picks = torch.full((len(draws),), -1, dtype=torch.int64, device=features.device)
    for i in range(min(len(draws), int(available.sum()))):
        chances = ((nearest if i else 1) * factors).where(available, 0)  # (N,)
        chances = chances if bool((chances > 0).any()) else available.double()
        cumulative = chances.cumsum(0)  # (N,)
        if i == 0 and weights is None:
            pick = int((norms == norms.amax()).int().argmax())
        else:
            # Rounding may have brought the target to the total.
            pick = int((cumulative > draws[i] * cumulative[-1]).int().argmax())
            pick = pick if cumulative[pick] > draws[i] * cumulative[-1] else int(chances.nonzero()[-1])
        picks[i] = pick
        available[pick] = False
        distances = (embeddings - embeddings[pick]).square().sum(1).double()  # (N,)
        nearest = torch.minimum(nearest, distances)
    return picks  # (b,)
