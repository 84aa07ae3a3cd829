"""Scores from hidden states and a linear head, without ever holding the logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunefuse import ops
from prunefuse.ops.arrays import as_tensor, like, require_floating
from prunefuse.scoring._scores import LOGIT_STRATEGIES, checked_logits, checked_names

# One tile of logits: on the CPU it stays in the second-level caches, on a GPU it is large enough to fill the matrix units.
_TILE = {"cpu": (256, 2048), "cuda": (4096, 8192)}


def score_linear(
    hidden: Any,
    weight: Any,
    bias: Any = None,
    strategy: str | tuple[str, ...] = "entropy",
    *,
    temperature: float = 1.0,
) -> Any:
    """Utilities of ``hidden @ weight.T + bias`` as `score` gives them, with memory for one tile of those logits instead of
    all.

    >>> hidden, head = torch.zeros(5, 16), torch.nn.Linear(16, 1000)
    >>> prunefuse.score_linear(hidden, head.weight, head.bias, "entropy").shape
    torch.Size([5])

    It is for language-model heads and large classifiers. N = 10,000 states over a vocabulary of 128,000 are 5 GB of logits
    in float32, and one tile of 2 MB here. The product is torch's. The scorer takes each tile in while it is in the cache,
    and merges it into the rows' states.

    Args:
        hidden: (N, D) floating, as for `score`.
        weight: (V, D) of the same dtype and device: the head's weight, as `torch.nn.Linear` keeps it.
        bias: (V,) or None.
        strategy: As for `score`.
        temperature: Divides the logits; positive.

    Returns:
        As `score`: utilities (N,), or a dict of them. The logits are rounded to the inputs' dtype, as torch's product is.

    Raises:
        TypeError: As `score`.
        ValueError: As `score`; or shapes, dtypes or devices do not go together. The message names them.
    """
    names = checked_names("strategy", strategy, LOGIT_STRATEGIES)
    x = checked_logits(hidden, temperature, argument="hidden")
    if x.dim() != 2:
        raise ValueError(f"hidden must have shape (N, D), got {tuple(x.shape)}")
    head = checked_head(x, weight, bias)
    utilities = torch.empty((len(names), len(x)), dtype=head.dtype, device=x.device)
    with torch.no_grad():
        for first in range(0, len(x), head.rows):
            block = x[first : first + head.rows]
            utilities[:, first : first + head.rows] = head.utilities(block, names, float(temperature))
    if isinstance(strategy, str):
        return like(hidden, utilities[0])
    return {name: like(hidden, row) for name, row in zip(names, utilities, strict=True)}


@dataclass(frozen=True)
class Head:
    """A linear head, and room for one tile of its logits.

    Attributes:
        weight: (V, D).
        bias: (V,) or None.
        rows, columns: What a tile has of rows and of classes, at most.
        room: What a tile is written to.
    """

    weight: Tensor
    bias: Tensor | None
    rows: int
    columns: int
    room: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Of utilities."""
        return torch.float64 if self.weight.dtype == torch.float64 else torch.float32

    def utilities(
        self, block: Tensor, names: tuple[str, ...], temperature: float, targets: Tensor | None = None
    ) -> Tensor:
        """Utilities (K, R) of hidden states (R, D) of at most one tile's rows.

        With targets (R,), class indices, ``"loss"`` is a name, too. It is NaN where a target is no class.
        """
        state = torch.zeros((6, len(block)), dtype=self.dtype, device=block.device)
        state[:2] = -torch.inf
        own = None if targets is None else torch.full_like(state[0], torch.nan)
        for start in range(0, len(self.weight), self.columns):
            part = self.weight[start : start + self.columns]
            logits = self.room[: len(block) * len(part)].view(len(block), len(part))
            if self.bias is None:
                torch.mm(block, part.mT, out=logits)
            else:
                torch.addmm(self.bias[start : start + self.columns], block, part.mT, out=logits)
            ops.absorb_(state, logits, temperature)
            if targets is not None and own is not None:
                # Taken from the tile, not multiplied again: so a target that is the row's maximum is equal to it.
                place = targets - start
                found = logits.gather(1, place.clamp(0, len(part) - 1)[:, None])[:, 0]
                own = torch.where((place >= 0) & (place < len(part)), found.to(own.dtype), own)
        return _utilities(state, own, names, temperature)


def checked_head(x: Tensor, weight: Any, bias: Any) -> Head:
    """The head of hidden states x (..., D); ValueError where shapes, dtypes or devices do not go together."""
    w = as_tensor("weight", weight)
    require_floating("weight", w)
    if w.dim() != 2 or w.shape[1] != x.shape[-1] or len(w) == 0:
        raise ValueError(f"weight must have shape (V, {x.shape[-1]}) with V > 0, got {tuple(w.shape)}")
    offset = None if bias is None else as_tensor("bias", bias)
    if offset is not None and offset.shape != (len(w),):
        raise ValueError(f"bias must have shape ({len(w)},), got {tuple(offset.shape)}")
    for argument, tensor in (("weight", w), ("bias", offset)):
        if tensor is not None and (tensor.dtype, tensor.device) != (x.dtype, x.device):
            raise ValueError(
                f"{argument} must have the dtype and device of hidden, {x.dtype} on {x.device}, "
                f"got {tensor.dtype} on {tensor.device}"
            )
    rows, columns = _TILE["cuda" if x.is_cuda else "cpu"]
    rows, columns = max(1, min(rows, x.shape[:-1].numel())), min(columns, len(w))
    return Head(w, offset, rows, columns, torch.empty(rows * columns, dtype=x.dtype, device=x.device))


def _utilities(state: Tensor, own: Tensor | None, names: tuple[str, ...], temperature: float) -> Tensor:
    """The rows' utilities (K, N) from their states (6, N): `summarize` of csrc/math/row_state.h, once per row.

    ``own`` (N,) are their targets' logits.
    """
    highest, second, ties, tail, dot, nan = state
    rest = (ties - 1) + tail
    inverse = 1 / (rest + 1)
    log_sum = torch.log1p(rest)
    runner_up = torch.where(ties > 1, 1.0, torch.exp((second - highest) / temperature))
    table = {
        "least_confidence": rest * inverse,
        "margin": (rest + runner_up) * inverse,
        "entropy": log_sum - dot * inverse,
        "energy": -(highest + temperature * log_sum),
        "logit_margin": torch.where(ties > 1, 0.0, second - highest),  # equal maxima may be infinite
    }
    if own is not None:
        # Equal ones may be infinite.
        table["loss"] = torch.where(own == highest, 0.0, (highest - own) / temperature) + log_sum
    invalid = (nan > 0) | ~(highest > -torch.inf)
    return torch.stack([torch.where(invalid, torch.nan, table[name]) for name in names])
