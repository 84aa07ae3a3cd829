"""What the operators cost in floating-point operations; without these torch's counter takes a custom operator for free.

An exponential counts as one operation, as an addition does. Comparisons and moves count nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

# Per logit: subtract the maximum, scale, exponentiate, add to the sum, multiply and add to the weighted sum.
FLOPS_PER_LOGIT = 6
# The same for every pass, and a multiply-add to the sum of probabilities.
FLOPS_PER_ENSEMBLE_LOGIT = FLOPS_PER_LOGIT + 2
# Per class of the mean: scale, logarithm, add to the sum, multiply and add to the weighted sum.
FLOPS_PER_MEAN = 5
# The same for the divergence of two softmax rows: add epsilon, logarithm, subtract, multiply, add.
FLOPS_PER_DIVERGENCE = FLOPS_PER_LOGIT + 5

_ops = torch.ops.prunefuse


@register_flop_formula([_ops.score, _ops.statistics, _ops.dynamics])
def _score_flops(logits_shape: tuple[int, ...], *_: Any, **__: Any) -> int:
    rows, classes = logits_shape
    return FLOPS_PER_LOGIT * rows * classes


@register_flop_formula(_ops.absorb_)
def _absorb_flops(state_shape: tuple[int, ...], logits_shape: tuple[int, ...], *_: Any, **__: Any) -> int:
    return _score_flops(logits_shape)


@register_flop_formula(_ops.score_ensemble)
def _ensemble_flops(logits_shape: tuple[int, ...], *_: Any, **__: Any) -> int:
    passes, rows, classes = logits_shape
    return rows * classes * (passes * FLOPS_PER_ENSEMBLE_LOGIT + FLOPS_PER_MEAN)


@register_flop_formula(_ops.ensemble_add_)
def _ensemble_add_flops(sums_shape: tuple[int, ...], *_: Any, **__: Any) -> int:
    rows, classes = sums_shape
    return rows * classes * FLOPS_PER_ENSEMBLE_LOGIT


@register_flop_formula(_ops.k_center_greedy)
def _k_center_flops(
    features_shape: tuple[int, ...], labeled_shape: tuple[int, ...], b: int, *_: Any, **__: Any
) -> int:
    rows, width = features_shape
    return k_center_flops(rows, width, labeled_shape[0] + b)


def k_center_flops(rows: int, width: int, centers: int) -> int:
    """A multiply-add per feature, row and center, as the full matrix of distances takes by a matrix product.

    The operator itself leaves out the distances that cannot matter; how many depends on the data.
    """
    return 2 * rows * width * centers


@register_flop_formula(_ops.k_means_plus_plus)
def _k_means_flops(
    residuals_shape: tuple[int, ...],
    features_shape: tuple[int, ...],
    draws_shape: tuple[int, ...],
    *_: Any,
    **__: Any,
) -> int:
    """A multiply-add per row, pick and number of its two factors, as their matrix products with the picks take."""
    return k_center_flops(features_shape[0], residuals_shape[1] + features_shape[1], draws_shape[0])


@register_flop_formula(_ops.nearest_neighbors)
def _nearest_neighbors_flops(
    queries_shape: tuple[int, ...], references_shape: tuple[int, ...], *_: Any, **__: Any
) -> int:
    rows, width = queries_shape
    return nearest_neighbors_flops(rows, references_shape[0], width)


def nearest_neighbors_flops(rows: int, references: int, width: int) -> int:
    """The matrix product, and a multiply-add per product; the few distances computed again are left out."""
    return 2 * rows * references * (width + 1)


@register_flop_formula(_ops.divergence_)
def _divergence_flops(kept_shape: tuple[int, ...], logits_shape: tuple[int, ...], *_: Any, **__: Any) -> int:
    rows, classes = logits_shape
    return FLOPS_PER_DIVERGENCE * rows * classes


@register_flop_formula(_ops.push_)
def _push_flops(
    ring_shape: tuple[int, ...],
    counts_shape: tuple[int, ...],
    sums_shape: tuple[int, ...],
    values_shape: tuple[int, ...],
    samples_shape: tuple[int, ...],
    window: int,
    *_: Any,
    **__: Any,
) -> int:
    """The mean of a window, and its squared deviations."""
    return 4 * window * values_shape[0]


@register_flop_formula([_ops.top_b, _ops.keep_best_, _ops.claim_, _ops.scatter_])
def _no_flops(*_: Any, **__: Any) -> int:
    return 0
