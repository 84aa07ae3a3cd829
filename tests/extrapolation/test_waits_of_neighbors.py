"""A search for neighbors on a GPU waits for it once in a call at most."""

import pytest
import torch

from prunefuse.extrapolation import KNN, nearest_neighbors

NAN = float("nan")


def integers(rows, width, seed):
    """Rows whose distances are exact in any order of summation."""
    return torch.randint(-9, 10, (rows, width), generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("scale", [1.0, 2.0**100])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_nearest_neighbors(count_waits, metric, scale):
    queries, references = integers(30, 5, 1) * scale, integers(90, 5, 2) * scale
    (distances, indices), waits = count_waits(
        lambda q, r: nearest_neighbors(q, r, 4, metric=metric), queries, references
    )
    assert waits == 1
    expected = nearest_neighbors(queries, references, 4, metric=metric)
    torch.testing.assert_close(distances, expected[0])
    if metric == "euclidean":
        assert torch.equal(indices, expected[1])


@pytest.mark.parametrize("name", ["queries", "references"])
def test_what_nearest_neighbors_refuses(count_waits, name):
    arguments = {"queries": integers(30, 5, 1), "references": integers(90, 5, 2)}
    arguments[name][17, 2] = NAN

    def refuse(q, r):
        with pytest.raises(ValueError, match=f"{name} must be finite, but row 17 is not"):
            nearest_neighbors(q, r, 4)

    count_waits(refuse, *arguments.values())


def test_predictions_of_many_blocks(count_waits):
    embeddings, scores = integers(90, 5, 3), torch.rand(90)
    scores[20:] = NAN

    def fit(e, s):
        model = KNN(4).fit(e, s)
        model.block_rows = 16
        return model

    expected = fit(embeddings, scores).predict(embeddings)
    known = embeddings[:20], scores[:20]

    def waits_of(predict):
        predicted, waits = count_waits(
            lambda e, k, s: fit(k, s).predict(e) if predict else fit(k, s)._like, embeddings, *known
        )
        return predicted, waits

    fitted, (predicted, both) = waits_of(False)[1], waits_of(True)
    assert both - fitted == 1
    torch.testing.assert_close(predicted, expected)
    # The scores, then the rows that have one.
    assert fitted == 2
    embeddings[70, 1] = NAN
    with pytest.raises(ValueError, match="embeddings must be finite, but row 70 is not"):
        waits_of(True)
