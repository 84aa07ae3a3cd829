"""small-text's active learner with our query strategies: its own picks, and the right ones where it has none."""

import numpy as np
import pytest
import torch
from peer_packages import skip_without
from scipy.sparse import csr_matrix
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

skip_without("small_text")
from small_text import (
    BreakingTies,
    GreedyCoreset,
    LeastConfidence,
    PoolBasedActiveLearner,
    PredictionEntropy,
    SklearnClassifier,
    SklearnClassifierFactory,
    SklearnDataset,
    SubsamplingQueryStrategy,
)
from small_text.query_strategies import EmptyPoolException, PoolExhaustedException

import prunefuse
from prunefuse.adapters.small_text import KCenter, Uncertainty

THEIRS = {"least_confidence": LeastConfidence, "margin": BreakingTies, "entropy": PredictionEntropy}
LABELED = np.arange(0, 200, 2)
UNLABELED = np.setdiff1d(np.arange(600), LABELED)


@pytest.fixture(scope="module")
def dataset():
    X, y = load_digits(return_X_y=True)
    return SklearnDataset(csr_matrix(X[:600]), y[:600])


@pytest.fixture(scope="module")
def classifier(dataset):
    return SklearnClassifier(LogisticRegression(C=0.001), 10).fit(dataset[LABELED])


class Known:
    """A classifier whose predictions and embeddings of a data set that is an array of row numbers are known."""

    def __init__(self, rows):
        self.rows = rows

    def predict_proba(self, dataset):
        return self.rows[dataset]

    def embed(self, dataset, pbar=None):
        return self.rows[dataset]


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("n", [1, 25, 500])
def test_picks_what_small_text_picks_best_first(dataset, classifier, name, n):
    y = dataset.y[LABELED]
    theirs = THEIRS[name]().query(classifier, dataset, UNLABELED, LABELED, y, n=n)
    strategy = Uncertainty(name)
    ours = strategy.query(classifier, dataset, UNLABELED, LABELED, y, n=n)
    assert set(ours) == set(theirs)
    assert np.all(np.diff(strategy.scores_[ours]) <= 0)
    assert np.isnan(strategy.scores_[LABELED]).all()


def test_the_learner_labels_rows_of_the_data_set(dataset):
    active = PoolBasedActiveLearner(
        SklearnClassifierFactory(LogisticRegression(C=0.001), 10), Uncertainty("margin"), dataset
    )
    active.initialize_data(LABELED, dataset.y[LABELED])
    for _ in range(3):
        picks = active.query(num_samples=20)
        assert not set(picks) & set(active.indices_labeled)
        active.update(dataset.y[picks])
    assert len(active.indices_labeled) == 160


def test_inside_a_subsampling_strategy(dataset, classifier):
    outer = SubsamplingQueryStrategy(Uncertainty("margin"), subsample_size=50)
    picks = outer.query(classifier, dataset, UNLABELED, LABELED, dataset.y[LABELED], n=5)
    assert set(picks) <= set(UNLABELED)
    assert outer.scores_.shape == (50,)


def test_ties_nan_and_order_of_the_pool():
    even, sure, none = [0.5, 0.5], [1.0, 0.0], [np.nan, np.nan]
    clf, rows = Known(np.array([sure, none, even, even, none, even, sure])), np.arange(7)
    strategy, pool = Uncertainty("entropy"), np.array([6, 5, 4, 3, 1, 2])
    assert strategy.query(clf, rows, pool, [0], [0], n=4).tolist() == [2, 3, 5, 6]
    with pytest.raises(ValueError, match="only 4 of 6 rows can be selected"):
        strategy.query(clf, rows, pool, [0], [0], n=5)


def test_the_pool_is_checked_as_small_text_checks_it():
    clf, rows = Known(np.full((3, 2), 0.5)), np.arange(3)
    with pytest.raises(EmptyPoolException):
        Uncertainty().query(clf, rows, np.array([], dtype=int), rows, rows, n=1)
    with pytest.raises(PoolExhaustedException):
        Uncertainty().query(clf, rows, rows[:2], rows[2:], rows[2:], n=3)
    with pytest.raises(RuntimeError, match="multi-label data"):
        Uncertainty().query(clf, rows, rows[:2], rows[2:], csr_matrix([[1, 1]]), n=1)
    with pytest.raises(ValueError, match="strategy must be one of least_confidence, margin, entropy"):
        Uncertainty("bald")


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.filterwarnings("ignore:Default distance metric")
def test_k_center_picks_what_greedy_coreset_picks(normalize):
    rows = np.arange(300)
    clf = Known(np.random.default_rng(0).normal(size=(300, 8)))
    unlabeled, labeled = rows[5:], rows[:5]
    theirs = GreedyCoreset(normalize=normalize).query(clf, rows, unlabeled, labeled, labeled, n=30)
    ours = KCenter(normalize=normalize).query(clf, rows, unlabeled, labeled, labeled, n=30)
    assert ours.tolist() == theirs.tolist()


def test_k_center_without_labels_and_with_tensors():
    rows, features = np.arange(50), torch.randn(50, 4)
    picks = KCenter(normalize=False).query(Known(features), rows, rows, rows[:0], rows[:0], n=7)
    assert picks.tolist() == prunefuse.k_center_greedy(features, 7).tolist()


def test_they_print_as_small_text_prints():
    assert str(Uncertainty("margin")) == "Uncertainty('margin')"
    assert str(KCenter()) == "KCenter(normalize=True)"
