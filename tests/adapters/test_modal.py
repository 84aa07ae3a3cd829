"""modAL's learners with our query strategies: modAL's own picks, and the right ones where it has none."""

import pickle

import numpy as np
import pytest
import torch
from peer_packages import skip_without
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

skip_without("modAL")
from modAL.disagreement import consensus_entropy_sampling
from modAL.models import ActiveLearner, Committee
from modAL.uncertainty import entropy_sampling, margin_sampling, uncertainty_sampling

from prunefuse.adapters.modal import Disagreement, Uncertainty

THEIRS = {
    "least_confidence": uncertainty_sampling,
    "margin": margin_sampling,
    "entropy": entropy_sampling,
}


@pytest.fixture(scope="module")
def digits():
    return load_digits(return_X_y=True)


def learner(digits, strategy, rows=slice(0, 100)):
    X, y = digits
    return ActiveLearner(LogisticRegression(C=0.001), strategy, X[rows], y[rows])


class Known:
    """A learner whose prediction is known."""

    def __init__(self, probabilities):
        self.probabilities = probabilities

    def predict_proba(self, X):
        return self.probabilities


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("n", [1, 25])
def test_picks_what_modal_picks_best_first(digits, name, n):
    pool = digits[0][200:]
    theirs, _ = learner(digits, THEIRS[name]).query(pool, n_instances=n)
    ours, instances, utilities = learner(digits, Uncertainty(name)).query(
        pool, n_instances=n, return_metrics=True
    )
    assert set(ours) == set(theirs)
    assert np.all(np.diff(utilities) <= 0)
    np.testing.assert_array_equal(instances, pool[ours])


def test_a_loop_of_modal_learns_from_the_picks(digits):
    X, y = digits
    labeled, pool = np.arange(100), np.arange(100, 1000)
    before = learner(digits, Uncertainty("margin")).score(X[1000:], y[1000:])
    for _ in range(4):
        # A new learner, not `teach`, for which modAL 0.4.2.1 needs scikit-learn < 1.8.
        active = learner(digits, Uncertainty("margin"), labeled)
        picks, instances = active.query(X[pool], n_instances=50)
        np.testing.assert_array_equal(instances, X[pool[picks]])
        labeled, pool = np.append(labeled, pool[picks]), np.delete(pool, picks)
    assert len(pool) == 700
    assert learner(digits, Uncertainty("margin"), labeled).score(X[1000:], y[1000:]) > before


def test_a_learner_that_is_not_fitted_takes_the_first(digits):
    active = ActiveLearner(LogisticRegression(), Uncertainty())
    assert active.query(digits[0], n_instances=3)[0].tolist() == [0, 1, 2]


def committee(digits, strategy):
    members = [learner(digits, uncertainty_sampling, slice(i, 300, 7)) for i in range(3)]
    return Committee(members, strategy)


@pytest.mark.parametrize("strategy", [Disagreement("predictive_entropy"), Uncertainty("entropy")])
def test_a_committee_picks_what_modal_picks(digits, strategy):
    pool = digits[0][300:]
    theirs, _ = committee(digits, consensus_entropy_sampling).query(pool, n_instances=20)
    ours, _ = committee(digits, strategy).query(pool, n_instances=20)
    assert set(ours) == set(theirs)


def test_disagreement_is_the_mean_divergence_from_the_consensus(digits):
    pool = digits[0][300:]
    members = committee(digits, Disagreement("bald"))
    p = members.vote_proba(pool)
    divergence = (p * np.log(p / p.mean(1, keepdims=True))).sum(2).mean(1)
    picks, _ = members.query(pool, n_instances=20)
    assert picks.tolist() == np.argsort(-divergence)[:20].tolist()


def test_ties_nan_and_saturated_rows():
    even, sure, none = [0.5, 0.5], [1.0, 0.0], [np.nan, np.nan]
    active = Known(np.array([sure, none, even, even, none, even, sure]))
    assert Uncertainty("entropy")(active, None, n_instances=4)[0].tolist() == [2, 3, 5, 0]
    with pytest.raises(ValueError, match="only 5 of 7 rows can be selected"):
        Uncertainty("entropy")(active, None, n_instances=6)


def test_predictions_may_be_tensors():
    p = torch.softmax(torch.randn(50, 3), 1)
    picks, utilities = Uncertainty("margin")(Known(p), None, n_instances=5)
    expected, _ = Uncertainty("margin")(Known(p.numpy()), None, n_instances=5)
    assert isinstance(utilities, np.ndarray)
    np.testing.assert_array_equal(picks, expected)


def test_a_strategy_is_plain_data():
    assert pickle.loads(pickle.dumps(Uncertainty("margin"))) == Uncertainty("margin")
    with pytest.raises(
        ValueError, match="strategy must be one of least_confidence, margin, entropy, got 'energy'"
    ):
        Uncertainty("energy")
    with pytest.raises(ValueError, match="strategy must be one of bald"):
        Disagreement("margin")


def test_equals_in_random_order_where_that_is_asked_for(digits):
    X, _ = digits
    started = learner(digits, Uncertainty("margin"))
    assert np.array_equal(
        started.query(X[100:], n_instances=3, random_tie_break=False)[0],
        started.query(X[100:], n_instances=3)[0],
    )
    same = np.repeat(X[100:101], 50, axis=0)
    np.random.seed(0)  # noqa: NPY002
    drawn = [tuple(started.query(same, n_instances=3, random_tie_break=True)[0]) for _ in range(20)]
    assert len(set(drawn)) > 10
    assert all(len(set(picks)) == 3 for picks in drawn)
    first, utilities = started.query(X[100:], n_instances=3)[0], Uncertainty("margin")(started, X[100:], 3)[1]
    assert len(set(utilities.tolist())) == 3
    assert np.array_equal(first, started.query(X[100:], n_instances=3, random_tie_break=True)[0])


def test_too_many_instances_are_told_in_modals_words(digits):
    X, _ = digits
    started = learner(digits, Uncertainty("margin"))
    with pytest.raises(ValueError, match=r"^n_instances is 21, but only 20 of 20 rows can be selected$"):
        started.query(X[:20], n_instances=21)
    with pytest.raises(TypeError, match="n_instances must be an integer"):
        started.query(X[:20], n_instances=1.5)
