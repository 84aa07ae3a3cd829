"""Cases of language models: utilities of sequences from hidden states, beside the logits that others hold."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

import prunefuse
from prunefuse import ops
from prunefuse._seeds import generator
from prunefuse.bench import plain
from prunefuse.bench.race import Case, Contender, Task
from prunefuse.bench.shared import EPSILON, compiled, normal, off, short, stacked, tolerance

# Sequences, tokens of the longest, features, words. The product alone takes between 0.1 and 1 s on two cores.
_MODELS = {
    "cpu": ((32, 64, 256, 32_000), (16, 32, 1024, 32_000), (16, 32, 256, 128_000), (8, 32, 1024, 128_000)),
    "cuda": tuple((32, t, d, v) for t, v in ((512, 32_000), (128, 128_000)) for d in (256, 1024)),
}
_STRATEGIES = ("margin", "entropy", "loss")
_AT_ONCE = 64  # tokens of a piece, where a peer makes the logits in pieces


def cases(device: str) -> tuple[Case, ...]:
    """Those for ``"cpu"`` or ``"cuda"``."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    return tuple(
        Case(f"sequences {n} x {t} x {d:,} -> {v:,} {short(dtype)}", partial(_sequences, n, t, d, v, dtype))
        for n, t, d, v in _MODELS[device]
    )


def _sequences(n: int, t: int, d: int, v: int, dtype: torch.dtype, device: torch.device) -> Task:
    """The mean of two scores and of the next tokens' losses over the tokens of every sequence, of any length up to ``t``.

    Peers leave out padding as well. The limit is the product alone, into room that is there. Deviations count as in the
    cases of linear heads.
    """
    hidden = normal(n, t, d, device=device, dtype=dtype)
    weight = normal(v, d, device=device, dtype=dtype, seed=1).mul_(2 * d**-0.5)
    lengths = torch.randint(1, t + 1, (n, 1), generator=generator(1, "bench"))
    mask = (torch.arange(t) < lengths).to(device)
    targets = torch.randint(v, (n, t), generator=generator(2, "bench")).to(device)
    rows, labels = hidden[mask], targets[mask]
    room = torch.ones(len(rows), v, device=device, dtype=dtype)

    def means(scores: Tensor) -> Tensor:
        full = scores.new_zeros(len(scores), n * t)
        full[:, mask.flatten()] = scores
        return plain.masked_mean(full, mask)

    def exact(rows: Tensor, labels: Tensor) -> Tensor:
        logits = rows.double() @ weight.double().T
        loss = F.cross_entropy(logits, labels, reduction="none")
        return torch.cat([ops.score.reference(logits, (1, 2), False, 1.0), loss[None]])

    pieces = max(1, (1 << 24) // v)
    truth = means(
        torch.cat([exact(*part) for part in zip(rows.split(pieces), labels.split(pieces), strict=True)], 1)
    ).cpu()
    scale = EPSILON / torch.finfo(dtype).eps

    def error(scores: Tensor) -> float:
        return off(truth)(scores) * scale

    def ours() -> Tensor:
        return stacked(
            prunefuse.score_sequences(hidden, weight, None, _STRATEGIES, targets=targets, mask=mask)
        )

    def with_scorer() -> Tensor:
        logits = hidden[mask] @ weight.T
        utilities = prunefuse.score(logits, _STRATEGIES[:2])
        loss = F.cross_entropy(logits, targets[mask], reduction="none").float()
        return means(torch.stack([*utilities.values(), loss]))

    def in_pieces() -> Tensor:
        parts = zip(hidden[mask].split(_AT_ONCE), targets[mask].split(_AT_ONCE), strict=True)
        return means(torch.cat([plain.next_tokens(x @ weight.T, y) for x, y in parts], 1))

    def fusible(rows: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
        logits = rows @ weight.T
        loss = F.cross_entropy(logits.float(), labels, reduction="none")
        return torch.cat([plain.scores_fusible(logits)[1:], loss[None]])

    contenders = (
        Contender("prunefuse", "ours", lambda: ours),
        Contender("matmul, prunefuse.score, cross_entropy", "peer", lambda: with_scorer),
        Contender(
            "torch.compile: matmul, log-sum-exp, two max",
            "peer",
            compiled(fusible, rows, labels, weight),
            means,
        ),
        Contender(
            "torch: matmul, log_softmax, two max",
            "peer",
            lambda: lambda: means(plain.next_tokens(hidden[mask] @ weight.T, targets[mask])),
        ),
        Contender(f"torch: the same, {_AT_ONCE} tokens at a time", "peer", lambda: in_pieces),
        Contender("product", "limit", lambda: lambda: torch.mm(rows, weight.T, out=room)),
    )
    return Task(
        contenders,
        error,
        tolerance(v),
        2.0 * len(rows) * d * v,
        "GFLOP/s",
        yardstick="torch: matmul, log_softmax, two max",
    )
