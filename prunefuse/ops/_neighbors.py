"""Exact nearest neighbors."""

from __future__ import annotations

import torch
from torch import Tensor

from prunefuse.ops._operator import operator, result_dtype


def nearest_neighbors_flops(rows: int, references: int, width: int) -> int:
    """The matrix product, and a multiply-add per product; the few distances computed again are left out."""
    return 2 * rows * references * (width + 1)


def _empty_neighbors(queries: Tensor, references: Tensor, k: int, *_: object) -> tuple[Tensor, Tensor]:
    shape = (queries.shape[0], k)
    return queries.new_empty(shape, dtype=result_dtype(queries)), queries.new_empty(shape, dtype=torch.int64)


@operator(
    fake=_empty_neighbors,
    flops=lambda queries, references, *_: nearest_neighbors_flops(queries[0], references[0], queries[1]),
)
def nearest_neighbors(
    queries: Tensor, references: Tensor, k: int, cosine: bool, scale: float, input_roundoff: float
) -> tuple[Tensor, Tensor]:
    """Distances and indices (N, k) of the k nearest references (M, d) of queries (N, d) (`csrc/library.cpp`).

    >>> from prunefuse import ops
    >>> ops.nearest_neighbors(torch.tensor([[0.9]]), torch.tensor([[0.0], [1.0]]), 1, False, 1.0, 0.0)[1].tolist()
    [[1]]

    The reference takes every distance from differences, a query at a time.
    """
    x, y = queries.double() * scale, references.double() * scale  # (N, d), (M, d)
    if cosine:
        x, y = (rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-300) for rows in (x, y))
    distances = queries.new_empty((len(x), k), dtype=result_dtype(queries))
    indices = queries.new_empty((len(x), k), dtype=torch.int64)
    for i, query in enumerate(x):
        squared = (query - y).square().sum(1)  # (M,)
        if cosine:
            # A row of zeros is at a right angle to every other.
            squared = torch.where(~query.any() | ~y.any(1), 2.0, squared)
        squared, order = squared.sort(stable=True)  # (M,)
        distances[i] = squared[:k] / 2 if cosine else squared[:k].sqrt() / scale
        indices[i] = order[:k]
    return distances, indices
