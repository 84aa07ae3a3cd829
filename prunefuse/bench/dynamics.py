"""Cases of training dynamics: what a batch says of its labels, and how far its softmax rows have moved."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from prunefuse import ops
from prunefuse._seeds import generator
from prunefuse.bench import plain
from prunefuse.bench.race import Case, Contender, Task, largest
from prunefuse.bench.shared import by_chunks, compiled, limits, normal, tolerance
from prunefuse.ops import reference

# Rows and classes.
_BATCHES = {"cpu": ((200_000, 10), (50_000, 1000)), "cuda": ((6_400_000, 10), (64_000, 1000))}
_EPSILON = 1e-8


def cases(device: str) -> tuple[Case, ...]:
    """Those for ``"cpu"`` or ``"cuda"``."""
    batches = _BATCHES[device]
    return (
        *(Case(f"dynamics {n:,} x {c:,} float32", partial(_dynamics, n, c)) for n, c in batches),
        *(Case(f"divergence {n:,} x {c:,} float32", partial(_divergence, n, c)) for n, c in batches),
    )


def _dynamics(n: int, c: int, device: torch.device) -> Task:
    x = normal(n, c, device=device).mul_(2)
    labels = torch.randint(c, (n,), generator=generator(0, "labels")).to(device)
    both = torch.cat([x.double().cpu(), labels.double().cpu()[:, None]], 1)
    truth = by_chunks(lambda rows: reference.dynamics(rows[:, :-1], rows[:, -1].long()), both)

    def error(found: Tensor) -> float:
        # A loss or a margin is off in proportion to its size.
        return largest((found.double().cpu() - truth) / truth.abs().clamp_min(1))

    contenders = (
        Contender("prunefuse", "ours", lambda: lambda: ops.dynamics(x, labels)),
        Contender("torch.compile: log_softmax", "peer", compiled(plain.dynamics, x, labels)),
        Contender("torch: log_softmax", "peer", lambda: lambda: plain.dynamics(x, labels)),
    )
    return Task(
        (*contenders, *limits(x)),
        error,
        tolerance(c),
        x.nbytes + 8 * n + 6 * 4 * n,
        "GB/s",
        yardstick="torch: log_softmax",
    )


def _divergence(n: int, c: int, device: torch.device) -> Task:
    """Every row's state is replaced: from the second call on by itself, at the same cost."""
    before, x = (normal(n, c, device=device, seed=seed).mul_(2) for seed in (1, 2))
    rows = torch.randperm(n, generator=generator(0, "rows")).to(device)
    both = torch.cat([before, x], 1)

    def divergences(part: Tensor) -> Tensor:
        old, new = (torch.softmax(logits, 1) for logits in part.split(c, 1))
        return (new * ((new + _EPSILON).log() - (old + _EPSILON).log())).abs().sum(1)[None]

    truth = by_chunks(divergences, both)[0]
    p = torch.empty_like(before)
    p[rows] = torch.softmax(before, 1)
    first = (p + _EPSILON).log()
    logs, probabilities = first.clone(), p.clone()

    def reset() -> None:
        logs.copy_(first)
        probabilities.copy_(p)

    contenders = (
        Contender("prunefuse", "ours", lambda: lambda: ops.divergence_(logs, x, rows, _EPSILON)),
        Contender(
            "torch.compile: softmax, two logs",
            "peer",
            compiled(plain.divergence_, probabilities, x, rows),
        ),
        Contender(
            "torch: softmax, two logs", "peer", lambda: lambda: plain.divergence_(probabilities, x, rows)
        ),
    )

    def error(found: Tensor) -> float:
        return largest((found.double().cpu() - truth) / truth.abs().clamp_min(1))

    return Task(
        (*contenders, *limits(x)),
        error,
        8 * tolerance(c),
        3 * x.nbytes,
        "GB/s",
        reset=reset,
        yardstick="torch: softmax, two logs",
    )
