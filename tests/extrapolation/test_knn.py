"""Scores from neighbors, against the formula in NumPy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefuse.extrapolation import KNN, extrapolate

NAN = float("nan")


def plain(embeddings, scores, k, temperature):
    """Sum of e^(-d / t) s over sum of e^(-d / t), in float64, the k nearest by a stable sort."""
    e, s = embeddings.astype(np.float64), scores.astype(np.float64)
    known = ~np.isnan(s)
    predicted = []
    for row in e:
        d = np.sqrt(np.square(e[known] - row).sum(1))
        nearest = np.argsort(d, kind="stable")[:k]
        weights = np.exp(-d[nearest] / temperature)
        predicted.append((weights * s[known][nearest]).sum() / weights.sum())
    return np.array(predicted)


def draw(n=300, d=5, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.random(n).astype(np.float32)
    scores[rng.permutation(n)[n // 3 :]] = np.nan
    return (rng.standard_normal((n, d)) * scale).astype(np.float32), scores


@pytest.mark.parametrize("temperature", [0.2, 1, 30])
@pytest.mark.parametrize("k", [1, 10, 100])
def test_the_published_formula(k, temperature):
    embeddings, scores = draw()
    predicted = KNN(k, temperature).fit(embeddings, scores).predict(embeddings)
    np.testing.assert_allclose(predicted, plain(embeddings, scores, k, temperature), rtol=2e-6)


def test_far_neighbors_where_the_formula_itself_is_nothing_over_nothing():
    embeddings, scores = draw(scale=1e4)
    far = embeddings[np.isnan(scores)]
    assert np.isnan(plain_of_far(far, embeddings, scores)).any()
    predicted = KNN(10).fit(embeddings, scores).predict(far)
    assert np.isfinite(predicted).all()
    # So far apart, the nearest alone counts, but for such as are nearly as near.
    nearest = KNN(1).fit(embeddings, scores).predict(far)
    assert np.mean(np.isclose(predicted, nearest)) > 0.9


def test_distances_beyond_their_range():
    embeddings = torch.tensor([[3e38, -3e38], [-3e38, 3e38], [3e38, 3e38]])
    fitted = KNN(2).fit(embeddings, torch.tensor([1.0, 2, NAN]))
    assert fitted.predict(embeddings).tolist() == [1, 2, 1.5]


def plain_of_far(far, embeddings, scores):
    with np.errstate(invalid="ignore"):
        return plain(np.concatenate((far, embeddings)), np.concatenate((far[:, 0] * np.nan, scores)), 10, 1)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 12), st.integers(1, 3))
def test_between_the_lowest_and_the_highest_score_of_its_neighbors(data, count, width):
    numbers = st.floats(-1e6, 1e6, width=32)
    x = np.array(data.draw(st.lists(numbers, min_size=count * width, max_size=count * width)), np.float32)
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    scores = np.array(data.draw(st.lists(numbers, min_size=count, max_size=count)), dtype) / 3
    if data.draw(st.booleans()):
        scores[:] = scores[0]
    k = data.draw(st.integers(1, count))
    embeddings = x.reshape(count, width)
    temperature = data.draw(st.sampled_from([1e-3, 1.0, 1e3, math.inf]))
    predicted = KNN(k, temperature).fit(embeddings, scores).predict(embeddings)
    assert (predicted >= scores.min()).all()
    assert (predicted <= scores.max()).all()
    if len(set(scores)) == 1:
        assert (predicted == scores[0]).all()


def test_one_neighbor_gives_its_score():
    embeddings, scores = draw()
    known = ~np.isnan(scores)
    fitted = KNN(1).fit(embeddings, scores)
    assert (fitted.predict(embeddings[known]) == scores[known]).all()


def test_infinite_temperature_is_the_plain_mean():
    embeddings, scores = draw()
    mean = KNN(7, weighting="mean").fit(embeddings, scores).predict(embeddings)
    for temperature in (math.inf, 1e9):
        predicted = KNN(7, temperature).fit(embeddings, scores).predict(embeddings)
        np.testing.assert_allclose(predicted, mean, rtol=1e-6)
    everything = KNN(100, weighting="mean").fit(embeddings, scores).predict(embeddings)
    np.testing.assert_allclose(everything, np.nanmean(scores), rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=10), st.integers(0, 2**40))
def test_adding_the_same_to_all_distances_changes_nothing(places, far):
    """On a line, seen from its end: whole numbers, so that the distances are exact."""
    line = torch.tensor(places, dtype=torch.float64)[:, None]
    fitted = KNN(len(places), 3.0).fit(line, torch.arange(len(places)) ** 2.0)
    near, away = fitted.predict(torch.tensor([[0.0], [-float(far)]], dtype=torch.float64))
    assert near == away


def test_cosine_takes_directions():
    embeddings, scores = draw()
    factors = np.exp(np.random.default_rng(1).standard_normal((300, 1))).astype(np.float32)
    one, other = (
        KNN(4, metric="cosine").fit(e, scores).predict(e) for e in (embeddings, embeddings * factors)
    )
    np.testing.assert_allclose(one, other, rtol=1e-5)


def knn_in_blocks():
    """Answers 37 rows at a time."""
    knn = KNN(9)
    knn.block_rows = 37
    return knn


def test_blocks_and_memory_maps_change_nothing(tmp_path):
    embeddings, scores = draw()
    expected = KNN(9).fit(embeddings, scores).predict(embeddings)
    np.save(tmp_path / "embeddings.npy", embeddings)
    mapped = np.load(tmp_path / "embeddings.npy", mmap_mode="r")
    predicted = knn_in_blocks().fit(mapped, scores).predict(mapped)
    assert type(predicted) is np.ndarray
    np.testing.assert_array_equal(predicted, expected)
    np.testing.assert_array_equal(
        extrapolate(knn_in_blocks(), mapped, scores).scores, extrapolate(KNN(9), embeddings, scores).scores
    )


def test_more_rows_than_are_read_at_a_time():
    rng = np.random.default_rng(0)
    embeddings, scores = rng.standard_normal((40_000, 2)), np.full(40_000, np.nan)
    scores[::200] = rng.standard_normal(200)
    given = np.isfinite(scores)
    found = extrapolate(KNN(3), embeddings, scores).scores
    np.testing.assert_array_equal(found[given], scores[given])
    expected = KNN(3).fit(embeddings[given], scores[given]).predict(embeddings[~given])
    np.testing.assert_array_equal(found[~given], expected)


def test_rows_that_are_not_finite_are_named_as_the_caller_counts_them():
    embeddings, scores = draw()
    fitted = knn_in_blocks().fit(embeddings, scores)
    embeddings[201, 3] = np.inf
    with pytest.raises(ValueError, match=r"^embeddings must be finite, but row 201 "):
        fitted.predict(embeddings)
    scores[201] = 1
    with pytest.raises(ValueError, match=r"^embeddings must be finite, but row 201 "):
        fitted.fit(embeddings, scores)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_dtypes_and_devices(dtype, device):
    embeddings, scores = (torch.from_numpy(a) for a in draw())
    fitted = KNN(5).fit(embeddings.to(device), scores.to(dtype))
    predicted = fitted.predict(embeddings.to(device))
    assert predicted.dtype == (torch.float32 if dtype == torch.float16 else dtype)
    assert predicted.device.type == device
    assert fitted.predict(embeddings[:0].to(device)).shape == (0,)


E, S = torch.zeros(6, 2), torch.tensor([1.0, 2, 3, NAN, NAN, NAN])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: KNN(0), ValueError, "^k "),
        (lambda: KNN(2.5), TypeError, "^k "),
        (lambda: KNN(temperature=0), ValueError, "^temperature "),
        (lambda: KNN(temperature=NAN), ValueError, "^temperature "),
        (lambda: KNN(temperature="1"), TypeError, "^temperature "),
        (lambda: KNN(metric="manhattan"), ValueError, "^metric "),
        (lambda: KNN(weighting="rank"), ValueError, "^weighting "),
        (lambda: KNN(4).fit(E, S), ValueError, "^scores must have at least 4 .* got 3"),
        (lambda: KNN(1).fit(E[0], S), ValueError, "^embeddings "),
        (lambda: KNN(1).fit(E.long(), S), TypeError, "^embeddings "),
        (lambda: KNN(1).fit([[0.0]], S), TypeError, "^embeddings "),
        (lambda: KNN(1).fit(E * NAN, S), ValueError, "^embeddings must be finite"),
        (lambda: KNN(1).fit(E, S[:5]), ValueError, r"^scores .*\(6,\)"),
        (lambda: KNN(1).fit(E, S.nan_to_num().long()), TypeError, "^scores "),
        (lambda: KNN(1).fit(E, S / 0), ValueError, "^scores .* row 0"),
        (lambda: KNN(1).predict(E), RuntimeError, "KNN: predict was called before fit"),
        (lambda: KNN(1).fit(E, S).predict(E[:, :1]), ValueError, "^embeddings .* features"),
        (lambda: KNN(1).fit(E, S).predict(E.double()), ValueError, "^embeddings .* dtype"),
        (lambda: KNN(1).fit(E, S).predict(E * NAN), ValueError, "^embeddings must be finite"),
    ],
)
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
