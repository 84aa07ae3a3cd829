"""What every extrapolator does, and the arguments that they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from prunefuse.extrapolation.neighbors import magnitude, require_rows
from prunefuse.ops.arrays import as_tensor, like, require_floating

if TYPE_CHECKING:
    from typing_extensions import Self

# Rows of embeddings that are copied at a time.
BLOCK_ROWS = 1 << 14


class Extrapolator(Protocol):
    """Learns scores from embeddings.

    ``fit(embeddings, scores)`` takes all samples, (N, d) floating and (N,) floating, with NaN as the score of a sample that
    has none: so one call serves those that learn from scored samples alone, and those that look at the others too.
    ``predict(embeddings)`` gives (M,) scores in the dtype of those learned (float32 for 16-bit ones), as NumPy for NumPy,
    else as a tensor on the embeddings' device. Embeddings of both calls have the same features, dtype and device.

    ``transductive`` tells whether what is predicted for a row depends on the other rows given with it, as for a graph
    of them: predict all samples then, and take the rows wanted.
    """

    @property
    def transductive(self) -> bool:
        """Whether predictions depend on the rows given together."""

    def fit(self, embeddings: Any, scores: Any) -> Self:
        """Learn, and return itself."""

    def predict(self, embeddings: Any) -> Any:
        """Scores of the rows."""


def checked(embeddings: Any, scores: Any, least: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, all scores, and the rows that have one, on the device of the embeddings.

    Raises:
        TypeError: something is not a floating array.
        ValueError: shapes do not go together, a score is infinite, or fewer than ``least`` rows have one.
    """
    e, s = require_rows("embeddings", embeddings), as_tensor("scores", scores)
    require_floating("scores", s)
    if s.shape != e.shape[:1]:
        raise ValueError(
            f"scores must have shape ({len(e)},), one for every row of embeddings, got {tuple(s.shape)}"
        )
    if bool(s.isinf().any()):
        raise ValueError(
            f"scores must be finite, or NaN where there is none, got {float(s[s.isinf()][0])} in row "
            f"{int(s.isinf().nonzero()[0])}"
        )
    rows = s.isfinite().nonzero()[:, 0]
    if len(rows) < least:
        raise ValueError(f"scores must have at least {least} that are not NaN, got {len(rows)}")
    if s.dtype in (torch.float16, torch.bfloat16):
        s = s.float()
    return e, s.to(e.device), rows.to(e.device)


def require_same_kind(embeddings: Tensor, like_those: Tensor) -> None:
    """ValueError unless rows have the features, dtype and device of those that were fitted."""
    for what, got, expected in (
        ("features", embeddings.shape[1], like_those.shape[1]),
        ("dtype", embeddings.dtype, like_those.dtype),
        ("device", embeddings.device, like_those.device),
    ):
        if got != expected:
            raise ValueError(
                f"embeddings must have the {what} of those that were fitted, {expected}, got {got}"
            )


class Inductive(ABC):
    """An extrapolator that learns from the scored rows alone, and predicts every row by itself, in blocks."""

    transductive = False
    least = 1  # scored rows that it needs
    block_rows = BLOCK_ROWS  # that it answers at a time

    _like: Tensor | None = None

    def fit(self, embeddings: Any, scores: Any) -> Self:
        """Learn from the rows that have a score; these alone are read into memory."""
        e, s, rows = checked(embeddings, scores, self.least)
        self._dtype = s.dtype
        known = e[rows]
        magnitude("embeddings", known, lambda row: int(rows[row]))
        self._learn(known, s[rows].double())
        self._like = e[:0].clone()
        return self

    def predict(self, embeddings: Any) -> Any:
        """Scores (M,) of the rows, which are read a block at a time; RuntimeError before `fit`."""
        if self._like is None:
            raise RuntimeError(f"{type(self).__name__}: predict was called before fit")
        e = require_rows("embeddings", embeddings)
        require_same_kind(e, self._like)
        scores = torch.empty(len(e), dtype=self._dtype, device=e.device)
        for first in range(0, len(e), self.block_rows):
            block = slice(first, first + self.block_rows)
            magnitude("embeddings", e[block], first.__add__)
            scores[block] = self._answer(e[block])
        return like(embeddings, scores)

    @abstractmethod
    def _learn(self, embeddings: Tensor, scores: Tensor) -> None:
        """From scored rows only; scores are float64."""

    @abstractmethod
    def _answer(self, embeddings: Tensor) -> Tensor:
        """Scores of a block of rows, of any dtype."""
