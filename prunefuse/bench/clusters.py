"""Cases of clustering and covering: k-means from the same start, and ProbCover's greedy cover."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from prunefuse.bench import peers, plain
from prunefuse.bench.race import Case, Contender, Task
from prunefuse.bench.shared import misplaced, normal
from prunefuse.selection import k_means, probcover

# Points, features, clusters.
_CLUSTERS = {
    "cpu": ((50_000, 64, 500), (50_000, 512, 100)),
    "cuda": ((500_000, 64, 500), (500_000, 512, 100)),
}
_COVERS = {"cpu": (10_000, 64, 100), "cuda": (20_000, 64, 100)}
_MOVES = 10  # of the centers


def cases(device: str) -> tuple[Case, ...]:
    """Those for ``"cpu"`` or ``"cuda"``."""
    n, d, b = _COVERS[device]
    return (
        *(
            Case(f"k-means {_MOVES} moves, {k:,} of {n:,} x {d}", partial(_k_means, n, d, k))
            for n, d, k in _CLUSTERS[device]
        ),
        Case(f"probcover {b:,} of {n:,} x {d}", partial(_probcover, n, d, b)),
    )


def _mixture(n: int, d: int, parts: int, device: torch.device) -> Tensor:
    """Normal clusters that overlap, so that centers move for long."""
    which = torch.arange(n, device=device) % parts
    return normal(n, d, device=device) + normal(parts, d, device=device, seed=1)[which]


def _k_means(n: int, d: int, k: int, device: torch.device) -> Task:
    x = _mixture(n, d, k, device)
    start = x[torch.randperm(n, generator=torch.Generator().manual_seed(0))[:k].to(device)]

    def objective(centers: Tensor) -> float:
        centers = centers.to(device).double()
        return sum(float(plain.squared_to_nearest(part, centers).sum()) for part in x.split(4096))

    truth = objective(plain.lloyd(x.double(), start.double(), _MOVES, plain.by_product))

    def error(centers: Tensor) -> float:
        return abs(objective(centers) - truth) / truth

    def ours() -> Tensor:
        found: Tensor = k_means(x, k, start=start, iterations=_MOVES + 1, tolerance=0).centers
        return found

    contenders = [
        Contender("prunefuse", "ours", lambda: ours),
        Contender(
            "torch: addmm, argmin", "peer", lambda: lambda: plain.lloyd(x, start, _MOVES, plain.by_product)
        ),
        Contender(
            "torch: cdist, argmin", "peer", lambda: lambda: plain.lloyd(x, start, _MOVES, plain.by_cdist)
        ),
    ]
    if device.type == "cpu":
        contenders.append(
            Contender("scikit-learn Lloyd", "peer", lambda: peers.scikit_learn_k_means(x, start, _MOVES))
        )

    def products() -> None:
        for _ in range(_MOVES + 1):
            for part in x.split(4096):
                torch.mm(part, start.T)

    limit = Contender("products", "limit", lambda: products)
    work = 2.0 * n * d * k * (_MOVES + 1)
    return Task((*contenders, limit), error, 1e-6, work, "GFLOP/s", cold=False)


def _probcover(n: int, d: int, b: int, device: torch.device) -> Task:
    x = _mixture(n, d, 10, device)
    delta = 0.9 * (2 * d) ** 0.5  # below the distance of most pairs
    contenders = (
        Contender("prunefuse", "ours", lambda: lambda: probcover(x, b, delta=delta)),
        Contender("torch: all distances kept", "peer", lambda: lambda: plain.greedy_cover(x, b, delta)),
        Contender(
            "two products", "limit", lambda: lambda: [x @ part.T for _ in range(2) for part in x.split(1024)]
        ),
    )
    truth = plain.greedy_cover(x.double(), b, delta).cpu()
    return Task(contenders, partial(misplaced, truth), 0.0, 4.0 * n * n * d, "GFLOP/s", cold=False)
