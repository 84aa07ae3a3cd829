"""Utilities and statistics of rows of logits, whole or in pieces."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunefuse.ops._operator import Shape, nothing, operator, result_dtype

# Per logit: subtract the maximum, scale, exponentiate, add to the sum, multiply and add to the weighted sum. An exponential
# counts as one operation, as an addition does; comparisons and moves count nothing.
FLOPS_PER_LOGIT = 6


def flops_of_rows(logits: Shape, *_: object) -> int:
    """One read of logits (N, C)."""
    rows, classes = logits
    return FLOPS_PER_LOGIT * rows * classes


def log_probabilities(logits: Tensor, probabilities: bool, temperature: float) -> Tensor:
    """Log-probabilities (N, C); NaN throughout a row that holds a NaN or no value above -inf."""
    x = logits.log() if probabilities else logits  # (N, C)
    x = torch.where(x.isnan().any(1, keepdim=True), torch.nan, x)  # (N, C)
    infinite = x == torch.inf  # (N, C)
    # +inf classes share the mass: they are equal, everything else is masked.
    x = torch.where(infinite.any(1, keepdim=True), torch.where(infinite, 0.0, -torch.inf), x)  # (N, C)
    return torch.log_softmax(x / temperature, dim=1)  # (N, C)


def entropy(log_p: Tensor) -> Tensor:
    """Entropies in nats (...) of log-probabilities (..., C)."""
    # 0 * -inf is NaN where the limit is 0: masked classes contribute nothing.
    return -torch.where(log_p == -torch.inf, 0.0, log_p.exp() * log_p).sum(-1)  # (...)


def two_largest(x: Tensor, missing: float) -> tuple[Tensor, Tensor]:
    """The largest and the second largest value of each row of x (N, C): (N,) each; ``missing`` for the second if C is 1."""
    values = x.topk(min(2, x.shape[1]), dim=1).values  # (N, 2), or (N, 1)
    first = values[:, 0]  # (N,)
    return first, values[:, 1] if x.shape[1] > 1 else torch.full_like(first, missing)


@operator(
    fake=lambda logits, strategies, *_: logits.new_empty(
        (len(strategies), logits.shape[0]), dtype=result_dtype(logits)
    ),
    flops=flops_of_rows,
)
def score(logits: Tensor, strategies: Sequence[int], probabilities: bool, temperature: float) -> Tensor:
    """Utilities (K, N) of logits (N, C) for K strategies by number (`csrc/library.cpp`), from one read.

    >>> from prunefuse import ops
    >>> ops.score(torch.zeros(1, 2), [0, 1], False, 1.0).tolist()  # least confidence, margin
    [[0.5], [1.0]]
    """
    log_p = log_probabilities(logits, probabilities, temperature)  # (N, C)
    p1, p2 = two_largest(log_p.exp(), missing=0.0)  # (N,)
    x = logits.log() if probabilities else logits  # (N, C)
    x1, x2 = two_largest(x, missing=-torch.inf)  # (N,)
    energy = -temperature * torch.logsumexp(x / temperature, 1)  # (N,)
    gap = torch.where(x1 == x2, 0.0, x2 - x1)  # (N,); inf - inf is NaN
    invalid = p1.isnan()  # (N,)
    table = (
        1 - p1,  # least confidence
        1 - (p1 - p2),  # margin
        entropy(log_p),
        torch.where(invalid, torch.nan, energy),
        torch.where(invalid, torch.nan, gap),  # margin of logits
    )
    return torch.stack([table[k] for k in strategies])  # (K, N)


def _empty_statistics(logits: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, dtype = logits.shape[0], result_dtype(logits)
    values = [logits.new_empty((rows,), dtype=dtype) for _ in range(3)]
    return logits.new_empty((rows,), dtype=torch.int64), values[0], values[1], values[2]


@operator(fake=_empty_statistics, flops=flops_of_rows)
def statistics(
    logits: Tensor, probabilities: bool, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Arg-max, log-sum-exp and the two largest probabilities of each row of logits (N, C): (N,) each.

    >>> from prunefuse import ops
    >>> ops.statistics(torch.zeros(1, 2), False, 1.0)[2].tolist()
    [0.5]
    """
    p = log_probabilities(logits, probabilities, temperature).exp()  # (N, C)
    p1, p2 = two_largest(p, missing=0.0)  # (N,)
    x = logits.log() if probabilities else logits  # (N, C)
    largest = x == x.max(1, keepdim=True).values  # (N, C)
    invalid = p1.isnan()  # (N,)
    argmax = torch.where(invalid, -1, largest.int().argmax(1))  # (N,), the lowest class of equals
    logsumexp = torch.where(invalid, torch.nan, torch.logsumexp(x / temperature, 1))  # (N,)
    return argmax, logsumexp, p1, torch.where(invalid, torch.nan, p2)


@operator(fake=nothing, flops=lambda state, logits, *_: flops_of_rows(logits))
def absorb_(state: Tensor, logits: Tensor, temperature: float) -> None:
    """Merge logits (N, C') into the states (6, N) of rows whose logits come in pieces, in place (`csrc/library.cpp`).

    >>> from prunefuse import ops
    >>> prunefuse.score_linear(torch.zeros(1, 4), torch.zeros(9, 4)).shape  # calls the operator for every tile
    torch.Size([1])

    The reference is for logits without +inf.
    """
    top, second, ties, tail, dot, nan = state.unbind()  # (N,) each
    x = logits.to(state.dtype)
    x = torch.where(x.isnan(), -torch.inf, x)  # (N, C')
    both = torch.cat(
        [torch.stack([top, second], 1), x], 1
    )  # (N, 2 + C'), what leads the row so far, and this piece
    highest, runner_up = both.topk(2, 1).values.unbind(1)  # (N,)
    # What is known of the row so far, from its largest logit to the new one.
    weight = torch.where(top == -torch.inf, 0.0, torch.exp((top - highest) / temperature))  # (N,)
    shift = torch.where(weight == 0, 0.0, (top - highest) / temperature)  # (N,)
    leads = top == highest  # (N,)
    mass = ties + tail  # (N,)
    # This piece.
    masked = x == -torch.inf  # (N, C')
    z = torch.where(masked, 0.0, (x - highest[:, None]) / temperature)  # (N, C')
    e = torch.where(masked, 0.0, z.exp())  # (N, C')
    equal = x == highest[:, None]  # (N, C')
    state[0], state[1] = highest, runner_up
    state[2] = torch.where(leads, ties, 0.0) + equal.sum(1)
    state[3] = torch.where(leads, tail, weight * mass) + torch.where(equal, 0.0, e).sum(1)
    state[4] = weight * (dot + mass * shift) + (e * z).sum(1)
    state[5] = torch.maximum(nan, logits.isnan().any(1).to(state.dtype))
