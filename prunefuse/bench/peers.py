"""The same work in the active-learning packages, used as their documentation says.

Each function takes the data and returns the call to time; it raises ImportError where the package is not installed.
The packages want probabilities: those that come from logits pay for one SciPy softmax.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunefuse.bench.race import Run


class _Classifier:
    """What modAL and small-text ask: a classifier whose ``predict_proba`` of the pool is known."""

    def __init__(self, probabilities: Any) -> None:
        self._probabilities = probabilities

    def predict_proba(self, pool: Any, **_: Any) -> Any:
        return self._probabilities


def scikit_activeml_scores(logits: Tensor) -> Run:
    """Least confidence, margin and entropy with scikit-activeml."""
    from scipy.special import softmax
    from skactiveml.pool import uncertainty_scores

    x = logits.numpy()

    def run() -> list[Any]:
        p = softmax(x, axis=1)
        methods = ("least_confident", "margin_sampling", "entropy")
        return [uncertainty_scores(p, method=method) for method in methods]

    return run


def modal_scores(logits: Tensor) -> Run:
    """Least confidence, margin p1 - p2 and entropy with modAL."""
    from modAL.uncertainty import classifier_entropy, classifier_margin, classifier_uncertainty
    from scipy.special import softmax

    x = logits.numpy()

    def run() -> list[Any]:
        classifier = _Classifier(softmax(x, axis=1))
        return [f(classifier, x) for f in (classifier_uncertainty, classifier_margin, classifier_entropy)]

    return run


def baal_scores(logits: Tensor) -> Run:
    """Largest probability, margin p1 - p2 and entropy with baal."""
    from baal.active.heuristics import Certainty, Entropy, Margin
    from scipy.special import softmax

    x = logits.numpy()
    heuristics = (Certainty(), Margin(), Entropy())

    def run() -> list[Any]:
        p = softmax(x, axis=1)
        return [heuristic.get_uncertainties(p) for heuristic in heuristics]

    return run


def baal_bald(logits: Tensor) -> Run:
    """BALD of passes (S, N, C) with baal."""
    from baal.active.heuristics import BALD
    from scipy.special import softmax

    x = logits.numpy()
    heuristic = BALD()
    # It wants (N, C, S).
    return lambda: [heuristic.get_uncertainties(np.moveaxis(softmax(x, axis=2), 0, 2))]


def small_text_scores(logits: Tensor) -> Run:
    """Largest probability, margin p1 - p2 and negative entropy with small-text."""
    from scipy.special import softmax
    from small_text import BreakingTies, LeastConfidence, PredictionEntropy

    x = logits.numpy()
    strategies = (LeastConfidence(), BreakingTies(), PredictionEntropy())

    def run() -> list[Any]:
        classifier = _Classifier(softmax(x, axis=1))
        return [strategy.score(classifier, x, None, None, None) for strategy in strategies]

    return run


def from_margins(result: Any) -> Tensor:
    """Utilities (3, N) from least confidence, p1 - p2, entropy (modAL)."""
    return _rows(result[0], 1 - result[1], result[2])


def from_confidence(result: Any) -> Tensor:
    """Utilities (3, N) from the largest probability, p1 - p2, entropy (baal)."""
    return _rows(1 - result[0], 1 - result[1], result[2])


def from_small_text(result: Any) -> Tensor:
    """Utilities (3, N) from the largest probability, p1 - p2, negative entropy."""
    return _rows(1 - result[0], 1 - result[1], -result[2])


def from_utilities(result: Any) -> Tensor:
    """Utilities (K, N) from rows of them (scikit-activeml, and baal's BALD)."""
    return _rows(*result)


def _rows(*rows: Any) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(row, dtype=np.float64) for row in rows]))


def modal_top(utilities: Tensor, b: int) -> Run:
    """The b largest with modAL, in no order."""
    from modAL.utils.selection import multi_argmax

    values = utilities.numpy()
    return lambda: torch.from_numpy(multi_argmax(values, b)[0])


def scikit_activeml_k_center(features: Tensor, b: int) -> Run:
    """Greedy k-center with scikit-activeml's core-set strategy; row 0 is labeled."""
    from skactiveml.pool import CoreSet

    x = features.numpy()
    y = np.full(len(x), np.nan)
    y[0] = 0
    strategy = CoreSet(random_state=0)
    return lambda: torch.from_numpy(np.asarray(strategy.query(X=x, y=y, batch_size=b)))


def scikit_learn_k_means(points: Tensor, start: Tensor, moves: int) -> Run:
    """Centers by scikit-learn's Lloyd iterations, with as many threads as torch."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    x, first = points.numpy(), start.numpy()

    def run() -> Tensor:
        found = KMeans(
            len(first), init=first, n_init=1, max_iter=moves, tol=0, algorithm="lloyd", copy_x=True
        )
        with threadpool_limits(torch.get_num_threads()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has not converged
            return torch.from_numpy(found.fit(x).cluster_centers_)

    return run


def faiss_flat(queries: Tensor, references: Tensor, k: int) -> Run:
    """Distances by faiss, which gives them squared; with as many threads as torch."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    x = queries.numpy()
    index = faiss.IndexFlatL2(references.shape[1])
    index.add(references.numpy())
    return lambda: torch.from_numpy(index.search(x, k)[0]).clamp_min(0).sqrt()


def scikit_learn_brute(queries: Tensor, references: Tensor, k: int) -> Run:
    """Distances by scikit-learn's brute force."""
    from sklearn.neighbors import NearestNeighbors

    x = queries.numpy()
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(references.numpy())
    return lambda: torch.from_numpy(search.kneighbors(x)[0])
