"""A heuristic for baal: ``ActiveLearningLoop(dataset, get_probabilities, heuristic=Uncertainty("bald"))``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from baal.active.heuristics import AbstractHeuristic

from prunefuse.adapters._probabilities import STRATEGIES, utilities
from prunefuse.ops.arrays import as_tensor
from prunefuse.scoring import ENSEMBLE_STRATEGIES, EnsembleScores, score_ensemble
from prunefuse.scoring._scores import checked_names


class Uncertainty(AbstractHeuristic):
    """A heuristic that ranks a pool by its predictions: logits unless ``probabilities=True``, never guessed from their values.

    >>> from prunefuse.adapters.baal import Uncertainty
    >>> Uncertainty("bald")(np.random.randn(100, 10, 20)).shape
    (100,)

    Predictions are (N, C), or (N, C, passes), or (N, C, ..., passes) with a ``reduction`` to one utility per sample. They
    are arrays of NumPy or torch. Passes are averaged as probabilities, not as logits.

    Of probabilities, ``"bald"``, ``"entropy"``, ``"margin"`` and ``"least_confidence"`` rank as baal's ``BALD``,
    ``Entropy``, ``Margin`` and ``Certainty`` do. ``"predictive_entropy"`` is another name for entropy.
    ``"variation_ratio"`` and ``"mean_entropy"`` are those of `score_ensemble`.

    Args:
        strategy: One of these names.
        probabilities: The predictions are probabilities, not logits.
        temperature: Divides the logits; positive.
        reduction: How the utilities of a sample that has several become one, as for baal's heuristics.

    Raises:
        TypeError: strategy is neither a name nor a tuple of names.
        ValueError: It is not one of these names.
    """

    def __init__(
        self,
        strategy: str = "bald",
        *,
        probabilities: bool = False,
        temperature: float = 1.0,
        reduction: str | Callable[[np.ndarray], np.ndarray] = "none",
    ) -> None:
        checked_names("strategy", strategy, (*STRATEGIES, *ENSEMBLE_STRATEGIES))
        super().__init__(reverse=True, reduction=reduction)
        self.strategy = "predictive_entropy" if strategy == "entropy" else strategy
        self.probabilities, self.temperature = probabilities, temperature

    def compute_score(self, predictions: Any, target_predictions: Any = None) -> np.ndarray:
        """Utilities (N, ...), higher = label first, NaN where a sample has no distribution.

        Raises:
            TypeError: predictions is not an array of a floating dtype.
            ValueError: it has no class axis, or no axis of passes for a strategy that compares passes.
        """
        x = as_tensor("predictions", predictions)
        alone = (
            x.dim() == 2 and self.strategy != "predictive_entropy" and self.strategy in ENSEMBLE_STRATEGIES
        )
        if x.dim() < 2 or alone:
            raise ValueError(
                f"predictions must have shape (N, C, ..., passes) for {self.strategy!r}, got {tuple(x.shape)}"
            )
        x = (x[..., None] if x.dim() == 2 else x).movedim((-1, 1), (0, -1))  # (passes, N, ..., C)
        shape = x.shape[1:-1]
        passes = x.reshape(len(x), -1, x.shape[-1])
        if self.strategy in ENSEMBLE_STRATEGIES:
            scores = score_ensemble(
                passes, self.strategy, probabilities=self.probabilities, temperature=self.temperature
            )
            return np.asarray(scores.cpu()).reshape(shape)
        ensemble = EnsembleScores(probabilities=self.probabilities, temperature=self.temperature)
        for one in passes:
            ensemble.update(one)
        return utilities(ensemble.probabilities(), self.strategy).reshape(shape)

    def get_uncertainties(self, predictions: Any, target_predictions: Any = None) -> np.ndarray:
        """Utilities (N,); −inf instead of NaN, so that baal's own ways of combining heuristics put such samples last."""
        scores = self.reduction(self.compute_score(predictions))
        return np.where(np.isnan(scores), -np.inf, scores)

    def reorder_indices(self, scores: Any) -> np.ndarray:
        """Indices into the pool, best first, equals by lower index, without the samples that have no utility.

        Raises:
            ValueError: there is more than one utility per sample: reduction is not set.
        """
        scores = np.concatenate(scores) if isinstance(scores, Sequence) else scores
        if scores.ndim != 1:
            raise ValueError(
                f"scores must have shape (N,), got {scores.shape}: set reduction, to 'mean' for example"
            )
        ranks = np.argsort(-scores, kind="stable")
        return ranks[: np.count_nonzero(scores > -np.inf)]
