"""What training tells of its samples, batch by batch (`prunefuse.dynamics`)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prunefuse.ops._operator import no_flops, nothing, operator, result_dtype
from prunefuse.ops._scores import FLOPS_PER_LOGIT, flops_of_rows, log_probabilities

# The statistics of `dynamics`, in its order.
DYNAMICS = ("probability", "error", "loss", "margin", "el2n", "correct")

# The softmax of a logit, and for the divergence from the one before: add epsilon, logarithm, subtract, multiply, add.
FLOPS_PER_DIVERGENCE = FLOPS_PER_LOGIT + 5


@operator(
    fake=lambda logits, labels: logits.new_empty(
        (len(DYNAMICS), logits.shape[0]), dtype=result_dtype(logits)
    ),
    flops=flops_of_rows,
)
def dynamics(logits: Tensor, labels: Tensor) -> Tensor:
    """What logits (N, C) say of their labels (N,): (6, N), in the order of `DYNAMICS`, from one read.

    >>> from prunefuse import ops
    >>> ops.dynamics(torch.zeros(1, 2), torch.tensor([1]))[0].tolist()  # the label's probability
    [0.5]

    A label that is no class is an error on the CPU. On CUDA, where to look would wait for the device, it gives NaN.
    """
    log_p = log_probabilities(logits, False, 1.0)  # (N, C)
    p = log_p.exp()  # (N, C)
    own = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()  # (N, C)
    others = torch.where(own, 0.0, p)  # (N, C)
    error = others.sum(1)  # (N,)
    label = logits.gather(1, labels[:, None])[:, 0]  # (N,)
    rival = torch.where(own, -torch.inf, logits).amax(1)  # (N,)
    largest = (logits == logits.amax(1, keepdim=True)).int().argmax(1)  # (N,), the lowest class of equals
    table = (
        p.gather(1, labels[:, None])[:, 0],
        error,
        -log_p.gather(1, labels[:, None])[:, 0],
        torch.where(label == rival, 0.0, label - rival),
        torch.hypot(error, others.norm(dim=1)),
        (largest == labels).to(p.dtype),
    )
    return torch.where(p[:, 0].isnan(), torch.nan, torch.stack(table))  # (6, N)


@operator(fake=lambda seen, rejected, indices, *_: torch.empty_like(indices), flops=no_flops)
def claim_(seen: Tensor, rejected: Tensor, indices: Tensor, labels: Tensor | None, classes: int) -> Tensor:
    """Indices (B,), now marked in seen (N,) as of this epoch, with -1 for rows to leave out.

    >>> from prunefuse import ops
    >>> seen, rejected = torch.zeros(3, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
    >>> ops.claim_(seen, rejected, torch.tensor([2, 0]), None, 0).tolist()
    [2, 0]

    What is wrong with a row is an error on the CPU, before anything is written. On CUDA the row is left out and counted in
    rejected (1,). The reference is for batches that nothing is wrong with.
    """
    seen[indices] = 1
    return indices.clone()  # (B,)


@operator(
    fake=lambda kept, logits, *_: logits.new_empty((logits.shape[0],), dtype=torch.float64),
    flops=lambda kept, logits, *_: FLOPS_PER_DIVERGENCE * math.prod(logits),
)
def divergence_(kept: Tensor, logits: Tensor, samples: Tensor, epsilon: float) -> Tensor:
    """How far the softmax of logits (B, C) is from that of their samples (B,) the time before: (B,), -1 where there is none.

    >>> from prunefuse import ops
    >>> ops.divergence_(torch.ones(3, 2), torch.zeros(1, 2), torch.tensor([2]), 1e-8).tolist()
    [-1.0]

    kept (N, C), written in place, are the logarithms of every sample's softmax, 1 where there is none yet.
    """
    p = log_probabilities(logits.double(), False, 1.0).exp()  # (B, C)
    logs = (p + epsilon).log()  # (B, C)
    before = kept[samples].double()  # (B, C)
    result = (p * (logs - before)).abs().sum(1)  # (B,)
    result = torch.where((before[:, 0] == 1) | (samples < 0), -1.0, result)
    used = samples >= 0  # (B,)
    kept[samples[used]] = logs[used].to(kept.dtype)
    return result  # (B,)


@operator(
    fake=nothing,
    # The mean of a window, and its squared deviations.
    flops=lambda ring, counts, sums, values, samples, window, *_: 4 * window * values[0],
)
def push_(
    ring: Tensor,
    counts: Tensor,
    sums: Tensor,
    values: Tensor,
    samples: Tensor,
    window: int,
    divisor: float,
    keep: float,
    gain: float,
) -> None:
    """Append values (B,) to their samples' rings (N, R), and the window that this completes to the sums (2, N), in place.

    >>> from prunefuse import ops
    >>> ring, counts, sums = torch.zeros(1, 2).double(), torch.zeros(1, dtype=torch.int64), torch.zeros(2, 1).double()
    >>> for x in (0.0, 1.0): ops.push_(ring, counts, sums, torch.tensor([x]).double(), torch.tensor([0]), 2, 1.0, 1.0, 1.0)
    >>> round(sums[0].item(), 3)
    0.707

    `csrc/library.cpp` says which window that is, and what of it is added.
    """
    size = ring.shape[1]
    for value, sample in zip(values.tolist(), samples.tolist(), strict=True):
        if sample < 0:
            continue
        count = int(counts[sample])
        ring[sample, count % size] = value
        counts[sample] += 1
        if count + 1 < size:
            continue
        x = ring[sample, [(count + 1 + i) % size for i in range(window)]]  # (window,), the oldest first
        spread = ((x - x.mean()).square().sum() / divisor).sqrt()
        sums[:, sample] = keep * sums[:, sample] + gain * torch.stack((spread, spread * (1 - x.mean())))
