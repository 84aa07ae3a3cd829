"""The graph network, against graph convolutions written out in NumPy."""

import numpy as np
import pytest
import torch
from peer_packages import skip_without
from torch.utils._python_dispatch import TorchDispatchMode

skip_without("torch_geometric")
from prunefuse.extrapolation import GNN, _gnn, extrapolate


def draw(n=200, d=3, scored=80, seed=0):
    """A smooth function on a plane of which d - 2 features say nothing, known for a random subset."""
    rng = np.random.default_rng(seed)
    embeddings = rng.standard_normal((n, d)).astype(np.float32) * 4 + 1
    full = (0.01 * np.sin(embeddings[:, 0] / 3) + 0.003 * embeddings[:, 1]).astype(np.float32)
    scores = full.copy()
    scores[rng.permutation(n)[scored:]] = np.nan
    return embeddings, scores, full


def plain(fitted, embeddings, learned, k, temperature, relative, one_hot=None):
    """What the trained weights give, by dense matrices in float64."""
    e = embeddings.astype(np.float64)
    n = len(e)
    distances = np.sqrt(np.square(e[:, None] - e).sum(2))
    np.fill_diagonal(distances, np.inf)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :k]
    adjacency = np.eye(n)
    for i in range(n):
        d = distances[i, nearest[i]]
        adjacency[i, nearest[i]] = np.exp(-(d - d[0] if relative else d) / temperature)
    degree = adjacency.sum(1)
    adjacency = adjacency / np.sqrt(degree)[:, None] / np.sqrt(degree)[None]
    mean, deviation = embeddings.astype(np.float64).mean(0), embeddings.astype(np.float64).std(0)
    x = (e - mean) / deviation
    x = x if one_hot is None else np.concatenate((one_hot, x), 1)
    weights = [p.detach().double().numpy() for p in fitted.network.parameters()]
    layers = sorted(
        zip(weights[::2], weights[1::2], strict=True), key=lambda pair: -max(len(p) for p in pair)
    )
    for step, (a, b) in enumerate(layers):
        weight, bias = (a, b) if a.ndim == 2 else (b, a)
        x = adjacency @ (x @ weight.T) + bias
        x = x if step == 2 else np.maximum(x, 0)
    return x[:, 0] * learned.std() + learned.mean()


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("labeled", [True, False])
def test_three_graph_convolutions(relative, labeled):
    embeddings, scores, full = draw(n=60, scored=60)
    labels = np.arange(60) % 3 if labeled else None
    fitted = GNN(4, epochs=3, temperature=1.5, relative=relative, labels=labels, validation=0.5)
    predicted = fitted.fit(embeddings, scores).predict(embeddings)
    shapes = sorted(tuple(p.shape) for p in fitted.network.parameters() if p.dim() == 2)
    assert shapes == sorted([(512, 6 if labeled else 3), (256, 512), (1, 256)])
    # The part that was trained on is random: its mean and deviation are those that fit best.
    expected = plain(
        fitted, embeddings, full, 4, 1.5, relative, None if labels is None else np.eye(3)[labels]
    )
    scale, shift = np.polyfit(expected, predicted, 1)
    np.testing.assert_allclose(predicted, expected * scale + shift, rtol=1e-4, atol=1e-7)
    assert 0.5 < scale < 2


def test_it_learns_and_more_from_its_labels():
    embeddings, scores, full = draw()
    labels = (full > np.median(full)).astype(np.int64)
    found = extrapolate(GNN(8, epochs=40), embeddings, scores, full_scores=full)
    assert found.unscored.pearson > 0.7
    rest = np.isnan(scores)
    error = np.square(found.scores[rest] - full[rest]).mean()
    assert error < np.square(full[rest] - np.nanmean(scores)).mean()
    told = extrapolate(GNN(8, epochs=40, labels=labels), embeddings, scores, full_scores=full)
    assert told.unscored.pearson > found.unscored.pearson


def test_training_and_prediction_use_one_operator():
    embeddings, scores, _ = draw()
    fitted = GNN(6, epochs=3, dropout=0).fit(embeddings, scores)
    predicted = fitted.predict(embeddings)
    assert not fitted.network.training
    fitted.network.train()
    np.testing.assert_array_equal(fitted.predict(embeddings), predicted)
    # The graph of other rows is found by the same rule as that of fit's.
    fitted._graph = (b"", None)
    np.testing.assert_array_equal(fitted.predict(embeddings), predicted)


def test_the_graph_of_other_rows_is_another():
    embeddings, scores, _ = draw()
    fitted = GNN(6, epochs=2).fit(embeddings, scores)
    whole = fitted.predict(embeddings)
    moved = embeddings.copy()
    moved[100:] += 100
    assert fitted.predict(moved).shape == (200,)
    assert not np.allclose(fitted.predict(embeddings[:100]), whole[:100])
    embeddings[:] = moved  # written in place: no stale graph
    np.testing.assert_array_equal(fitted.predict(embeddings), fitted.predict(moved))


class Searches(TorchDispatchMode):
    """Counts the searches for neighbors that are made meanwhile."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.prunefuse.nearest_neighbors.default
        return function(*args, **(kwargs or {}))


def test_a_graph_is_found_once():
    embeddings, scores, _ = draw()
    fitted = GNN(6, epochs=2)
    with Searches() as searches:
        extrapolate(fitted, embeddings, scores)
        fitted.predict(embeddings)
        assert searches.count == 1
        fitted.k = 5
        fitted.predict(embeddings)
        fitted.predict(embeddings + 1)
        assert searches.count == 3


def test_scores_of_the_validation_part_are_not_trained_on():
    """With targets that only the validation part has, training on it would show."""
    embeddings, scores, _ = draw(scored=200)
    one = GNN(6, epochs=1, validation=0.3).fit(embeddings, scores)
    order = torch.randperm(200, generator=_gnn.generator(0, "gnn", "validation"))
    changed = scores.copy()
    changed[order[:60].numpy()] = np.random.default_rng(1).random(60)
    other = GNN(6, epochs=1, validation=0.3).fit(embeddings, changed)
    for a, b in zip(one.network.parameters(), other.network.parameters(), strict=True):
        assert torch.equal(a, b)
    assert one.validations != other.validations


def test_the_best_epoch_is_kept():
    embeddings, scores, _ = draw()
    fitted = GNN(6, epochs=30, lr=0.03).fit(embeddings, scores)
    assert len(fitted.validations) == 30
    assert fitted.validations[fitted.best_epoch - 1] == max(fitted.validations)
    again = GNN(6, epochs=fitted.best_epoch, lr=0.03).fit(embeddings, scores)
    np.testing.assert_array_equal(again.predict(embeddings), fitted.predict(embeddings))


def test_the_seed_fixes_everything_and_global_generators_stay():
    embeddings, scores, _ = draw()
    state = torch.get_rng_state()
    one, same, other = (
        GNN(6, epochs=3, seed=s).fit(embeddings, scores).predict(embeddings) for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_far_embeddings_still_hear_each_other():
    """e^(-d / 2) of distances in the thousands is 0; relative weights are those of the same graph nearby."""
    embeddings, scores, _ = draw()
    absolute = GNN(6, epochs=2, relative=False).fit(embeddings * 1e4, scores)
    assert torch.equal(absolute._graph[1].to_dense(), torch.eye(200))
    relative = GNN(6, epochs=2, temperature=2e4).fit(embeddings * 1e4, scores)._graph[1].to_dense()
    torch.testing.assert_close(
        relative, GNN(6, epochs=2).fit(embeddings, scores)._graph[1].to_dense(), rtol=1e-4, atol=1e-6
    )


def test_rows_with_many_equals_are_not_their_own_neighbors():
    e = torch.zeros(9, 2)
    distances, rows = _gnn.others(e, 3, "euclidean", None)
    assert (distances == 0).all()
    assert all(i not in row and len(set(row)) == 3 for i, row in enumerate(rows.tolist()))


def test_kinds_of_arrays(device):
    embeddings, scores, _ = draw()
    e, s = torch.from_numpy(embeddings).to(device), torch.from_numpy(scores).double()
    predicted = GNN(5, epochs=2, labels=torch.arange(200) % 4).fit(e, s).predict(e)
    assert predicted.device == e.device
    assert predicted.dtype == torch.float64
    half = GNN(5, epochs=2).fit(e.half(), s.half()).predict(e.half())
    assert half.dtype == torch.float32
    assert bool(half.isfinite().all())


E, S, _ = draw(n=20, scored=10)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: GNN(0), ValueError, "^k "),
        (lambda: GNN(epochs=0), ValueError, "^epochs "),
        (lambda: GNN(temperature=0), ValueError, "^temperature "),
        (lambda: GNN(dropout=1), ValueError, "^dropout "),
        (lambda: GNN(dropout="a"), TypeError, "^dropout "),
        (lambda: GNN(lr=-1), ValueError, "^lr "),
        (lambda: GNN(validation=0), ValueError, "^validation "),
        (lambda: GNN(metric="l1"), ValueError, "^metric "),
        (lambda: GNN(labels=np.zeros(3)), TypeError, "^labels "),
        (lambda: GNN(labels=np.array([-1, 0])), ValueError, "^labels "),
        (lambda: GNN(3, labels=np.zeros(19, int)).fit(E, S), ValueError, "^labels .* 20 .* got 19"),
        (lambda: GNN(20).fit(E, S), ValueError, "^k must be below"),
        (lambda: GNN(3).fit(E, S * np.nan), ValueError, "^scores .* at least 4"),
        (lambda: GNN(3).fit(E * np.nan, S), ValueError, "^embeddings must be finite"),
        (lambda: GNN(3).predict(E), RuntimeError, "GNN: predict was called before fit"),
        (lambda: GNN(3, epochs=1).fit(E, S).predict(E[:3]), ValueError, "^embeddings .* more rows than k"),
        (lambda: GNN(3, epochs=1).fit(E, S).predict(E[:, :2]), ValueError, "^embeddings .* features"),
    ],
)
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
