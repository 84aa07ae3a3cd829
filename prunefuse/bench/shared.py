"""What the cases share: data, truths in float64, limits, compiled contenders."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prunefuse._seeds import generator
from prunefuse.bench.race import Contender, Run, largest

STRATEGIES = ("least_confidence", "margin", "entropy")
EPSILON = torch.finfo(torch.float32).eps
_CHUNK = 1 << 22  # logits at a time in float64


def short(dtype: torch.dtype) -> str:
    """Its name without ``torch.``."""
    return str(dtype).removeprefix("torch.")


def tolerance(classes: int) -> float:
    """What a score from logits over so many classes may be off, in float32."""
    return 4 * EPSILON * max(1.0, math.log(classes))


def stacked(scores: dict[str, Tensor]) -> Tensor:
    """The scores (K, N) of a dict of them."""
    return torch.stack(list(scores.values()))


def off(truth: Tensor) -> Callable[[Tensor], float]:
    """The error of scores (K, N), or of those of the first rows: the largest deviation from the truth (K, N) in float64."""
    return lambda scores: largest(scores.double().cpu() - truth[:, : scores.shape[1]])


def misplaced(truth: Tensor, picks: Tensor) -> float:
    """How many of the picks are not the truth's at their place."""
    return float((picks.cpu() != truth).sum()) if len(picks) == len(truth) else math.inf


def never() -> Run:
    """Builds nothing: for a contender with a reason to skip it."""
    raise AssertionError("a contender that is skipped is not built")


def compiled(function: Callable[..., Any], *inputs: Tensor) -> Callable[[], Run]:
    """Builds a contender: the function, compiled for these inputs."""

    def build() -> Run:
        torch.compiler.reset()  # every case is compiled for its own shape
        fused = torch.compile(function, dynamic=False)
        fused(*inputs)
        return lambda: fused(*inputs)

    return build


def limits(x: Tensor) -> tuple[Contender, ...]:
    """What nobody who reads all of ``x`` can be faster than; on a GPU a copy moves as many bytes, half of them written."""
    half = len(x) // 2
    if x.is_cuda:
        target = torch.empty_like(x[:half])
        return (Contender("copy", "limit", lambda: lambda: target.copy_(x[:half])),)
    y = torch.ones_like(x)  # written once: memory that is only asked for would count as the limit's
    return (
        Contender("one exp", "limit", lambda: lambda: torch.exp(x, out=y)),
        Contender("read once", "limit", lambda: lambda: torch.sum(x)),
    )


def normal(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Standard normal numbers, the same on every device."""
    return torch.randn(shape, generator=generator(seed, "bench")).to(device, dtype)


def by_chunks(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function`` (rows in float64 -> (K, rows)) of all rows, some at a time."""
    chunks = x.split(max(1, _CHUNK // x.shape[1]))
    return torch.cat([function(chunk.double()).cpu() for chunk in chunks], 1)
