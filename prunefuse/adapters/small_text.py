"""Query strategies for small-text: ``PoolBasedActiveLearner(factory, Uncertainty("margin"), dataset)``, and `KCenter`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from small_text import EmbeddingBasedQueryStrategy, QueryStrategy
from small_text.query_strategies import constraints

from prunefuse.adapters._probabilities import STRATEGIES, best, told_as, utilities
from prunefuse.ops.arrays import as_tensor
from prunefuse.scoring._scores import checked_names
from prunefuse.selection import k_center_greedy


@constraints(classification_type="single-label")
class Uncertainty(QueryStrategy):
    """A query strategy: the texts that the classifier is least sure of.

    >>> from prunefuse.adapters.small_text import Uncertainty
    >>> learner = PoolBasedActiveLearner(factory, Uncertainty("margin"), data)

    ``"least_confidence"``, ``"margin"`` and ``"entropy"`` pick what small-text's ``LeastConfidence``, ``BreakingTies`` and
    ``PredictionEntropy`` pick. Only what is not labeled is predicted.

    Args:
        strategy: One of these names.

    Attributes:
        scores_: After a query the utilities of the data set, higher = label first, NaN where there is none.

    Raises:
        TypeError: strategy is neither a name nor a tuple of names.
        ValueError: It is not one of these names.
    """

    def __init__(self, strategy: str = "entropy") -> None:
        checked_names("strategy", strategy, STRATEGIES)
        self.strategy = strategy
        self.scores_: np.ndarray | None = None

    def query(
        self, clf: Any, dataset: Any, indices_unlabeled: Any, indices_labeled: Any, y: Any, n: int = 10
    ) -> np.ndarray:
        """Indices into the data set, best first.

        Raises:
            EmptyPoolException, PoolExhaustedException: fewer than n texts are unlabeled.
            ValueError: fewer than n can be selected.
        """
        self._validate_query_input(indices_unlabeled, n)
        unlabeled = np.sort(indices_unlabeled)
        scores = utilities(clf.predict_proba(dataset[unlabeled]), self.strategy)
        self.scores_ = np.full(len(dataset), np.nan, dtype=scores.dtype)
        self.scores_[unlabeled] = scores
        return np.asarray(unlabeled[best(scores, n, "n")[0]])

    def __str__(self) -> str:
        return f"Uncertainty({self.strategy!r})"


class KCenter(EmbeddingBasedQueryStrategy):
    """A query strategy: the texts whose embeddings cover the data, each farthest from what is labeled or picked, as
    ``GreedyCoreset``.

    >>> from prunefuse.adapters.small_text import KCenter
    >>> learner = PoolBasedActiveLearner(factory, KCenter(), data)

    Args:
        normalize: Scale embeddings to length 1 first.
    """

    def __init__(self, normalize: bool = True) -> None:
        self.normalize = normalize

    def sample(
        self,
        clf: Any,
        dataset: Any,
        indices_unlabeled: Any,
        indices_labeled: Any,
        y: Any,
        n: int,
        embeddings: Any,
        embeddings_proba: Any = None,
    ) -> np.ndarray:
        """Indices into the rows of embeddings, in pick order; small-text's ``query`` calls this."""
        x = as_tensor("embeddings", embeddings)
        if self.normalize:
            x = torch.nn.functional.normalize(x)
        with told_as("n", n):
            return np.asarray(k_center_greedy(x, n, labeled=indices_labeled).cpu())

    def __str__(self) -> str:
        return f"KCenter(normalize={self.normalize})"
