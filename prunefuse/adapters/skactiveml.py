"""Query strategies for scikit-activeml: `Uncertainty` and `KCenter`.

Ties go to the lower index, where scikit-activeml draws lots: ``random_state`` is there for its interface and plays no part.
The utilities of ``return_utilities=True`` are a matrix of batch_size rows, as its interface has them; it is made only then.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from skactiveml.base import SingleAnnotatorPoolQueryStrategy, SkactivemlClassifier
from skactiveml.utils import MISSING_LABEL, check_equal_missing_label, check_type, is_labeled
from sklearn.base import clone

from prunefuse.adapters._probabilities import STRATEGIES, told_as, utilities
from prunefuse.scoring._scores import checked_names
from prunefuse.selection import k_center_greedy, top_b


class Uncertainty(SingleAnnotatorPoolQueryStrategy):
    """A query strategy: the candidates that a classifier is least sure of.

    >>> from prunefuse.adapters.skactiveml import Uncertainty
    >>> Uncertainty("entropy").query(X, partly, SklearnClassifier(LogisticRegression()), batch_size=5).shape
    (5,)

    ``"least_confidence"``, ``"margin"`` and ``"entropy"`` have the utilities of scikit-activeml's ``UncertaintySampling``
    with the methods ``"least_confident"``, ``"margin_sampling"`` and ``"entropy"``.

    Args:
        strategy: One of these names.
        missing_label: The label of what is not labeled.
        random_state: Plays no part.
    """

    def __init__(
        self, strategy: str = "entropy", missing_label: Any = MISSING_LABEL, random_state: Any = None
    ) -> None:
        super().__init__(missing_label=missing_label, random_state=random_state)
        self.strategy = strategy

    def query(
        self,
        X: Any,
        y: Any,
        clf: SkactivemlClassifier,
        fit_clf: bool = True,
        sample_weight: Any = None,
        candidates: Any = None,
        batch_size: int = 1,
        return_utilities: bool = False,
    ) -> Any:
        """Indices (batch_size,), best first: into X, or into candidates where these are samples.

        Args and errors are those of ``UncertaintySampling.query``. Candidates without a distribution (NaN) are not
        selected; if too few are left, the batch is smaller and a warning says so.

        Raises:
            TypeError, ValueError: an argument, or strategy, is not what it must be.
        """
        X, y, candidates, batch_size, return_utilities = self._validate_data(
            X, y, candidates, batch_size, return_utilities, reset=True
        )
        samples, mapping = self._transform_candidates(candidates, X, y)
        check_type(clf, "clf", SkactivemlClassifier)
        check_equal_missing_label(clf.missing_label, self.missing_label_)
        check_type(fit_clf, "fit_clf", bool)
        checked_names("strategy", self.strategy, STRATEGIES)
        if len(samples) == 0:  # all is labeled; _validate_data has warned
            nothing = np.empty(0, dtype=np.int64)
            return (nothing, np.empty((0, len(X)))) if return_utilities else nothing
        if fit_clf:
            clf = clone(clf).fit(X, y) if sample_weight is None else clone(clf).fit(X, y, sample_weight)
        scores = utilities(clf.predict_proba(samples), self.strategy)
        selectable = int(np.count_nonzero(~np.isnan(scores)))
        if selectable < batch_size:
            warnings.warn(
                f"'batch_size={batch_size}' is larger than the number of candidates with a utility. Instead, "
                f"'batch_size={selectable}' was set.",
                stacklevel=2,
            )
            batch_size = selectable
        if mapping is not None:
            scores, own = np.full(len(X), np.nan), scores
            scores[mapping] = own
        picks, _ = top_b(scores, batch_size)
        if not return_utilities:
            return picks
        rows = np.repeat(scores[None], batch_size, axis=0)
        for i in range(batch_size):
            rows[i + 1 :, picks[i]] = np.nan
        return picks, rows


class KCenter(SingleAnnotatorPoolQueryStrategy):
    """A query strategy: the candidates that cover X, each farthest (Euclidean) from what is labeled or picked, as ``CoreSet``.

    >>> from prunefuse.adapters.skactiveml import KCenter
    >>> KCenter().query(X, partly, batch_size=5).shape
    (5,)

    Where nothing is labeled the first is the candidate nearest to their mean. Memory is that of a copy of X.

    Args:
        missing_label: The label of what is not labeled.
        random_state: Plays no part.
    """

    def __init__(self, missing_label: Any = MISSING_LABEL, random_state: Any = None) -> None:
        super().__init__(missing_label=missing_label, random_state=random_state)

    def query(
        self, X: Any, y: Any, candidates: Any = None, batch_size: int = 1, return_utilities: bool = False
    ) -> Any:
        """Indices (batch_size,) in pick order: into X, or into candidates where these are samples.

        The utilities are the distances to the nearest center before each pick, NaN for what cannot be picked; all 0 while
        there is no center.

        Raises:
            TypeError, ValueError: an argument is not what it must be, or fewer than batch_size candidates are unlabeled.
        """
        X, y, candidates, batch_size, return_utilities = self._validate_data(
            X, y, candidates, batch_size, return_utilities, reset=True
        )
        samples, mapping = self._transform_candidates(candidates, X, y)
        labeled = is_labeled(y, self.missing_label_)
        size = len(samples) if mapping is None else len(X)
        if mapping is None:
            mapping = np.arange(size)
        else:
            mapping = np.sort(mapping[~labeled[mapping]])
            samples = X[mapping]
        points = np.concatenate([samples, X[labeled]]).reshape(len(samples) + int(labeled.sum()), -1)
        if points.dtype not in (np.float32, np.float64):
            points = points.astype(np.float64)
        with told_as("batch_size", batch_size):
            picks = k_center_greedy(points, batch_size, labeled=np.arange(len(samples), len(points)))
        if not return_utilities:
            return mapping[picks]
        rows = np.full((batch_size, size), np.nan)
        nearest = np.full(len(samples), np.inf)
        for center in points[len(samples) :]:
            nearest = np.minimum(nearest, np.linalg.norm(points[: len(samples)] - center, axis=1))
        for row, pick in zip(rows, picks, strict=True):
            row[mapping] = np.where(np.isinf(nearest), 0, nearest)
            nearest = np.minimum(nearest, np.linalg.norm(points[: len(samples)] - points[pick], axis=1))
            nearest[pick] = np.nan
        return mapping[picks], rows
