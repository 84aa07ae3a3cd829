"""Query strategies for modAL: ``ActiveLearner(estimator, query_strategy=Uncertainty("margin"))``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from modAL.models.base import BaseCommittee, BaseLearner
from sklearn.exceptions import NotFittedError

from prunefuse.adapters._probabilities import STRATEGIES, best, length, utilities
from prunefuse.scoring import ENSEMBLE_STRATEGIES, score_ensemble
from prunefuse.scoring._scores import checked_names


@dataclass(frozen=True)
class Uncertainty:
    """A query strategy: the instances that the learner is least sure of; of a `Committee`, that its mean prediction is least
    sure of.

    >>> from prunefuse.adapters.modal import Uncertainty
    >>> learner = ActiveLearner(LogisticRegression(), Uncertainty("margin"), X[:99], y[:99])
    >>> learner.query(X[99:], n_instances=5)[0].shape
    (5,)

    ``"least_confidence"``, ``"margin"`` and ``"entropy"`` pick what modAL's ``uncertainty_sampling``, ``margin_sampling``
    and ``entropy_sampling`` pick. Of a `Committee`, entropy is its ``consensus_entropy_sampling``.

    Args:
        strategy: One of these names.

    Raises:
        TypeError: strategy is neither a name nor a tuple of names.
        ValueError: It is not one of these names.
    """

    strategy: str = "entropy"

    def __post_init__(self) -> None:
        checked_names("strategy", self.strategy, STRATEGIES)

    def __call__(
        self,
        learner: BaseLearner | BaseCommittee,
        X: Any,
        n_instances: int = 1,
        random_tie_break: bool = False,
        **predict_proba_kwargs: Any,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Indices into the pool X, best first, and their utilities: higher = label first, for the margin too.

        Before the learner is fitted all instances are alike: the first ones are taken. With ``random_tie_break`` equals
        come in random order, drawn from NumPy's global generator.

        Raises:
            ValueError: fewer than n_instances can be selected.
        """
        try:
            scores = utilities(learner.predict_proba(X, **predict_proba_kwargs), self.strategy)
        except NotFittedError:
            scores = np.zeros(length(X))
        return best(scores, n_instances, "n_instances", shuffle=random_tie_break)


@dataclass(frozen=True)
class Disagreement:
    """A query strategy: the instances that the learners of a `Committee` disagree about.

    >>> from prunefuse.adapters.modal import Disagreement
    >>> learners = [ActiveLearner(LogisticRegression(C=c), X_training=X[:99], y_training=y[:99]) for c in (0.1, 1.0)]
    >>> Committee(learners, Disagreement("bald")).query(X[99:], n_instances=5)[0].shape
    (5,)

    Args:
        strategy: ``"bald"`` (the mean divergence of the learners from their consensus), ``"variation_ratio"`` (of their
            votes), ``"predictive_entropy"`` (modAL's ``consensus_entropy_sampling``) or ``"mean_entropy"``.

    Raises:
        TypeError: strategy is neither a name nor a tuple of names.
        ValueError: It is not one of these names.
    """

    strategy: str = "bald"

    def __post_init__(self) -> None:
        checked_names("strategy", self.strategy, ENSEMBLE_STRATEGIES)

    def __call__(
        self,
        committee: BaseCommittee,
        X: Any,
        n_instances: int = 1,
        random_tie_break: bool = False,
        **predict_proba_kwargs: Any,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `Uncertainty`."""
        try:
            passes = committee.vote_proba(X, **predict_proba_kwargs).transpose(1, 0, 2)
            scores = score_ensemble(passes, self.strategy, probabilities=True)
        except NotFittedError:
            scores = np.zeros(length(X))
        return best(scores, n_instances, "n_instances", shuffle=random_tie_break)
