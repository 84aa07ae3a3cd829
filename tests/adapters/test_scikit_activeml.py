"""Our strategies in scikit-activeml: the picks and utilities of its own, and the right picks where it has none.

Its checks of arguments are in test_scikit_activeml_template.py.
"""

import tracemalloc

import numpy as np
import pytest
from peer_packages import skip_without
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

skip_without("skactiveml")
from skactiveml.classifier import ParzenWindowClassifier, SklearnClassifier
from skactiveml.pool import CoreSet, SubSamplingWrapper, UncertaintySampling

from prunefuse.adapters.skactiveml import KCenter, Uncertainty

METHODS = {"least_confidence": "least_confident", "margin": "margin_sampling", "entropy": "entropy"}
RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3))
Y = np.where(np.arange(40) < 8, np.arange(40) % 2, np.nan)
UNLABELED = np.arange(8, 40)
CLF = ParzenWindowClassifier(classes=[0, 1], random_state=0)


def strategies(kind, **parameters):
    """Ours and theirs, and the arguments that both take."""
    if kind == "uncertainty":
        return Uncertainty("margin", **parameters), UncertaintySampling("margin_sampling", **parameters)
    return KCenter(**parameters), CoreSet(**parameters)


def arguments(kind, **changes):
    own = {"X": X, "y": Y, "clf": CLF} if kind == "uncertainty" else {"X": X, "y": Y}
    return {**own, **changes}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("n", [1, 40])
def test_picks_and_utilities_are_those_of_uncertainty_sampling(name, n):
    x, labels = load_digits(return_X_y=True)
    y = np.where(np.arange(len(x)) < 150, labels, np.nan)
    clf = SklearnClassifier(LogisticRegression(C=0.001), classes=range(10))
    theirs = UncertaintySampling(METHODS[name], random_state=0)
    expected, their_utilities = theirs.query(x, y, clf, batch_size=n, return_utilities=True)
    picks, utilities = Uncertainty(name).query(x, y, clf, batch_size=n, return_utilities=True)
    assert picks.tolist() == expected.tolist()
    np.testing.assert_allclose(utilities, their_utilities, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_k_center_picks_and_utilities_are_those_of_core_set(dtype):
    x = X.astype(dtype)
    expected, their_utilities = CoreSet(random_state=0).query(x, Y, batch_size=12, return_utilities=True)
    picks, utilities = KCenter().query(x, Y, batch_size=12, return_utilities=True)
    assert picks.tolist() == expected.tolist()
    np.testing.assert_allclose(utilities, their_utilities, rtol=1e-5)
    assert KCenter().query(x, Y, batch_size=12).tolist() == expected.tolist()


def assert_same_results(ours, theirs, given):
    for one, other in zip(*(s.query(**given, return_utilities=True) for s in (ours, theirs)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("kind", ["uncertainty", "k_center"])
@pytest.mark.parametrize(
    "changes",
    [
        {"candidates": [9]},
        {"candidates": [9, 30, 12]},
        {"candidates": UNLABELED, "batch_size": 3},
        {"candidates": X[UNLABELED], "batch_size": 3},
        {"candidates": X[20:] + 1, "batch_size": 3},
        {"batch_size": 32},
        {"y": Y[:, None]},
    ],
    ids=["one", "indices", "unlabeled", "samples", "new samples", "all", "column"],
)
@pytest.mark.filterwarnings("ignore:A column-vector y")
def test_results_are_theirs_whatever_the_candidates(kind, changes):
    assert_same_results(*strategies(kind, random_state=0), arguments(kind, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"fit_clf": False, "clf": clone(CLF).fit(X, np.arange(40) % 2)},
        {"sample_weight": np.linspace(0.1, 1, 40)},
    ],
    ids=["fitted", "weights"],
)
def test_results_are_theirs_whatever_the_classifier(changes):
    assert_same_results(*strategies("uncertainty"), arguments("uncertainty", **changes, batch_size=5))


@pytest.mark.parametrize("kind", ["uncertainty", "k_center"])
@pytest.mark.parametrize(
    ("missing", "classes", "dtype"),
    [(0, [1, 2], int), (None, ["A", "B"], object), ("", ["A", "B"], str)],
    ids=["zero", "none", "empty"],
)
def test_results_are_theirs_whatever_marks_a_missing_label(kind, missing, classes, dtype):
    y = np.full(40, missing, dtype=dtype)
    y[:2] = classes
    changes = {"y": y, "batch_size": 5}
    if kind == "uncertainty":
        changes["clf"] = ParzenWindowClassifier(classes=classes, missing_label=missing)
    assert_same_results(*strategies(kind, missing_label=missing), arguments(kind, **changes))


@pytest.mark.parametrize("kind", ["uncertainty", "k_center"])
def test_queries_repeat_and_change_nothing(kind):
    given = arguments(kind, batch_size=4, return_utilities=True)
    before = X.copy(), Y.copy(), vars(CLF).copy()
    strategy = strategies(kind)[0]
    first, second = strategy.query(**given), strategy.query(**given)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(X, before[0])
    np.testing.assert_array_equal(Y, before[1])
    assert vars(CLF) == before[2]
    assert clone(strategy).get_params() == strategy.get_params()


class Known(ParzenWindowClassifier):
    """A classifier whose predictions are known."""

    rows = None

    def predict_proba(self, X):
        return self.rows[-len(X) :]


def test_ties_and_nan():
    clf = Known(classes=[0, 1]).fit(X[:6], np.full(6, np.nan))
    clf.rows = np.array([[1, 0], [np.nan, np.nan], [0.5, 0.5], [0.5, 0.5], [np.nan, np.nan]])
    y = np.array([0, *[np.nan] * 5])
    assert Uncertainty().query(X[:6], y, clf, fit_clf=False, batch_size=3).tolist() == [3, 4, 1]
    with pytest.warns(
        UserWarning, match="'batch_size=4' is larger than the number of candidates with a utility"
    ):
        picks = Uncertainty().query(X[:6], y, clf, fit_clf=False, batch_size=4)
    assert picks.tolist() == [3, 4, 1]


def test_a_large_batch_needs_no_matrix():
    """Theirs takes batch_size x n utilities, asked for or not: 80 GB for 100,000 of 100,000."""
    n, b = 20_000, 10_000
    x = np.random.default_rng(0).normal(size=(n, 2))
    y = np.full(n, np.nan)
    clf = Known(classes=[0, 1]).fit(x[:1], y[:1])
    p = np.random.default_rng(1).uniform(size=n)
    clf.rows = np.stack([p, 1 - p], axis=1)
    tracemalloc.start()
    picks = Uncertainty("margin").query(x, y, clf, fit_clf=False, batch_size=b)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert picks.tolist() == np.argsort(np.abs(2 * p - 1), kind="stable")[:b].tolist()
    assert peak < 100 * n * 8


def test_labeled_rows_are_no_candidates_of_k_center():
    picks = KCenter().query(X, Y, candidates=np.arange(4, 14), batch_size=6)
    assert sorted(picks) == list(range(8, 14))
    with pytest.raises(ValueError, match=r"^batch_size is 7, but only 6 of 14 rows can be picked$"):
        KCenter().query(X, Y, candidates=np.arange(4, 14), batch_size=7)


def test_images_are_points_too():
    images = load_digits().images[:60].astype(int)
    y = np.where(np.arange(60) < 5, 0, np.nan)
    flat = KCenter().query(images.reshape(60, -1), y, batch_size=9)
    assert KCenter().query(images, y, batch_size=9).tolist() == flat.tolist()


@pytest.mark.parametrize("kind", ["uncertainty", "k_center"])
def test_inside_their_wrapper(kind):
    ours = SubSamplingWrapper(strategies(kind)[0], max_candidates=10, random_state=0)
    picks = ours.query(**arguments(kind, batch_size=3))
    assert len(set(picks)) == 3
    assert set(picks) <= set(UNLABELED)


@pytest.mark.filterwarnings("ignore")
def test_a_pool_that_is_all_labeled_gives_an_empty_batch():
    y = (X[:, 0] > X[:, 0].mean()).astype(float)
    classifier = SklearnClassifier(LogisticRegression(), classes=[0, 1])
    assert Uncertainty("margin").query(X, y, classifier, batch_size=3).tolist() == []
    picks, rows = Uncertainty("margin").query(X, y, classifier, batch_size=3, return_utilities=True)
    assert (picks.shape, rows.shape) == ((0,), (0, len(X)))
