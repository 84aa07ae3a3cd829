"""Utilities of rows from several passes of a network, all at once or one after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from prunefuse.ops._operator import Shape, nothing, operator, result_dtype
from prunefuse.ops._scores import FLOPS_PER_LOGIT, entropy, log_probabilities

# Of every pass: what a row costs alone, and a multiply-add to the sum of probabilities.
FLOPS_PER_PASS = FLOPS_PER_LOGIT + 2
# Per class of the mean: scale, logarithm, add to the sum, multiply and add to the weighted sum.
FLOPS_PER_MEAN = 5


def _flops(logits: Shape, *_: object) -> int:
    passes, rows, classes = logits
    return rows * classes * (passes * FLOPS_PER_PASS + FLOPS_PER_MEAN)


@operator(
    fake=lambda logits, strategies, *_: logits.new_empty(
        (len(strategies), logits.shape[1]), dtype=result_dtype(logits)
    ),
    flops=_flops,
)
def score_ensemble(
    logits: Tensor, strategies: Sequence[int], probabilities: bool, temperature: float
) -> Tensor:
    """Utilities (K, N) of S passes' logits (S, N, C) for K strategies by number, from one read.

    >>> from prunefuse import ops
    >>> ops.score_ensemble(torch.zeros(3, 1, 2), [0], False, 1.0).tolist()  # BALD
    [[0.0]]
    """
    log_p = torch.stack([log_probabilities(one, probabilities, temperature) for one in logits])  # (S, N, C)
    p = log_p.exp()  # (S, N, C)
    mean = p.mean(0)  # (N, C)
    mean_entropy = entropy(log_p).mean(0)  # (N,)
    predictive = -torch.where(mean == 0, 0.0, mean * mean.log()).sum(1)  # (N,)
    best = p.max(2, keepdim=True).values  # (S, N, 1)
    votes = torch.zeros_like(mean, dtype=torch.int64)  # (N, C)
    for one, top in zip(p, best, strict=True):
        votes.scatter_add_(1, (one == top).int().argmax(1, keepdim=True), torch.ones_like(votes[:, :1]))
    variation = 1 - votes.amax(1).to(p.dtype) / len(logits)  # (N,)
    table = (
        (predictive - mean_entropy).clamp_min(0),  # BALD
        predictive,
        torch.where(predictive.isnan(), torch.nan, variation),
        mean_entropy,
    )
    return torch.stack([table[k].to(log_p.dtype) for k in strategies])  # (K, N)


@operator(fake=nothing, flops=lambda sums, *_: FLOPS_PER_PASS * math.prod(sums))
def ensemble_add_(
    sums: Tensor, votes: Tensor, entropies: Tensor, logits: Tensor, probabilities: bool, temperature: float
) -> None:
    """Add one pass, logits (N, C), to sums and int32 votes (N, C) and entropies (N,), in place.

    >>> from prunefuse import ops
    >>> sums, votes, entropies = torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.int32), torch.zeros(1)
    >>> ops.ensemble_add_(sums, votes, entropies, torch.tensor([[0.0, 9.0]]), False, 1.0)
    >>> votes.tolist()
    [[0, 1]]
    """
    log_p = log_probabilities(logits, probabilities, temperature)  # (N, C)
    p = log_p.exp().to(sums.dtype)  # (N, C)
    rows = (~p.isnan().any(1)).nonzero()[:, 0]  # (V,), those with a distribution
    sums += p
    votes[rows, (p[rows] == p[rows].max(1, keepdim=True).values).int().argmax(1)] += 1
    entropies += entropy(log_p).to(entropies.dtype)
