"""Our heuristic in baal: the ranks of baal's own, for what it takes to be probabilities, and the right ones for the rest."""

import numpy as np
import pytest
import torch
from peer_packages import skip_without
from scipy.special import softmax

skip_without("baal")
from baal.active import ActiveLearningDataset, ActiveLearningLoop
from baal.active import heuristics as theirs

import prunefuse
from prunefuse.adapters.baal import Uncertainty

THEIRS = {
    "bald": theirs.BALD,
    "entropy": theirs.Entropy,
    "margin": theirs.Margin,
    "least_confidence": theirs.Certainty,
}


def logits(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize(
    ("name", "shape"),
    [*((name, (200, 5, 7)) for name in THEIRS), *((name, (200, 5)) for name in list(THEIRS)[1:])],
)
def test_ranks_as_baal_does(name, shape):
    p = softmax(logits(*shape), axis=1)
    ranks, utilities = Uncertainty(name, probabilities=True).get_ranks(p)
    np.testing.assert_array_equal(ranks, THEIRS[name]()(p))
    assert np.all(np.diff(utilities[ranks]) <= 0)


@pytest.mark.parametrize("name", THEIRS)
def test_logits_are_logits_even_if_they_look_like_probabilities(name):
    """baal takes the softmax unless the values could be probabilities, and averages what it was given."""
    p = softmax(logits(50, 4, 6), axis=1)
    ours = Uncertainty(name).get_uncertainties(p)  # declared as logits
    np.testing.assert_allclose(
        ours, Uncertainty(name, probabilities=True).get_uncertainties(softmax(p, 1)), rtol=1e-9, atol=1e-12
    )
    assert not np.allclose(ours, Uncertainty(name, probabilities=True).get_uncertainties(p))


def test_half_precision_probabilities_are_not_softmaxed_again():
    p = torch.softmax(torch.randn(300, 10), 1).bfloat16()
    ours = Uncertainty("entropy", probabilities=True).get_uncertainties(p)
    np.testing.assert_allclose(ours, prunefuse.score(p, probabilities=True).numpy(), rtol=1e-5)


def test_segmentation_with_a_reduction():
    p = softmax(logits(6, 3, 4, 5, 7), axis=1)  # (N, C, height, width, passes)
    ours = Uncertainty("bald", probabilities=True, reduction="mean")
    np.testing.assert_allclose(ours.get_uncertainties(p), theirs.BALD(reduction="mean").get_uncertainties(p))
    np.testing.assert_array_equal(ours(p), theirs.BALD(reduction="mean")(p))
    with pytest.raises(ValueError, match=r"scores must have shape \(N,\), got \(6, 4, 5\): set reduction"):
        Uncertainty("bald", probabilities=True)(p)


def test_batches_from_a_generator():
    x = logits(90, 4, 3)
    whole = Uncertainty("bald")(x)
    np.testing.assert_array_equal(Uncertainty("bald")(part for part in np.split(x, 3)), whole)


@pytest.mark.parametrize("name", ["entropy", "margin", "bald"])
def test_nan_is_never_ranked_and_ties_go_to_the_lower_index(name):
    x = np.zeros((6, 3, 2))
    x[1, 0] = [3, -3]  # sure of it, then sure of the contrary
    x[2, 0, 0] = np.nan
    x[4] = x[1]
    ranks = Uncertainty(name)(x).tolist()
    assert ranks == {"bald": [1, 4, 0, 3, 5]}.get(name, [0, 3, 5, 1, 4])
    combined = theirs.CombineHeuristics([Uncertainty(name), Uncertainty(name)], weights=[1, 1])
    assert combined([x, x])[-1] == 2


def test_one_pass_has_no_disagreement():
    with pytest.raises(ValueError, match=r"shape \(N, C, ..., passes\) for 'bald', got \(5, 3\)"):
        Uncertainty("bald").get_uncertainties(logits(5, 3))
    with pytest.raises(ValueError, match="strategy must be one of"):
        Uncertainty("energy")


def test_the_loop_labels_the_rows_of_the_data_set():
    """Ranks are of the pool; baal turns them into rows of the data set, some of which are labeled."""
    x = torch.randn(40, 5, 8)
    dataset = ActiveLearningDataset(torch.utils.data.TensorDataset(torch.arange(40)))
    dataset.label([3, 17])
    unlabeled = [i for i in range(40) if i not in (3, 17)]

    def predict(pool, **_):
        return x[[int(pool[i][0]) for i in range(len(pool))]].numpy()

    loop = ActiveLearningLoop(dataset, predict, heuristic=Uncertainty("bald"), query_size=4)
    assert loop.step()
    utilities = prunefuse.score_ensemble(x[unlabeled].permute(2, 0, 1), "bald")
    best = prunefuse.top_b(utilities, 4)[0]
    assert set(np.flatnonzero(dataset.labelled)) == {3, 17} | {unlabeled[i] for i in best}
