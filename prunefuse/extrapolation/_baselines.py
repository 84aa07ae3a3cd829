"""Baselines that look at no embedding: the subset's network scores the rest itself, and random scores.

Reviewers of the method asked for both; see docs/paper.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prunefuse._seeds import generator
from prunefuse.extrapolation._interface import Inductive, checked
from prunefuse.extrapolation._neighbors import require_rows
from prunefuse.ops.arrays import like

if TYPE_CHECKING:
    from typing_extensions import Self


class Direct(Inductive):
    """Scores by what the subset's network says of a sample in one pass, brought to the scale of the scores.

    >>> from prunefuse.extrapolation import Direct
    >>> says, scores = torch.tensor([[0.1], [0.9], [0.5]]), torch.tensor([3.0, 7.0, float("nan")])
    >>> Direct().fit(says, scores).predict(says[2:]).tolist()
    [5.0]

    In the place of embeddings it takes (N, 1): one number for each sample, higher where the score should be. That may be
    EL2N, |softmax − one-hot label|, or an uncertainty by `prunefuse.score`.

    Only the order of these numbers counts. A sample at the q-quantile of those without a score gets the q-quantile of the
    scores, which are those of a random subset. The numbers of scored samples would be a wrong scale, since the network was
    trained on them. Without unscored samples in `fit`, quantiles are among all.
    """

    def fit(self, embeddings: Any, scores: Any) -> Self:
        """Learn the scale, from the scores and from the numbers of samples that have none."""
        e, s, _ = checked(embeddings, scores)
        _require_column(e)
        rest = s.isnan()
        self._order = e[rest if bool(rest.any()) else ~rest, 0].double().sort().values
        return super().fit(e, s)

    def _learn(self, embeddings: Tensor, scores: Tensor, largest: float) -> None:
        self._scores = scores.sort().values

    def _answer(self, embeddings: Tensor, largest: float) -> Tensor:
        _require_column(embeddings)
        values = embeddings[:, 0].double()
        below = torch.searchsorted(self._order, values)
        through = torch.searchsorted(self._order, values, right=True)
        # The middle of its place in the order, in (0, 1), and what stands there among the scores.
        quantile = (below + through).double() / (2 * len(self._order))
        place = quantile * len(self._scores) - 0.5
        place = place.clamp(0, len(self._scores) - 1)
        low = place.floor().long()
        high = (low + 1).clamp(max=len(self._scores) - 1)
        return torch.lerp(self._scores[low], self._scores[high], place - low)


class RandomScores:
    """Random scores: each is one of those learned, drawn by ``seed``.

    >>> from prunefuse.extrapolation import RandomScores
    >>> RandomScores(seed=0).fit(torch.zeros(2, 1), torch.tensor([4.0, 4.0])).predict(torch.zeros(3, 1)).tolist()
    [4.0, 4.0, 4.0]
    """

    transductive = True  # row i gets the i-th draw

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._scores: Tensor | None = None

    def fit(self, embeddings: Any, scores: Any) -> Self:
        """Learn which scores there are."""
        _, s, rows = checked(embeddings, scores)
        self._scores = s[rows]
        return self

    def predict(self, embeddings: Any) -> Any:
        """Scores (M,) that depend on the seed and on nothing else."""
        if self._scores is None:
            raise RuntimeError("RandomScores: predict was called before fit")
        e = require_rows("embeddings", embeddings)
        draws = torch.randint(len(self._scores), (len(e),), generator=generator(self.seed, "random scores"))
        return like(embeddings, self._scores[draws.to(self._scores.device)].to(e.device))


def _require_column(values: Tensor) -> None:
    if values.shape[1] != 1:
        raise ValueError(
            f"embeddings must be the network's own scores for Direct, of shape (N, 1), got {tuple(values.shape)}"
        )
    if bool(values.isnan().any()):
        raise ValueError(f"embeddings must not be NaN, but row {int(values[:, 0].isnan().nonzero()[0])} is")
