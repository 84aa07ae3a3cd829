"""Nearest neighbors among more references than brute force can search, by an index of faiss."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunefuse._extras import needed_for

# Differences of found neighbors that are held at a time.
_BLOCK_VALUES = 1 << 22


class Index:
    """An index over references (M, d), described as faiss' factory and parameter space write it, with ``;`` between.

    For the cosine metric rows are brought to unit length, where Euclidean distances have the same order.

    Raises:
        ImportError: faiss is not installed.
        ValueError: faiss does not know the description, or cannot build it from so many references.
    """

    def __init__(self, references: Tensor, metric: str, description: str) -> None:
        with needed_for("index"):
            import faiss
        if not isinstance(description, str):
            raise TypeError(
                f"index must be a string such as 'IVF1024,Flat', got {type(description).__name__}"
            )
        self._references, self._cosine, self._description = references, metric == "cosine", description
        factory, _, parameters = description.partition(";")
        rows = self._rows(references)
        try:
            self._index = faiss.index_factory(rows.shape[1], factory)
            self._index.train(rows)
            self._index.add(rows)
            if parameters:
                faiss.ParameterSpace().set_index_parameters(self._index, parameters)
        except RuntimeError as error:  # faiss has no other
            reason = re.sub(r"^Error in .* at \S+:\d+: ", "", str(error).strip())
            raise ValueError(
                f"index must be one that faiss can build from {len(rows)} references, got {description!r}: {reason}"
            ) from error

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """As `nearest_neighbors`: what the index finds, at exact distances."""
        _, found = self._index.search(self._rows(queries), k)
        if found.size and found.min() < 0:
            row = int((found < 0).any(1).nonzero()[0][0])
            raise ValueError(
                f"index must find k = {k} neighbors, got {int((found[row] >= 0).sum())} of row {row} by {self._description!r}; "
                "let it search more, as by ';nprobe=32' or ';efSearch=128'"
            )
        indices = torch.from_numpy(found).sort(dim=1).values.to(queries.device)
        squared = torch.empty(indices.shape, dtype=torch.float64, device=queries.device)
        step = max(1, _BLOCK_VALUES // (k * queries.shape[1]))
        for first in range(0, len(queries), step):
            part = slice(first, first + step)
            near = self._wide(self._references[indices[part]])
            squared[part] = (near - self._wide(queries[part])[:, None]).square().sum(2)
            if self._cosine:
                # The squared distance of unit vectors is twice the cosine distance; a row of zeros is 1 from all.
                zero = (near == 0).all(2) | (queries[part] == 0).all(1)[:, None]
                squared[part] = torch.where(zero, 1.0, squared[part] / 2)
        distances = squared if self._cosine else squared.sqrt()
        distances, order = distances.sort(dim=1, stable=True)
        dtype = torch.float64 if queries.dtype == torch.float64 else torch.float32
        return distances.to(dtype), indices.gather(1, order)

    def _rows(self, rows: Tensor) -> np.ndarray[Any, Any]:
        """What faiss is given: float32, contiguous; nothing is copied where rows are that already."""
        return (self._wide(rows) if self._cosine else rows).float().cpu().contiguous().numpy()

    def _wide(self, rows: Tensor) -> Tensor:
        rows = rows.double()
        return torch.nn.functional.normalize(rows, dim=-1, eps=1e-300) if self._cosine else rows
