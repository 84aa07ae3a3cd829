"""The operators of the package on tensors: typed calls of `torch.ops.prunefuse.*`, which importing this module registers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunefuse.ops import loader

# These register themselves with the operators that the loader has just made known.
from prunefuse.ops import countable as countable  # isort: skip
from prunefuse.ops import fakes as fakes  # isort: skip

__all__ = [
    "absorb_",
    "claim_",
    "divergence_",
    "dynamics",
    "ensemble_add_",
    "k_center_greedy",
    "k_means_plus_plus",
    "keep_best_",
    "nearest_neighbors",
    "push_",
    "scatter_",
    "score",
    "score_ensemble",
    "statistics",
    "top_b",
]

# The statistics of `dynamics`, in its order.
DYNAMICS = ("probability", "error", "loss", "margin", "el2n", "correct")


def score(logits: Tensor, strategies: Sequence[int], probabilities: bool, temperature: float) -> Tensor:
    """Utilities (K, N) of logits (N, C) for K strategies by number (`csrc/library.cpp`), from one read."""
    if logits.is_cuda:
        loader.require_cuda("score")
    result: Tensor = torch.ops.prunefuse.score(logits, list(strategies), probabilities, temperature)
    return result


def statistics(
    logits: Tensor, probabilities: bool, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Arg-max, log-sum-exp and the two largest probabilities of each row of logits (N, C)."""
    if logits.is_cuda:
        loader.require_cuda("statistics")
    result: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.prunefuse.statistics(
        logits, probabilities, temperature
    )
    return result


def absorb_(state: Tensor, logits: Tensor, temperature: float) -> None:
    """Merges logits (N, C') into the states (6, N) of rows whose logits come in pieces, in place (`csrc/library.cpp`)."""
    if logits.is_cuda:
        loader.require_cuda("absorb_")
    torch.ops.prunefuse.absorb_(state, logits, temperature)
    torch.autograd.graph.increment_version(state)


def score_ensemble(
    logits: Tensor, strategies: Sequence[int], probabilities: bool, temperature: float
) -> Tensor:
    """Utilities (K, N) of S passes' logits (S, N, C) for K strategies by number, from one read."""
    if logits.is_cuda:
        loader.require_cuda("score_ensemble")
    result: Tensor = torch.ops.prunefuse.score_ensemble(logits, list(strategies), probabilities, temperature)
    return result


def ensemble_add_(
    sums: Tensor, votes: Tensor, entropies: Tensor, logits: Tensor, probabilities: bool, temperature: float
) -> None:
    """Adds one pass, logits (N, C), to sums and int32 votes (N, C) and entropies (N,), in place."""
    if logits.is_cuda:
        loader.require_cuda("ensemble_add_")
    torch.ops.prunefuse.ensemble_add_(sums, votes, entropies, logits, probabilities, temperature)
    torch.autograd.graph.increment_version((sums, votes, entropies))


def top_b(utilities: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """Indices and values of the b largest utilities, padded with -1 and NaN where fewer can be selected."""
    if utilities.is_cuda:
        loader.require_cuda("top_b")
    result: tuple[Tensor, Tensor] = torch.ops.prunefuse.top_b(utilities, b)
    return result


def keep_best_(
    best: Tensor,
    indices: Tensor,
    threshold: Tensor,
    counts: Tensor,
    b: int,
    batch: Tensor,
    batch_indices: Tensor | None,
) -> None:
    """Takes a batch (N,) of a stream into the candidates (M,) for its b best, in place (`csrc/library.cpp`)."""
    if best.is_cuda:
        loader.require_cuda("keep_best_")
    torch.ops.prunefuse.keep_best_(best, indices, threshold, counts, b, batch, batch_indices)
    torch.autograd.graph.increment_version((best, indices, threshold, counts))


def k_center_greedy(features: Tensor, labeled: Tensor, b: int, start: int) -> Tensor:
    """Row indices (b,) in pick order, padded with -1; start -1 where something is labeled.

    A labeled index out of range is an error on the CPU. On CUDA, where to look would wait for the device, it is left out.
    """
    if features.is_cuda:
        loader.require_cuda("k_center_greedy")
    result: Tensor = torch.ops.prunefuse.k_center_greedy(features, labeled, b, start)
    return result


def k_means_plus_plus(residuals: Tensor, features: Tensor, draws: Tensor) -> Tensor:
    """Rows (b,) in pick order, padded with -1, by k-means++ on outer products of residuals (N, C) and features (N, d).

    draws (b,) are uniform numbers in [0, 1), of which the first is not used (`csrc/library.cpp`); others are an error on the
    CPU. On CUDA, where to look would wait for the device, they draw some row.
    """
    if features.is_cuda:
        loader.require_cuda("k_means_plus_plus")
    result: Tensor = torch.ops.prunefuse.k_means_plus_plus(residuals, features, draws)
    return result


def nearest_neighbors(
    queries: Tensor, references: Tensor, k: int, cosine: bool, scale: float, input_roundoff: float
) -> tuple[Tensor, Tensor]:
    """Distances and indices (N, k) of the k nearest references (M, d) of queries (N, d) (`csrc/library.cpp`)."""
    if queries.is_cuda:
        loader.require_cuda("nearest_neighbors")
    result: tuple[Tensor, Tensor] = torch.ops.prunefuse.nearest_neighbors(
        queries, references, k, cosine, scale, input_roundoff
    )
    return result


def dynamics(logits: Tensor, labels: Tensor) -> Tensor:
    """What logits (N, C) say of their labels (N,): (6, N), in the order of `DYNAMICS`, from one read.

    A label that is no class is an error on the CPU. On CUDA, where to look would wait for the device, it gives NaN.
    """
    if logits.is_cuda:
        loader.require_cuda("dynamics")
    result: Tensor = torch.ops.prunefuse.dynamics(logits, labels)
    return result


def claim_(seen: Tensor, rejected: Tensor, indices: Tensor, labels: Tensor | None, classes: int) -> Tensor:
    """Marks a batch's samples as seen in this epoch and returns their indices, -1 for rows to leave out.

    What is wrong with a row is an error on the CPU, before anything is written; on CUDA the row is left out and counted.
    """
    if seen.is_cuda:
        loader.require_cuda("claim_")
    result: Tensor = torch.ops.prunefuse.claim_(seen, rejected, indices, labels, classes)
    torch.autograd.graph.increment_version((seen, rejected))
    return result


def divergence_(kept: Tensor, logits: Tensor, samples: Tensor, epsilon: float) -> Tensor:
    """How far the softmax of logits (B, C) is from that of their samples the time before; -1 where there is none."""
    if logits.is_cuda:
        loader.require_cuda("divergence_")
    result: Tensor = torch.ops.prunefuse.divergence_(kept, logits, samples, epsilon)
    torch.autograd.graph.increment_version(kept)
    return result


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
    """Appends values to their samples' rings, and the window that this completes to the sums (`csrc/library.cpp`)."""
    if ring.is_cuda:
        loader.require_cuda("push_")
    torch.ops.prunefuse.push_(ring, counts, sums, values, samples, window, divisor, keep, gain)
    torch.autograd.graph.increment_version((ring, counts, sums))


def scatter_(
    dense: Sequence[Tensor], small: Sequence[Tensor], kept: Sequence[Sequence[Tensor | None]]
) -> None:
    """Writes every small tensor into its dense one, in place, all in one call (on CUDA, a launch for every 141 tensors).

    Args:
        dense: tensors of any rank (at most 8), strides and dtype, all on one device; written in place.
        small: as many tensors; small[i] has dense[i]'s dtype, rank and device.
        kept: for each pair, one entry per axis: None for the whole axis, or sorted int64 indices (n,) into dense's axis,
            n being the small tensor's size there. `dense[i][numpy.ix_(*kept[i])] = small[i]` is what happens. On another
            device than the tensors they are copied, all at once; where a CUDA graph is captured they must be on it.

    Raises:
        RuntimeError: a pair's ranks, sizes, dtypes or devices do not fit, or an index is out of range (checked on the CPU
            only: on CUDA that would wait for the device). Nothing is written then.
    """
    if not dense and not small:
        return
    device = dense[0].device
    # Layers share their kept sets; each distinct tensor goes over once.
    numbers: dict[int, int] = {}
    indices: list[Tensor] = []
    kept_of_axis: list[int] = []
    for axes in kept:
        for axis in axes:
            if axis is None:
                kept_of_axis.append(-1)
                continue
            if id(axis) not in numbers:
                numbers[id(axis)] = len(indices)
                indices.append(axis.contiguous())
            kept_of_axis.append(numbers[id(axis)])
    elsewhere = [i for i, axis in enumerate(indices) if axis.device != device]
    if elsewhere:
        sizes = [len(indices[i]) for i in elsewhere]
        together = torch.cat([indices[i].cpu() for i in elsewhere]).to(device)
        for i, axis in zip(elsewhere, together.split(sizes), strict=True):
            indices[i] = axis
    if dense[0].is_cuda:
        loader.require_cuda("scatter_")
    with torch.no_grad():
        torch.ops.prunefuse.scatter_(list(dense), list(small), indices, kept_of_axis)
    # An operator on the stable ABI does not do this itself, and autograd relies on it.
    torch.autograd.graph.increment_version(dense)
