"""How well predicted scores agree with true ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunefuse.ops.arrays import as_tensor, require_floating, require_fraction


@dataclass(frozen=True)
class Agreement:
    """How well predicted scores agree with true ones.

    >>> from prunefuse.extrapolation import agreement
    >>> agreement(torch.tensor([1.0, 2.0, 3.0, 5.0]), torch.tensor([1.0, 2.0, 4.0, 3.0]), keep=0.25).overlap
    0.0

    Attributes:
        samples: How many were compared.
        pearson, spearman: The correlations. They are None where one side is constant.
        overlap: The part of the samples kept by true scores that are also kept by predicted ones. Random scores would have
            ``keep``.
        keep: The fraction of samples that is kept for that, those of the highest scores.
    """

    samples: int
    pearson: float | None
    spearman: float | None
    overlap: float
    keep: float


def agreement(predicted: Any, true: Any, keep: float = 0.5) -> Agreement:
    """An `Agreement` of predicted scores with true ones.

    >>> from prunefuse.extrapolation import agreement
    >>> round(agreement(torch.tensor([1.0, 2.0, 3.0, 5.0]), torch.tensor([1.0, 2.0, 4.0, 3.0])).spearman, 2)
    0.8

    Args:
        predicted: (N,) floating, finite.
        true: (N,), likewise.
        keep: The fraction that is kept, in (0, 1): round(keep N) samples, at least one. Equals go by lower index.

    Raises:
        TypeError: Something is not a floating array.
        ValueError: Shapes differ or are empty, a value is not finite, or keep is not allowed.
    """
    p, t = as_tensor("predicted", predicted), as_tensor("true", true)
    for name, tensor in (("predicted", p), ("true", t)):
        require_floating(name, tensor)
        if tensor.dim() != 1 or tensor.shape != t.shape or len(t) == 0:
            raise ValueError(f"{name} must have shape ({len(t)},), not empty, got {tuple(tensor.shape)}")
        if not bool(tensor.isfinite().all()):
            raise ValueError(
                f"{name} must be finite, but that of sample {int((~tensor.isfinite()).nonzero()[0])} is not"
            )
    require_fraction("keep", keep)
    p, t = p.to("cpu", torch.float64), t.to("cpu", torch.float64)
    from scipy.stats import rankdata

    ranks = [torch.from_numpy(rankdata(side.numpy())) for side in (p, t)]
    count = max(1, round(keep * len(t)))
    kept = [set(side.argsort(descending=True, stable=True)[:count].tolist()) for side in (p, t)]
    return Agreement(len(t), pearson(p, t), pearson(*ranks), len(kept[0] & kept[1]) / count, float(keep))


def pearson(a: Tensor, b: Tensor) -> float | None:
    """The correlation of two vectors, in float64; None where one is constant."""
    if bool((a == a[0]).all()) or bool((b == b[0]).all()):
        return None
    a, b = (side.double() - side.double().mean() for side in (a, b))
    return max(-1.0, min(1.0, float((a / a.norm()) @ (b / b.norm()))))
