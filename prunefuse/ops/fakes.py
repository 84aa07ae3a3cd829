"""Shapes and dtypes of every operator's results, for torch.compile and torch.export."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def _result_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


@torch.library.register_fake("prunefuse::score")
def _(logits: Tensor, strategies: Sequence[int], probabilities: bool, temperature: float) -> Tensor:
    return logits.new_empty((len(strategies), logits.shape[0]), dtype=_result_dtype(logits))


@torch.library.register_fake("prunefuse::absorb_")
def _(state: Tensor, logits: Tensor, temperature: float) -> None:
    return None


@torch.library.register_fake("prunefuse::statistics")
def _(logits: Tensor, probabilities: bool, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, dtype = logits.shape[0], _result_dtype(logits)
    values = [logits.new_empty((rows,), dtype=dtype) for _ in range(3)]
    return logits.new_empty((rows,), dtype=torch.int64), values[0], values[1], values[2]


@torch.library.register_fake("prunefuse::score_ensemble")
def _(logits: Tensor, strategies: Sequence[int], probabilities: bool, temperature: float) -> Tensor:
    return logits.new_empty((len(strategies), logits.shape[1]), dtype=_result_dtype(logits))


@torch.library.register_fake("prunefuse::ensemble_add_")
def _(
    sums: Tensor, votes: Tensor, entropies: Tensor, logits: Tensor, probabilities: bool, temperature: float
) -> None:
    return None


@torch.library.register_fake("prunefuse::top_b")
def _(utilities: Tensor, b: int) -> tuple[Tensor, Tensor]:
    return utilities.new_empty((b,), dtype=torch.int64), utilities.new_empty((b,))


@torch.library.register_fake("prunefuse::keep_best_")
def _(
    best: Tensor,
    indices: Tensor,
    threshold: Tensor,
    counts: Tensor,
    b: int,
    batch: Tensor,
    batch_indices: Tensor | None,
) -> None:
    return None


@torch.library.register_fake("prunefuse::k_center_greedy")
def _(features: Tensor, labeled: Tensor, b: int, start: int) -> Tensor:
    return features.new_empty((b,), dtype=torch.int64)


@torch.library.register_fake("prunefuse::k_means_plus_plus")
def _(residuals: Tensor, features: Tensor, draws: Tensor) -> Tensor:
    return features.new_empty((draws.shape[0],), dtype=torch.int64)


@torch.library.register_fake("prunefuse::nearest_neighbors")
def _(
    queries: Tensor, references: Tensor, k: int, cosine: bool, scale: float, input_roundoff: float
) -> tuple[Tensor, Tensor]:
    shape = (queries.shape[0], k)
    return queries.new_empty(shape, dtype=_result_dtype(queries)), queries.new_empty(shape, dtype=torch.int64)


@torch.library.register_fake("prunefuse::dynamics")
def _(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.new_empty((6, logits.shape[0]), dtype=_result_dtype(logits))


@torch.library.register_fake("prunefuse::claim_")
def _(seen: Tensor, rejected: Tensor, indices: Tensor, labels: Tensor | None, classes: int) -> Tensor:
    return torch.empty_like(indices)


@torch.library.register_fake("prunefuse::divergence_")
def _(kept: Tensor, logits: Tensor, samples: Tensor, epsilon: float) -> Tensor:
    return logits.new_empty((logits.shape[0],), dtype=torch.float64)


@torch.library.register_fake("prunefuse::push_")
def _(
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
    return None


@torch.library.register_fake("prunefuse::scatter_")
def _(
    dense: Sequence[Tensor], small: Sequence[Tensor], kept: Sequence[Tensor], kept_of_axis: Sequence[int]
) -> None:
    return None
