"""Optimal brain surgery on the matrix of one layer: what removing columns costs, and how the others make up for it.

For inputs X (columns of the matrix x samples) and ``H = 2XXᵀ + λI`` (Hassibi and Stork 1993, Frantar and Alistarh 2022),
removing the columns P of W costs ``Σᵢ W[i,P](H⁻¹[P,P])⁻¹W[i,P]ᵀ`` if the others move to their best places, and for kept
columns K those are ``Ŵ = (WH)[:,K](H[K,K])⁻¹``. Here ``G = XXᵀ + λI`` takes the place of H: the twos cancel in Ŵ, and
half the cost is the squared error itself, ``‖(W - Ŵ)X‖² + λ‖W - Ŵ‖²``. λ is relative, a multiple of the mean of the
diagonal of XXᵀ. Everything is float64 and batched over the groups of a grouped convolution.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from prunefuse.pruning._graph.couplings import Ids


def damped(gram: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """``XXᵀ + λI`` and its λ.

    Args:
        gram: (groups, columns, columns) float64, ``XXᵀ`` of every group.
        damping: λ over the mean of the diagonal.

    Returns:
        (groups, columns, columns), (groups, 1, 1).
    """
    mean = gram.diagonal(dim1=1, dim2=2).mean(1)
    amount = (damping * mean).clamp_min(1e-100 if damping else 0)[:, None, None]  # inputs may all be zero
    return gram + amount * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device), amount


def _cholesky(matrix: Tensor) -> Tensor:
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed.any():
        raise ValueError(
            "damping must be larger, or calibration must be more inputs: those of a layer do not span its columns, so its "
            "weights are not determined"
        )
    return factor


def removal_costs(weight: Tensor, gram: Tensor, labels: Ids, damping: float) -> dict[int, float]:
    """What removing each set of columns costs, each on its own.

    Args:
        weight: (groups, rows, columns) float64.
        gram: (groups, columns, columns) float64, ``XXᵀ`` of the inputs.
        labels: (columns,) which columns leave together, those of the same label; 0 = stays.
        damping: λ over the mean of the diagonal.

    Returns:
        Label -> ``Σᵢ W[i,P](G⁻¹[P,P])⁻¹W[i,P]ᵀ``, summed over groups: the increase of
        ``‖(W - Ŵ)X‖² + λ‖W - Ŵ‖²``.

    Raises:
        ValueError: the matrix is not positive definite.
    """
    inverse = torch.cholesky_inverse(_cholesky(damped(gram, damping)[0]))
    order = np.argsort(labels, kind="stable")
    channels, first, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    costs: dict[int, float] = {}
    for size in np.unique(sizes[channels != 0]):  # sets of one size at once
        some = np.flatnonzero((sizes == size) & (channels != 0))
        sets = torch.from_numpy(order[first[some][:, None] + np.arange(size)]).to(weight.device)
        own = inverse[:, sets[:, :, None], sets[:, None, :]]  # (groups, sets, size, size)
        gone = weight[:, :, sets].permute(0, 2, 3, 1)  # (groups, sets, size, rows)
        cost = (torch.linalg.solve(own, gone) * gone).sum((0, 2, 3))
        costs |= dict(zip(channels[some].tolist(), cost.tolist(), strict=True))
    return costs


def refit(weight: Tensor, gram: Tensor, cross: Tensor, damping: float) -> Tensor:
    """The matrix nearest to wanted outputs Y on the inputs X that are left.

    Minimizes ``‖Y - ŴX‖² + λ‖W - Ŵ‖²`` by ``Ŵ = (YXᵀ + λW)(XXᵀ + λI)⁻¹``. Where X is rows K of the dense layer's inputs
    and Y its outputs, that is ``(WH)[:,K](H[K,K])⁻¹``.

    Args:
        weight: (groups, rows, columns) float64, W: the dense weights of the columns that are left.
        gram: (groups, columns, columns) float64, ``XXᵀ``.
        cross: (groups, rows, columns) float64, ``YXᵀ``.
        damping: λ over the mean of the diagonal.

    Returns:
        (groups, rows, columns).

    Raises:
        ValueError: the matrix is not positive definite.
    """
    matrix, amount = damped(gram, damping)
    return torch.cholesky_solve((cross + amount * weight).mT, _cholesky(matrix)).mT
