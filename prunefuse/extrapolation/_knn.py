"""Scores from the nearest scored samples."""

from __future__ import annotations

import math

from torch import Tensor

from prunefuse.extrapolation._interface import Inductive
from prunefuse.extrapolation._neighbors import METRIC, Finder
from prunefuse.ops.arrays import require_count, require_number

WEIGHTINGS = ("distance", "mean")
_FOUND = 1 << 22  # neighbors of a block of rows


class KNN(Inductive):
    """Scores by the k nearest scored samples: their mean, weighted by e^(−distance / temperature).

    >>> from prunefuse.extrapolation import KNN
    >>> KNN(k=1).fit(torch.tensor([[0.0], [1.0]]), torch.tensor([3.0, 5.0])).predict(torch.tensor([[0.9]])).tolist()
    [5.0]

    With temperature 1, the Euclidean metric and k of 10, 20, 50 or 100 this is the published extrapolation by neighbors.
    Weights are e^(−(d − d_min) / temperature). That is the same mean, and a number also where all e^(−d) are 0. Sums are
    float64. A prediction lies between the neighbors' lowest and highest score.

    Args:
        k: Neighbors, 1 to the number of scored samples.
        temperature: Positive. Small ones leave the nearest alone, infinity weighs all alike.
        metric: "euclidean" or "cosine", as in `nearest_neighbors`.
        weighting: "distance", or "mean", where all k count alike.
        index: An index of faiss, as in `nearest_neighbors`. None searches exactly.

    Raises:
        TypeError: An argument is of another kind; embeddings and scores as `Extrapolator` says.
        ValueError: An argument is out of range, or embeddings are not finite; from `fit` also fewer scored samples than k.
        MissingPackageError: From `fit`, where index is given and faiss is not installed.

    References:
        Schmidt et al., [arXiv:2506.09010](https://arxiv.org/abs/2506.09010).
    """

    def __init__(
        self,
        k: int = 20,
        temperature: float = 1.0,
        metric: str = "euclidean",
        weighting: str = "distance",
        *,
        index: str | None = None,
    ) -> None:
        self.k = self.least = require_count("k", k, 1)
        # What is found for a block takes some 100 MB. Rows are not copied, and a search has a price of its own.
        self.block_rows = min(1 << 16, max(1, _FOUND // self.k))
        self.temperature = require_number("temperature", temperature)
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        METRIC("metric", metric)
        if weighting not in WEIGHTINGS:
            raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}, got {weighting!r}")
        self.metric, self.weighting, self.index = metric, weighting, index

    def _learn(self, embeddings: Tensor, scores: Tensor, largest: float) -> None:
        self._scores = scores
        self._finder = Finder(embeddings, self.metric, self.index, largest)

    def _answer(self, embeddings: Tensor, largest: float) -> Tensor:
        distances, rows = self._finder.find(embeddings, self.k, largest)
        scores = self._scores[rows]
        temperature = math.inf if self.weighting == "mean" else self.temperature
        distances = distances.double()
        # Where distances leave their range, infinity less infinity: as far as the nearest.
        behind = (distances - distances[:, :1]).nan_to_num(0.0, posinf=math.inf)
        weights = (-behind / temperature).exp()
        mean = (weights * scores).sum(1) / weights.sum(1)
        return mean.clamp(scores.amin(1), scores.amax(1))
