"""Cases of the scorers that take more than a matrix of logits: linear heads, several passes, token sequences."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import prunefuse
from prunefuse import ops
from prunefuse._seeds import generator
from prunefuse.bench import peers, plain
from prunefuse.bench.race import Case, Contender, Task
from prunefuse.bench.shared import (
    EPSILON,
    STRATEGIES,
    by_chunks,
    compiled,
    limits,
    normal,
    off,
    short,
    stacked,
    tolerance,
)

# Rows, features, classes of the head. The product alone takes between 0.1 and 1 s on two cores.
_HEADS = {
    "cpu": (
        (2048, 64, 32_000),
        (1024, 256, 32_000),
        (512, 1024, 32_000),
        (512, 64, 128_000),
        (512, 256, 128_000),
        (256, 1024, 128_000),
    ),
    "cuda": tuple((n, d, v) for n, v in ((16_384, 32_000), (4096, 128_000)) for d in (64, 256, 1024)),
}
# Passes, rows, classes.
_PASSES = {
    "cpu": ((10, 20_000, 10), (20, 20_000, 100), (10, 5_000, 1000)),
    "cuda": ((10, 640_000, 10), (20, 100_000, 100), (10, 20_000, 1000)),
}
# Sequences, tokens of the longest, classes.
_TOKENS = {"cpu": (400, 50, 1000), "cuda": (2000, 50, 1000)}
# Samples and labels; images, classes, height and width; images and classes of up to 100 boxes each.
_LABELS = {"cpu": (100_000, 80), "cuda": (1_000_000, 80)}
_PIXELS = {"cpu": (4, 21, 256, 256), "cuda": (16, 21, 512, 512)}
_BOXES = {"cpu": (5_000, 80), "cuda": (20_000, 80)}


def cases(device: str) -> tuple[Case, ...]:
    """Those for ``"cpu"`` or ``"cuda"``."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    n, t, v = _TOKENS[device]
    return (
        *(
            Case(f"linear {rows:,} x {d:,} -> {c:,} {short(dtype)}", partial(_linear, rows, d, c, dtype))
            for rows, d, c in _HEADS[device]
        ),
        *(
            Case(f"ensemble {s} x {rows:,} x {c:,} float32", partial(_ensemble, s, rows, c))
            for s, rows, c in _PASSES[device]
        ),
        Case(f"tokens {n:,} x {t:,} x {v:,} float32", partial(_tokens, n, t, v)),
        Case("labels {:,} x {:,} float32".format(*_LABELS[device]), partial(_labels, *_LABELS[device])),
        Case(
            "pixels {:,} x {:,} x {:,} x {:,} float32".format(*_PIXELS[device]),
            partial(_pixels, _PIXELS[device]),
        ),
        Case("boxes of {:,} images x {:,} float32".format(*_BOXES[device]), partial(_boxes, *_BOXES[device])),
    )


def _linear(n: int, d: int, c: int, dtype: torch.dtype, device: torch.device) -> Task:
    """Three scores of hidden states under a linear head; the limit is the product alone, into room that is there.

    16-bit logits are rounded, and that error is not the scorer's: deviations count in the dtype's epsilons, as float32's do.
    """
    hidden = normal(n, d, device=device, dtype=dtype)
    weight = normal(c, d, device=device, dtype=dtype, seed=1).mul_(2 * d**-0.5)
    wide = weight.double()
    truth = torch.cat(
        [
            ops.score.reference(rows.double() @ wide.T, (0, 1, 2), False, 1.0).cpu()
            for rows in hidden.split(max(1, (1 << 24) // c))
        ],
        1,
    )
    del wide
    scale = EPSILON / torch.finfo(dtype).eps
    room = torch.ones(n, c, device=device, dtype=dtype)

    def fusible(hidden: Tensor, weight: Tensor) -> Tensor:
        return plain.scores_fusible(hidden @ weight.T)

    def error(scores: Tensor) -> float:
        return off(truth)(scores) * scale

    contenders = (
        Contender(
            "prunefuse",
            "ours",
            lambda: lambda: prunefuse.score_linear(hidden, weight, None, STRATEGIES),
            stacked,
        ),
        Contender(
            "matmul, prunefuse.score",
            "peer",
            lambda: lambda: prunefuse.score(hidden @ weight.T, STRATEGIES),
            stacked,
        ),
        Contender("torch.compile: matmul, log-sum-exp, two max", "peer", compiled(fusible, hidden, weight)),
        Contender(
            "torch: matmul, log_softmax, two max",
            "peer",
            lambda: lambda: plain.scores_eager(hidden @ weight.T),
        ),
        Contender("product", "limit", lambda: lambda: torch.mm(hidden, weight.T, out=room)),
    )
    return Task(
        contenders,
        error,
        tolerance(c),
        2.0 * n * d * c,
        "GFLOP/s",
        yardstick="torch: matmul, log_softmax, two max",
    )


def _ensemble(s: int, n: int, c: int, device: torch.device) -> Task:
    """BALD, predictive entropy, variation ratio and mean entropy of several passes; baal's is BALD alone."""
    x = normal(s, n, c, device=device).mul_(2)

    def exact(rows: Tensor) -> Tensor:
        return ops.score_ensemble.reference(rows.view(-1, s, c).transpose(0, 1), (0, 1, 2, 3), False, 1.0)

    truth = by_chunks(exact, x.transpose(0, 1).reshape(n, s * c))
    contenders = [
        Contender("prunefuse", "ours", lambda: lambda: prunefuse.score_ensemble(x), stacked),
        Contender("torch.compile: log_softmax", "peer", compiled(plain.ensemble, x)),
        Contender("torch: log_softmax", "peer", lambda: lambda: plain.ensemble(x)),
    ]
    if device.type == "cpu":
        contenders.append(
            Contender("baal (BALD alone)", "peer", lambda: peers.baal_bald(x), peers.from_utilities)
        )

    def error(scores: Tensor) -> float:
        return off(truth[:1] if len(scores) == 1 else truth)(scores)

    return Task(
        (*contenders, *limits(x)),
        error,
        tolerance(c),
        x.nbytes + 4 * 4 * n,
        "GB/s",
        yardstick="torch: log_softmax",
    )


def _tokens(n: int, t: int, c: int, device: torch.device) -> Task:
    """The mean of three scores over the tokens of every sequence, of any length up to ``t``."""
    x = normal(n, t, c, device=device).mul_(2)
    lengths = torch.randint(1, t + 1, (n, 1), generator=generator(1, "bench"))
    mask = (torch.arange(t) < lengths).to(device)
    exact = by_chunks(lambda rows: ops.score.reference(rows, (0, 1, 2), False, 1.0), x.flatten(0, 1))
    truth = plain.masked_mean(exact, mask.cpu())

    def fusible(x: Tensor, mask: Tensor) -> Tensor:
        return plain.masked_mean(plain.scores_fusible(x.flatten(0, 1)), mask)

    contenders = (
        Contender(
            "prunefuse", "ours", lambda: lambda: prunefuse.score_tokens(x, STRATEGIES, mask=mask), stacked
        ),
        Contender("torch.compile: log-sum-exp, two max", "peer", compiled(fusible, x, mask)),
        Contender(
            "torch: log_softmax, two max",
            "peer",
            lambda: lambda: plain.masked_mean(plain.scores_eager(x.flatten(0, 1)), mask),
        ),
    )
    return Task(
        (*contenders, *limits(x)),
        off(truth),
        tolerance(c),
        x.nbytes + 3 * 4 * n,
        "GB/s",
        yardstick="torch: log_softmax, two max",
    )


def _grouped(
    x: Tensor,
    ours: Callable[[], dict[str, Tensor]],
    torch_form: Callable[..., Tensor],
    truth: Tensor,
    *more: Tensor,
) -> Task:
    """Three scores of parts of samples, reduced; beside the usual form in torch, compiled too, and the reads."""
    contenders = (
        Contender("prunefuse", "ours", lambda: ours, stacked),
        Contender("torch.compile: the same", "peer", compiled(torch_form, x, *more)),
        Contender("torch: usual form", "peer", lambda: lambda: torch_form(x, *more)),
    )
    return Task(
        (*contenders, *limits(x)),
        off(truth),
        tolerance(x.shape[1]),
        x.nbytes + 4 * truth.numel(),
        "GB/s",
        yardstick="torch: usual form",
    )


def _labels(n: int, c: int, device: torch.device) -> Task:
    """The mean over independent labels."""
    x = normal(n, c, device=device).mul_(2)
    truth = by_chunks(plain.labels_mean, x)
    return _grouped(x, lambda: prunefuse.score_labels(x, STRATEGIES), plain.labels_mean, truth)


def _pixels(shape: tuple[int, int, int, int], device: torch.device) -> Task:
    """The mean over pixels, whose classes lie in planes."""
    x = normal(*shape, device=device).mul_(2)
    truth = torch.cat([plain.pixels_mean(one.double()).cpu() for one in x.split(1)], 1)
    return _grouped(x, lambda: prunefuse.score_pixels(x, STRATEGIES), plain.pixels_mean, truth)


def _boxes(n: int, c: int, device: torch.device) -> Task:
    """The maximum over the boxes of every image, of which there are from 0 to 100."""
    sizes = torch.randint(101, (n,), generator=generator(1, "bench"))
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64), sizes.cumsum(0))).to(device)
    image = torch.repeat_interleave(torch.arange(n), sizes).to(device)
    x = normal(len(image), c, device=device).mul_(2)
    scores = by_chunks(lambda rows: ops.score.reference(rows, (0, 1, 2), False, 1.0), x)
    truth = scores.new_zeros(3, n).scatter_reduce(1, image.cpu().expand_as(scores), scores, "amax")

    def torch_form(x: Tensor, image: Tensor) -> Tensor:
        return plain.boxes_max(x, image, n)

    return _grouped(x, lambda: prunefuse.score_boxes(x, offsets, STRATEGIES), torch_form, truth, image)
