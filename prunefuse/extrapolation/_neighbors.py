"""The k nearest neighbors of every row, exactly, at the speed of a matrix product."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prunefuse import ops
from prunefuse._options import one_of
from prunefuse.ops.arrays import as_tensor, like, require_count, require_floating

METRIC = one_of("euclidean", "cosine")


def nearest_neighbors(
    queries: Any, references: Any, k: int, *, metric: str = "euclidean", index: str | None = None
) -> tuple[Any, Any]:
    """Distances and indices of the k references nearest to every query, exact unless ``index`` is given.

    >>> from prunefuse.extrapolation import nearest_neighbors
    >>> distances, indices = nearest_neighbors(torch.tensor([[0.9]]), torch.tensor([[0.0], [1.0], [3.0]]), k=2)
    >>> indices.tolist()
    [[1, 0]]

    One matrix product, in blocks, says which references may be among the nearest. The product's own error is the margin, so
    none is missed. Their distances are computed again from differences in float64. So distances of near-duplicates neither
    cancel nor turn negative. Their order is the true one, also where torch multiplies in TF32 or bfloat16. Extra memory is
    O(N k + M) and tiles of a few megabytes. A GPU takes up to a gigabyte more, to prepare the references once.
    Memory-mapped arrays are read as they lie on disk.

    On a GPU it waits for the device once, before it searches, to check the values. What it returns is not waited for.

    Args:
        queries: (N, d) floating, as a tensor, a NumPy array or anything with DLPack.
        references: (M, d), of the same dtype and device.
        k: How many, 1 to M.
        metric: "euclidean", or "cosine": 1 − cosine similarity, which is 1 where a row is all zeros.
        index: For references beyond brute force, an index of faiss (``pip install "prunefuse[faiss]"``) to search instead.
            It is written as faiss' factory does, and after a semicolon its search parameters: ``"IVF1024,Flat;nprobe=32"``.
            It may miss neighbors; the distances of those found are exact. It is built on the CPU, in float32, at every
            call.

    Returns:
        Distances (N, k), ascending, float64 for float64 and float32 for all other dtypes; and indices (N, k) int64 of the
        references. Equals go by lower index. A query that is among the references finds itself first.

    Raises:
        TypeError: queries or references are not a floating array, or k is not an integer.
        ValueError: Shapes, dtypes or devices do not go together. Or k, metric or index is not allowed, a value is not
            finite, or the index found fewer than k.
        MissingPackageError: index is given and faiss is not installed.
    """
    q, r = require_rows("queries", queries), require_rows("references", references)
    if r.shape[1] != q.shape[1]:
        raise ValueError(f"references must have the {q.shape[1]} features of queries, got {r.shape[1]}")
    if (r.dtype, r.device) != (q.dtype, q.device):
        raise ValueError(
            f"references must have the dtype and device of queries, {q.dtype} on {q.device}, "
            f"got {r.dtype} on {r.device}"
        )
    k = require_count("k", k, lowest=1)
    if k > len(r):
        raise ValueError(f"k must be at most the number of references, {len(r)}, got {k}")
    METRIC("metric", metric)
    extents = torch.stack((extent(r), extent(q))).tolist()
    references_largest = largest_of("references", r, extents[0])
    largest = largest_of("queries", q, extents[1])
    distances, indices = Finder(r, metric, index, references_largest).find(q, k, largest)
    return like(queries, distances), like(queries, indices)


def require_rows(name: str, array: Any) -> Tensor:
    """A floating matrix as a tensor; TypeError or ValueError, naming it, otherwise."""
    tensor = as_tensor(name, array)
    require_floating(name, tensor)
    if tensor.dim() != 2 or tensor.shape[1] == 0:
        raise ValueError(f"{name} must have shape (rows, features), got {tuple(tensor.shape)}")
    return tensor


class Finder:
    """References to be searched more than once; arguments as `nearest_neighbors`, checked before, and their `magnitude`.

    On a GPU it does not wait for the device, but for an index of faiss.
    """

    def __init__(self, references: Tensor, metric: str, index: str | None, largest: float) -> None:
        self._references, self._metric, self._largest = references, metric, largest
        self._index = None
        if index is not None:
            from prunefuse.extrapolation._approximate import Index

            self._index = Index(references, metric, index)

    def find(self, queries: Tensor, k: int, largest: float) -> tuple[Tensor, Tensor]:
        """Distances and indices (N, k) for queries whose `magnitude` is ``largest``."""
        if self._index is not None:
            return self._index.search(queries, k)
        return ops.nearest_neighbors(
            queries,
            self._references,
            k,
            self._metric == "cosine",
            _scale(max(self._largest, largest), queries.dtype),
            _input_roundoff(queries),
        )


def magnitude(name: str, x: Tensor, number: Callable[[int], int] = int) -> float:
    """The largest magnitude; ValueError where a value is not finite, with what ``number`` calls its row.

    On a GPU it waits for the device once.
    """
    return largest_of(name, x, extent(x).tolist(), number)


def extent(x: Tensor) -> Tensor:
    """The least and the largest value (2,), float64; NaN where there is one; 0 where there is no value."""
    return torch.stack(torch.aminmax(x)).double() if x.numel() else x.new_zeros(2, dtype=torch.float64)


def largest_of(name: str, x: Tensor, extent: list[float], number: Callable[[int], int] = int) -> float:
    """`magnitude`, of a tensor whose `extent` is known."""
    low, high = extent
    largest = max(-low, high)
    if not math.isfinite(largest) or math.isnan(low):
        row = next(i for i, values in enumerate(x) if not bool(values.isfinite().all()))
        raise ValueError(f"{name} must be finite, but row {number(row)} is not")
    return largest


def _scale(largest: float, dtype: torch.dtype) -> float:
    """A power of two that brings the largest magnitude near 1 where squares might leave the dtype's range."""
    room = 2.0**300 if dtype == torch.float64 else 2.0**30
    if largest == 0 or 1 / room < largest < room:
        return 1.0
    # What float32 and float64 can hold, as a factor.
    limit = 1000 if dtype == torch.float64 else 120
    return 2.0 ** max(-limit, min(limit, -math.frexp(largest)[1]))


_ROUNDOFF = {"tf32": 2.0**-11, "bf16": 2.0**-8}


def _input_roundoff(x: Tensor) -> float:
    """Of the values that torch's matrix product multiplies: it may be allowed to round float32 to TF32 or bfloat16 first."""
    if x.dtype == torch.float64:
        return 0.0
    # Without a backend's name torch raises where its older and newer settings are mixed. One that is wider counts, too:
    # a margin that is too large costs time alone.
    backends: Any = torch.backends
    settings = (backends.cuda.matmul if x.is_cuda else backends.mkldnn.matmul, backends.mkldnn, backends)
    return max(_ROUNDOFF.get(str(getattr(one, "fp32_precision", "")), 0.0) for one in settings)
