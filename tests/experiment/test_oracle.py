"""Answers of an oracle are checked before they are used."""

from typing import Any

import numpy as np
import pytest
import torch

from prunefuse.experiment.oracle import ask


@pytest.mark.parametrize(
    "answer", [[2, 0], (2, 0), np.array([2, 0]), torch.tensor([2, 0]), [np.int16(2), torch.tensor(0)]]
)
def test_sequences_of_integers_are_taken(answer: Any) -> None:
    labels = ask(lambda _: answer, [5, 7], 3)
    assert labels == (2, 0)
    assert all(type(label) is int for label in labels)


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ([1], ValueError, "oracle must answer 2 labels.*got 1"),
        ([1, 2, 0], ValueError, "oracle must answer 2 labels.*got 3"),
        ([1, 3], ValueError, r"\[0, 3\) for sample 7, got 3"),
        ([-1, 0], ValueError, "sample 5, got -1"),
        ([1.0, 2.0], TypeError, r"integer label for sample 5, got 1\.0"),
        (np.array([1.0, 2.0]), TypeError, "integer label"),
        (["1", "2"], TypeError, "integer label for sample 5, got '1'"),
        ([0, None], TypeError, "sample 7, got None"),
        ([True, False], TypeError, "integer label"),
        (torch.tensor([[1], [2]]), ValueError, r"shape \(2,\), got shape \(2, 1\)"),
        (np.array([[1], [2]]), ValueError, r"shape \(2,\), got shape \(2, 1\)"),
        (torch.tensor(1), ValueError, r"shape \(2,\), got shape \(\)"),
        (None, TypeError, "sequence of labels, got NoneType"),
        (1, TypeError, "sequence of labels, got int"),
    ],
)
def test_anything_else_is_refused(answer: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ask(lambda _: answer, [5, 7], 3)
