"""BADGE: a batch that is uncertain and diverse at once, by k-means++ over gradient embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from prunefuse import ops
from prunefuse.errors import TooFewRowsError
from prunefuse.ops.reference import log_probabilities
from prunefuse.ops.transfer import row_extents, upload


def badge(logits: Tensor, features: Tensor, b: int, generator: torch.Generator) -> tuple[Tensor, int]:
    """Picks b rows by the k-means++ seeding over gradient embeddings (Ash et al. 2020, *Deep Batch Active Learning by
    Diverse, Uncertain Gradient Lower Bounds*).

    A row's embedding is the gradient of the cross-entropy with its own prediction ŷ as label, with respect to the last
    layer: (p − onehot(ŷ)) ⊗ h, of C·d numbers. It is never formed: ‖g − g'‖² follows from the two factors' products. The
    first pick has the largest embedding, as in the authors' code; each later one is drawn with probability proportional
    to its squared distance from the nearest pick. Where all that are left coincide with picks, the draw is uniform.

    On a GPU it waits for the device once, at the end, for the picks.

    Args:
        logits: (N, C), floating.
        features: (N, d), floating, on the same device: what enters the last layer.
        b: how many rows to pick.
        generator: the source of randomness, on the CPU.

    Returns:
        Rows (b,) int64 on the CPU, in pick order, and the number of rows that cannot be picked: those with a NaN, without
        a logit above −inf, or with a feature that is not finite. Extra memory is O(N·(C + d)).

    Raises:
        ValueError: fewer than b rows can be picked.
    """
    residual = log_probabilities(logits.float(), False, 1.0).exp()
    h = features.float()
    least, most = row_extents(h)
    valid = residual.isfinite().all(1) & least.isfinite() & most.isfinite()
    top = residual.argmax(1, keepdim=True)
    # p1 - 1 as minus the sum of the others: precise where p1 is almost 1.
    residual.scatter_(1, top, 0).scatter_(1, top, -residual.sum(1, keepdim=True))
    # The first pick takes none; drawn one by one or together, the numbers are the same.
    draws = torch.zeros(b, dtype=torch.float64)
    draws[1:] = torch.rand(max(b - 1, 0), dtype=torch.float64, generator=generator)
    if b > len(h):
        raise _too_few(b, int(valid.sum()), len(h))
    picks = ops.k_means_plus_plus(
        residual, _in_range(h, torch.maximum(most, -least), valid), upload(draws, h.device)
    )
    told = torch.cat((picks, valid.sum(0, keepdim=True))).cpu()
    selectable = int(told[-1])
    if b > selectable:
        raise _too_few(b, selectable, len(h))
    return told[:-1], len(h) - selectable


def _in_range(features: Tensor, magnitudes: Tensor, valid: Tensor) -> Tensor:
    """Features times a power of two that brings the largest magnitude of a valid row near 1: draws do not depend on it."""
    if not features.numel():
        return features
    exponent = torch.frexp(magnitudes.where(valid, 0).amax()).exponent
    return torch.ldexp(features, -exponent.clamp(-126, 126))  # powers that float32 holds


def _too_few(b: int, selectable: int, rows: int) -> ValueError:
    said = f"b is {b}, but only {selectable} of {rows} rows can be picked (the others are not finite)"
    return TooFewRowsError(said, selectable, rows)
