"""Cases of the search for nearest neighbors, beside the matrix product that nobody who searches all can avoid."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from prunefuse import ops
from prunefuse.bench import peers
from prunefuse.bench.race import Case, Contender, Task, largest
from prunefuse.bench.shared import EPSILON, normal
from prunefuse.extrapolation import nearest_neighbors

# Queries, references, features, neighbors.
_SEARCHES = {
    "cpu": ((40_000, 10_000, 512, 20), (10_000, 10_000, 64, 20), (4_000, 10_000, 512, 1_000)),
    "cuda": ((200_000, 50_000, 512, 20), (200_000, 50_000, 64, 20)),
}
_CHECKED = 200  # queries whose neighbors are computed in float64
_CHUNK = 1 << 24  # distances at a time in the forms of plain torch and NumPy


def cases(device: str) -> tuple[Case, ...]:
    """Those for ``"cpu"`` or ``"cuda"``."""
    return tuple(
        Case(f"neighbors {n:,} in {m:,} x {d}, k = {k:,}", partial(_neighbors, n, m, d, k))
        for n, m, d, k in _SEARCHES[device]
    )


def _neighbors(n: int, m: int, d: int, k: int, device: torch.device) -> Task:
    queries, references = normal(n, d, device=device), normal(m, d, device=device, seed=1)
    rows = torch.arange(0, n, n // _CHECKED, device=device)
    truth = ops.nearest_neighbors.reference(queries[rows].double(), references.double(), k, False, 1.0, 0.0)[
        0
    ]

    def error(distances: Any) -> float:
        return largest(torch.as_tensor(distances)[rows.cpu()].double() - truth.cpu())

    def chunks() -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = queries.split(max(1, _CHUNK // m))
        return parts

    def by_product() -> Tensor:
        norms = references.square().sum(1)
        found = []
        for block in chunks():
            keys = torch.addmm(norms, block, references.T, alpha=-2)
            nearest = keys.topk(k, largest=False).values
            found.append((nearest + block.square().sum(1, keepdim=True)).clamp_min(0).sqrt())
        return torch.cat(found)

    def by_cdist() -> Tensor:
        return torch.cat([torch.cdist(block, references).topk(k, largest=False).values for block in chunks()])

    contenders = [
        Contender(
            "prunefuse", "ours", lambda: lambda: nearest_neighbors(queries, references, k)[0], Tensor.cpu
        ),
        Contender("torch: addmm, topk", "peer", lambda: by_product, Tensor.cpu),
        Contender("torch: cdist, topk", "peer", lambda: by_cdist, Tensor.cpu),
    ]
    if device.type == "cpu":
        contenders += [
            Contender("faiss IndexFlatL2", "peer", lambda: peers.faiss_flat(queries, references, k)),
            Contender("scikit-learn brute", "peer", lambda: peers.scikit_learn_brute(queries, references, k)),
        ]
    out = torch.empty(n, m, device=device)
    limit = Contender("product", "limit", lambda: lambda: torch.mm(queries, references.T, out=out))
    tolerance = 2 * EPSILON * largest(truth)
    return Task((*contenders, limit), error, tolerance, 2.0 * n * m * d, "GFLOP/s", cold=False)
