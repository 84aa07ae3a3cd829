"""What every extrapolator does, and the arguments that they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import torch
from torch import Tensor

from prunefuse.extrapolation._neighbors import magnitude, require_rows
from prunefuse.ops.arrays import as_tensor, like, require_floating
from prunefuse.ops.transfer import rows_where, upload

if TYPE_CHECKING:
    from typing_extensions import Self

# Rows of embeddings that are copied at a time.
BLOCK_ROWS = 1 << 14


class Extrapolator(Protocol):
    """What every extrapolator is: an object that learns scores from embeddings.

    >>> from prunefuse.extrapolation import KNN, Extrapolator
    >>> model: Extrapolator = KNN(k=10)

    ``fit(embeddings, scores)`` takes all samples, (N, d) and (N,) floating, with NaN as the score of a sample that has
    none. So one call serves those that learn from scored samples alone, and those that look at the others too.
    ``predict(embeddings)`` gives (M,) scores in the dtype of those learned, float32 for 16-bit ones. They are NumPy for
    NumPy, else a tensor on the embeddings' device. Embeddings of both calls have the same features, dtype and device.

    ``transductive`` tells whether what is predicted for a row depends on the other rows given with it, as in a graph. Then
    predict all samples, and take the rows wanted.
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

    Waits once for a GPU where the scores lie on one.

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
    infinite, scored = torch.stack((s.isinf().sum(), s.isfinite().sum())).tolist()
    if infinite:
        refuse_infinite(s)
    if scored < least:
        raise ValueError(f"scores must have at least {least} that are not NaN, got {scored}")
    rows = rows_where(s.isfinite(), scored)
    if s.dtype in (torch.float16, torch.bfloat16):
        s = s.float()
    return e, upload(s, e.device), upload(rows, e.device)


def refuse_infinite(scores: Tensor) -> NoReturn:
    """ValueError that names the first infinite score, of which there is one."""
    row = int(scores.isinf().nonzero()[0])
    raise ValueError(
        f"scores must be finite, or NaN where there is none, got {float(scores[row])} in row {row}"
    )


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
        known = e[rows]
        return self.learn(known, s[rows], magnitude("embeddings", known, lambda row: int(rows[row])))

    def learn(self, embeddings: Tensor, scores: Tensor, largest: float) -> Self:
        """`fit` with rows that all have a score, checked before, and the largest magnitude in them."""
        self._dtype = scores.dtype
        self._learn(embeddings, scores.double(), largest)
        self._like = embeddings[:0].clone()
        return self

    def predict(self, embeddings: Any) -> Any:
        """Scores (M,) of the rows, which are read a block at a time; RuntimeError before `fit`.

        On a GPU `KNN` without an index waits for the device once, before it searches, to check the values.
        """
        if self._like is None:
            raise RuntimeError(f"{type(self).__name__}: predict was called before fit")
        e = require_rows("embeddings", embeddings)
        require_same_kind(e, self._like)
        # On a GPU all blocks are there to be checked in one go; on the CPU they may have to be read from a disk.
        return like(embeddings, self.answer(e, magnitude("embeddings", e) if e.is_cuda else None))

    def answer(self, e: Tensor, largest: float | None) -> Tensor:
        """`predict` for rows of the right kind; largest None: to be found, and rows that are not finite to be refused."""
        scores = torch.empty(len(e), dtype=self._dtype, device=e.device)
        for first in range(0, len(e), self.block_rows):
            rows = e[first : first + self.block_rows]
            of_block = magnitude("embeddings", rows, first.__add__) if largest is None else largest
            scores[first : first + self.block_rows] = self._answer(rows, of_block)
        return scores

    @abstractmethod
    def _learn(self, embeddings: Tensor, scores: Tensor, largest: float) -> None:
        """From scored rows only, with the largest magnitude in them; scores are float64."""

    @abstractmethod
    def _answer(self, embeddings: Tensor, largest: float) -> Tensor:
        """Scores of a block of rows, of any dtype; ``largest`` is at least the largest magnitude in them."""
