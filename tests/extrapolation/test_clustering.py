"""Scores without labels: clusters that do not collapse, and training dynamics of what the head says in the end."""

import numpy as np
import pytest
import torch

from prunefuse.dynamics import DynamicUncertainty, El2n
from prunefuse.extrapolation import KNN, Clustering, extrapolate, score_clusters
from prunefuse.extrapolation._clustering import balance
from prunefuse.training import Recipe

QUICK = Clustering(
    clusters=4, neighbors=5, recipe=Recipe(epochs=14, batch_size=32, lr=0.3, weight_decay=0, momentum=0)
)


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return (pixels / 16).astype(np.float32), labels


def blobs(count=100, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 6)) + 2 * rng.normal(size=(4, 6))[np.arange(count) % 4]


def sinkhorn(cosines, sharpness, iterations):
    q = np.exp(cosines / sharpness)
    for _ in range(iterations):
        q = q / q.sum(0, keepdims=True)
        q = q / q.sum(1, keepdims=True)
    return q


def test_balanced_assignments_are_sinkhorns():
    cosines = np.random.default_rng(0).uniform(-1, 1, (64, 8))
    cosines[:, 0] += 1  # what all would rather have
    for iterations in (1, 3):
        expected = sinkhorn(cosines, 0.05, iterations)
        np.testing.assert_allclose(balance(torch.tensor(cosines), 0.05, iterations), expected, rtol=1e-9)
    many = balance(torch.tensor(cosines), 0.05, 2000)
    torch.testing.assert_close(many.sum(0), torch.full((8,), 8.0, dtype=torch.float64), rtol=1e-3, atol=0)
    torch.testing.assert_close(many.sum(1), torch.ones(64, dtype=torch.float64))
    sharp = balance(torch.tensor(cosines).float(), 1e-3, 3)  # e^2000 is beyond any float
    torch.testing.assert_close(sharp.sum(1), torch.ones(64))


def test_scores_are_those_of_the_full_dump_for_the_final_pseudo_label():
    x, dump = torch.tensor(blobs()), []
    scores = {
        "du": DynamicUncertainty(window=5, ddof=1, omitted=1),
        "du0": DynamicUncertainty(window=10, ddof=0, omitted=0),
        "el2n": El2n(),
    }
    result = score_clusters(x, QUICK, scores, on_epoch=lambda head: dump.append(head(x).detach().softmax(1)))
    p = torch.stack(dump).numpy()
    assert p.shape == (14, 100, 4)
    final = p[-1].argmax(1)
    assert result.labels.tolist() == final.tolist()
    assert (p.argmax(2) != final).any()  # so it matters that the label is the final one
    own = p[:, np.arange(100), final]

    def uncertainty(window, ddof, count):
        return np.mean([own[k : k + window].std(0, ddof=ddof) for k in range(count)], 0)

    np.testing.assert_allclose(result.scores["du"], uncertainty(5, 1, 14 - 5), rtol=1e-9)
    np.testing.assert_allclose(result.scores["du0"], uncertainty(10, 0, 14 - 10 + 1), rtol=1e-9)
    errors = np.linalg.norm(p - np.eye(4)[final], axis=2).mean(0)
    np.testing.assert_allclose(result.scores["el2n"], errors, rtol=1e-9)


def test_one_seed_repeats_bit_for_bit_and_leaves_the_generators():
    x = blobs()
    runs = []
    for seed, disturbance in ((3, 1), (3, 2), (4, 1)):
        torch.manual_seed(disturbance)
        before = torch.get_rng_state()
        runs.append(score_clusters(x, QUICK, seed=seed))
        assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(runs[0].labels, np.ndarray)
    assert np.array_equal(runs[0].labels, runs[1].labels)
    assert np.array_equal(runs[0].scores["du"], runs[1].scores["du"])
    assert torch.equal(runs[0].head.prototypes, runs[1].head.prototypes)
    assert not np.array_equal(runs[0].scores["du"], runs[2].scores["du"])


def test_only_the_subset_is_read(tmp_path):
    x, rows = blobs(), np.random.default_rng(1).permutation(100)[:60]
    alone = score_clusters(x[rows], QUICK)
    others = np.full_like(x, np.nan)
    others[rows] = x[rows]
    np.save(tmp_path / "embeddings.npy", others)
    result = score_clusters(np.load(tmp_path / "embeddings.npy", mmap_mode="r"), QUICK, subset=rows)
    assert np.array_equal(result.labels, alone.labels)
    assert np.array_equal(result.scores["du"][rows], alone.scores["du"])
    assert np.isnan(np.delete(result.scores["du"], rows)).all()
    assert np.array_equal(score_clusters(x, QUICK, subset=rows.tolist()).labels, alone.labels)


def test_on_a_device(device):
    x = torch.tensor(blobs())
    expected, result = (score_clusters(e, QUICK, subset=range(10, 90)) for e in (x, x.to(device)))
    assert result.labels.device.type == result.scores["du"].device.type == device
    assert torch.equal(result.labels.cpu(), expected.labels)
    torch.testing.assert_close(
        result.scores["du"].cpu(), expected.scores["du"], rtol=1e-6, atol=1e-9, equal_nan=True
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_embeddings_are_computed_with_in_float32(dtype):
    x = torch.tensor(blobs()).to(dtype)
    result, expected = score_clusters(x, QUICK), score_clusters(x.float(), QUICK)
    assert torch.equal(result.scores["du"], expected.scores["du"])


def test_samples_that_are_all_alike():
    result = score_clusters(torch.ones(50, 3), QUICK)
    assert result.scores["du"].isfinite().all()


def test_errors():
    x = blobs()
    for options, message in (
        ({"clusters": 1}, "clusters"),
        ({"neighbors": 0}, "neighbors"),
        ({"iterations": 0}, "iterations"),
        ({"temperature": 0.0}, "temperature"),
        ({"sharpness": float("inf")}, "sharpness"),
    ):
        with pytest.raises(ValueError, match=message):
            Clustering(**options)
    with pytest.raises(TypeError, match="clusters"):
        Clustering(clusters=2.5)
    for subset in ([0, 0, 1], [-1, 2], [100], [[1], [2]], []):
        with pytest.raises(ValueError, match="subset"):
            score_clusters(x, QUICK, subset=np.array(subset, dtype=np.int64))
    with pytest.raises(TypeError, match="subset"):
        score_clusters(x, QUICK, subset=[0.5, 1.5])
    with pytest.raises(ValueError, match="neighbors"):
        score_clusters(x[:5], QUICK)
    with pytest.raises(ValueError, match="clusters"):
        score_clusters(x, Clustering(clusters=40, neighbors=5, recipe=QUICK.recipe))
    x[[7, 9], 2] = np.nan, np.inf
    with pytest.raises(ValueError, match="finite, but row 9 is"):
        score_clusters(x, QUICK, subset=[9, 7, 1])
    x = blobs()
    with pytest.raises(ValueError, match="epochs"):
        score_clusters(x, QUICK, {"du": DynamicUncertainty(window=20)})


def test_a_head_that_was_changed_is_not_taken_for_the_first():
    def spoil(head):
        head.prototypes.data.neg_()

    with pytest.raises(RuntimeError, match="other pseudo-labels"):
        score_clusters(blobs(), QUICK, on_epoch=spoil)


def test_on_digits_clusters_are_classes_and_scores_extrapolate(digits):
    from sklearn.metrics import normalized_mutual_info_score

    pixels, classes = digits
    subset = np.random.default_rng(0).permutation(len(pixels))[:600]
    known = [score_clusters(pixels, Clustering(10), subset=subset, seed=s) for s in range(6)]
    for result in known:
        sizes = np.bincount(result.labels, minlength=10)
        assert sizes.min() > 60 / 3
        assert sizes.max() < 60 * 2
        table = np.zeros((10, 10))
        np.add.at(table, (result.labels, classes[subset]), 1)
        assert table.max(1).sum() / 600 > 0.65  # purity; by chance about 0.17
        assert normalized_mutual_info_score(classes[subset], result.labels) > 0.65
    # Against other heads, which saw all samples.
    full = [score_clusters(pixels, Clustering(10), seed=100 + s) for s in range(6)]
    scores, full_scores = (np.mean([r.scores["du"] for r in runs], 0) for runs in (known, full))
    found = extrapolate(KNN(k=20), pixels, scores, full_scores=full_scores)
    assert found.unscored.samples == len(pixels) - 600
    assert found.unscored.spearman > 0.3
    assert found.unscored.overlap > 0.57
