"""The table of cases: what is measured, at which sizes, beside whom."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import prunefuse
from prunefuse import models, ops
from prunefuse.bench import clusters, dynamics, language, neighbors, peers, plain, scorers
from prunefuse.bench.race import Case, Contender, Run, Task, largest
from prunefuse.bench.shared import (
    STRATEGIES,
    by_chunks,
    compiled,
    limits,
    misplaced,
    never,
    normal,
    off,
    short,
    stacked,
    tolerance,
)
from prunefuse.pruning._graph.copies import named_tensors

# Rows and classes. A GPU is given at least 256 MB, below which launching a kernel is what one would measure.
_POOLS = {
    "cpu": ((200_000, 10), (100_000, 100), (50_000, 1000), (2_000, 128_000)),
    "cuda": ((6_400_000, 10), (640_000, 100), (64_000, 1000), (2_000, 128_000)),
}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def cases(device: str) -> tuple[Case, ...]:
    """The table for ``"cpu"`` or ``"cuda"``."""
    pools = _POOLS[device]
    scores = [
        Case(f"score {n:,} x {c:,} {short(dtype)}", partial(_scores, n, c, dtype))
        for dtype in _DTYPES
        for n, c in pools
    ]
    statistics = [
        Case(f"statistics {n:,} x {c:,} float32", partial(_statistics, n, c)) for n, c in pools[1:3]
    ]
    return (
        *scores,
        *statistics,
        *scorers.cases(device),
        *language.cases(device),
        Case("top 10,000 of 1,000,000", partial(_top_b, 1_000_000, 10_000)),
        Case("stream of 100,000 x 100, best 1,000", partial(_stream, 100_000, 100, 1_000, 10)),
        Case("stream of 500,000 x 100, best 5,000", partial(_stream, 500_000, 100, 5_000, 50)),
        Case("stream of 50,000 x 1,000, best 500", partial(_stream, 50_000, 1_000, 500, 10)),
        Case("k-center 1,000 of 50,000 x 64", partial(_k_center, 50_000, 64, 1_000)),
        Case("k-means++ 100 of 50,000 x (10 x 64)", partial(_k_means, 50_000, 10, 64, 100)),
        *clusters.cases(device),
        *neighbors.cases(device),
        *dynamics.cases(device),
        Case("fuse scatter ResNet-164", partial(_scatter, "resnet164", 32)),
        Case("fuse scatter ResNet-50", partial(_scatter, "torchvision:resnet50", 64)),
    )


def _scores(n: int, c: int, dtype: torch.dtype, device: torch.device) -> Task:
    x = normal(n, c, device=device, dtype=dtype).mul_(2)
    truth = by_chunks(lambda rows: ops.score.reference(rows, (0, 1, 2), False, 1.0), x)
    contenders = [
        Contender("prunefuse", "ours", lambda: lambda: prunefuse.score(x, STRATEGIES), stacked),
        Contender("torch.compile: log-sum-exp, two max", "peer", compiled(plain.scores_fusible, x)),
        Contender("torch: log_softmax, two max", "peer", lambda: lambda: plain.scores_eager(x)),
        Contender("torch: softmax, topk", "peer", lambda: lambda: plain.scores_topk(x)),
    ]
    if device.type == "cpu" and dtype == torch.float32:  # what NumPy can hold
        few = x[: n // 100]
        contenders += [
            Contender("modAL", "peer", lambda: peers.modal_scores(x), peers.from_margins),
            Contender(
                "scikit-activeml", "peer", lambda: peers.scikit_activeml_scores(x), peers.from_utilities
            ),
            Contender("baal", "peer", lambda: peers.baal_scores(x), peers.from_confidence),
            Contender("small-text", "peer", lambda: peers.small_text_scores(few), peers.from_small_text, 100),
        ]
    return Task(
        (*contenders, *limits(x)),
        off(truth),
        tolerance(c),
        x.nbytes + 3 * 4 * n,
        "GB/s",
        yardstick="torch: log_softmax, two max",
    )


def _statistics(n: int, c: int, device: torch.device) -> Task:
    x = normal(n, c, device=device).mul_(2)
    truth = by_chunks(lambda rows: torch.stack(ops.statistics.reference(rows, False, 1.0)), x)

    def error(found: Sequence[Tensor]) -> float:
        # A probability is at most 1, the log-sum-exp is about ln C: its error counts in proportion.
        deviations = torch.stack([one.double().cpu() for one in found]) - truth
        deviations[1] /= truth[1].abs().clamp_min(1)
        return largest(deviations)

    contenders = (
        Contender("prunefuse", "ours", lambda: lambda: prunefuse.statistics(x)),
        Contender("torch.compile: log-sum-exp, two max", "peer", compiled(plain.statistics_fusible, x)),
        Contender("torch: log-sum-exp, two max", "peer", lambda: lambda: plain.statistics_fusible(x)),
    )
    return Task(
        (*contenders, *limits(x)),
        error,
        tolerance(c),
        x.nbytes + (8 + 3 * 4) * n,
        "GB/s",
        yardstick="torch: log-sum-exp, two max",
    )


def _top_b(n: int, b: int, device: torch.device) -> Task:
    """The b highest of n utilities. torch.compile calls torch.topk for it, so it is no contender of its own."""
    utilities = normal(n, device=device)
    truth = utilities.cpu().double().sort(descending=True, stable=True).indices[:b]

    def in_order(picks: Tensor) -> Tensor:
        """Equals by lower index, which no peer promises (modAL's are in no order at all)."""
        picks = picks.cpu().sort().values
        return picks[utilities.cpu()[picks].sort(descending=True, stable=True).indices]

    contenders = [
        Contender("prunefuse", "ours", lambda: lambda: prunefuse.top_b(utilities, b)[0]),
        Contender("torch.topk", "peer", lambda: lambda: utilities.topk(b).indices, in_order),
        Contender("torch.argsort", "peer", lambda: lambda: utilities.argsort(descending=True)[:b], in_order),
    ]
    if device.type == "cpu":
        contenders += [
            Contender("modAL (unsorted)", "peer", lambda: peers.modal_top(utilities, b), in_order),
            Contender(
                "scikit-activeml",
                "peer",
                never,
                skip=f"not run: its batch rule holds b x N float64, {8 * b * n / 1e9:.0f} GB",
            ),
        ]
    limit = limits(utilities)[-1:]
    return Task((*contenders, *limit), partial(misplaced, truth), 0.0, utilities.nbytes + 12 * b, "GB/s")


def _stream(n: int, c: int, b: int, batches: int, device: torch.device) -> Task:
    """The b most uncertain rows of a pool that comes in batches; the limit is scoring the batches and keeping nothing."""
    x = normal(n, c, device=device).mul_(2)
    parts = x.chunk(batches)
    entropy = by_chunks(lambda rows: ops.score.reference(rows, (2,), False, 1.0), x)[0]
    best = entropy.sort(descending=True).values[:b]

    def error(picks: Tensor) -> float:
        """How much less uncertain a pick is than the row of its rank: float32 cannot tell close rows apart."""
        picks = picks.cpu()
        return largest(entropy[picks] - best) if len(picks.unique()) == b else math.inf

    def keep() -> Tensor:
        keeper = prunefuse.StreamingTopB(b, "entropy")
        for part in parts:
            keeper.update(part)
        picks: Tensor = keeper.result()[0]
        return picks

    def whole(score: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.cat([score(part) for part in parts]).topk(b).indices

    def fused() -> Run:
        torch.compiler.reset()
        score = torch.compile(plain.entropy_fusible, dynamic=False)
        score(parts[0])
        return lambda: whole(score)

    ours = partial(prunefuse.score, strategy="entropy")
    contenders = (
        Contender("prunefuse", "ours", lambda: keep),
        Contender("prunefuse.score of all, torch.topk", "peer", lambda: lambda: whole(ours)),
        Contender("torch.compile: log-sum-exp, cat, topk", "peer", fused),
        Contender("torch: log_softmax, cat, topk", "peer", lambda: lambda: whole(plain.entropy_eager)),
        Contender("scoring alone", "limit", lambda: lambda: [ours(part) for part in parts]),
    )
    return Task(contenders, error, 2 * tolerance(c), x.nbytes + 12 * b, "GB/s")


def _k_center(n: int, d: int, k: int, device: torch.device) -> Task:
    # A seed for which no two candidates for a pick are so near to each other that float32 cannot tell them apart.
    x = normal(n, d, device=device, seed=2)
    labeled = torch.zeros(1, dtype=torch.int64, device=device)
    truth = ops.k_center_greedy.reference(x.double(), labeled, k, -1).cpu()

    def torch_form(step: Callable[..., Any]) -> Tensor:
        norms = x.square().sum(1)
        nearest = torch.full_like(norms, torch.inf)
        picks = torch.empty(k, dtype=torch.int64, device=device)
        center = labeled
        for i in range(k):
            nearest, center = step(x, norms, nearest, center)
            picks[i] = center[0]
        return picks

    def compiled() -> Run:
        torch.compiler.reset()
        step = torch.compile(plain.k_center_step, dynamic=False)
        norms = x.square().sum(1)
        step(x, norms, norms, labeled)
        return lambda: torch_form(step)

    contenders = [
        Contender("prunefuse", "ours", lambda: lambda: prunefuse.k_center_greedy(x, k, labeled)),
        Contender("torch: cached norms", "peer", lambda: lambda: torch_form(plain.k_center_step)),
        Contender("torch.compile: cached norms", "peer", compiled),
    ]
    if device.type == "cpu":
        contenders += [
            Contender("scikit-activeml", "peer", lambda: peers.scikit_activeml_k_center(x, k)),
            Contender("small-text", "peer", never, skip="not run: about half an hour"),
        ]
    many = x[:k].T.contiguous()
    limits = (
        Contender("k reads", "limit", lambda: lambda: [torch.sum(x) for _ in range(k)]),
        Contender("product", "limit", lambda: lambda: x @ many),
    )
    error = partial(misplaced, truth)
    return Task((*contenders, *limits), error, 0.0, 2.0 * n * d * k, "GFLOP/s", cold=False)


def _k_means(n: int, c: int, d: int, b: int, device: torch.device) -> Task:
    """BADGE's picks: of gradient embeddings, outer products of residuals (n, c) and features (n, d)."""
    residuals = normal(n, c, device=device).mul_(3).softmax(1)
    top = residuals.argmax(1, keepdim=True)
    residuals.scatter_(1, top, residuals.gather(1, top) - 1)
    x = normal(n, d, device=device, seed=1)
    draws = torch.rand(b, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)
    # Draws that float32 brings to the same rows.
    truth = plain.k_means_plus_plus(residuals.double(), x.double(), draws).cpu()
    many = torch.cat((residuals, x), 1)
    contenders = (
        Contender("prunefuse", "ours", lambda: lambda: ops.k_means_plus_plus(residuals, x, draws)),
        Contender(
            "torch: norms and products", "peer", lambda: lambda: plain.k_means_plus_plus(residuals, x, draws)
        ),
        Contender("b reads", "limit", lambda: lambda: [torch.sum(many) for _ in range(b)]),
    )
    return Task(contenders, partial(misplaced, truth), 0.0, 2.0 * n * (c + d) * b, "GFLOP/s", cold=False)


def _scatter(name: str, size: int, device: torch.device) -> Task:
    """A pruned network's parameters written back. torch.compile is left out: it unrolls the loop over the parameters."""
    dense, small, kept = scatter_inputs(name, size, device)
    before = [tensor.clone() for tensor in dense]
    places = plain.index_tensors(dense, kept)
    truth = [tensor.clone() for tensor in dense]
    plain.index_put_loop(truth, small, places)

    def error(_: Any) -> float:
        return max(largest((a - b).double()) for a, b in zip(dense, truth, strict=True))

    def reset() -> None:
        for to, source in zip(dense, before, strict=True):
            to.copy_(source)

    def from_kept() -> None:
        plain.index_put_loop(dense, small, plain.index_tensors(dense, kept))

    elements = torch.cat([t.flatten().float() for t in small])
    target = torch.ones_like(elements)
    # Memory comes in lines of 64 bytes: of a line that is written in part, the rest must be read.
    lines = torch.ones(_lines_written(dense, places), 16, device=device)
    contenders = (
        Contender("prunefuse", "ours", lambda: ops.Scatter(dense, small, kept)),
        Contender("prunefuse, nothing prepared", "ours", lambda: lambda: ops.scatter_(dense, small, kept)),
        Contender("torch: index_put_ loop", "peer", lambda: from_kept),
        Contender(
            "torch: the same, with index tensors at hand",
            "peer",
            lambda: lambda: plain.index_put_loop(dense, small, places),
        ),
        Contender(
            "torch.compile: index_put_ loop", "peer", never, skip="not run: compiling takes up to two minutes"
        ),
        Contender(
            "read all, rewrite the lines", "limit", lambda: lambda: (torch.sum(elements), lines.add_(1))
        ),
        Contender("copy", "limit", lambda: lambda: target.copy_(elements)),
    )
    return Task(contenders, error, 0.0, 2 * sum(t.nbytes for t in small), "GB/s", reset=reset)


def scatter_inputs(
    name: str, size: int, device: torch.device
) -> tuple[list[Tensor], list[Tensor], list[list[Tensor | None]]]:
    """A network's tensors, those of it without half of its channels, and the indices kept of each."""
    model = models.build(name)
    plan = prunefuse.plan_pruning(model, (torch.zeros(2, 3, size, size),), ratio=0.5)
    dense = [t.detach().to(device) for t in named_tensors(model).values()]
    small = [t.detach().to(device) + 1 for t in named_tensors(plan.extract(model)).values()]
    on_device: dict[int, Tensor] = {}  # layers share their index tensors, and go on doing so
    kept: list[list[Tensor | None]] = [
        [axis if axis is None else on_device.setdefault(id(axis), axis.to(device)) for axis in axes]
        for axes in plan.kept_indices(model).values()
    ]
    return dense, small, kept


def _lines_written(dense: Sequence[Tensor], places: Sequence[tuple[Tensor, ...]]) -> int:
    """How many cache lines of the dense tensors have a kept place."""
    count = 0
    for tensor, at in zip(dense, places, strict=True):
        line = torch.arange(tensor.numel(), device=tensor.device).view(tensor.shape)
        line = (line * tensor.element_size() + tensor.data_ptr() % 64).div(64, rounding_mode="floor")
        count += len((line[at] if at else line).unique())
    return count
