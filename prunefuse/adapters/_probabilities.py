"""What the adapters share: utilities of the class probabilities that other packages' classifiers give."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from prunefuse.errors import TooFewRowsError
from prunefuse.ops.arrays import as_tensor, require_count
from prunefuse.scoring import score
from prunefuse.selection import top_b

# What `score` knows of probabilities; energy and the margin of logits are about logits.
STRATEGIES = ("least_confidence", "margin", "entropy")


def utilities(probabilities: Any, strategy: str) -> np.ndarray:
    """Utilities (N,) of probabilities (N, C), an array of any kind on any device, as NumPy; NaN where a row has none."""
    scores = score(as_tensor("probabilities", probabilities), strategy, probabilities=True)
    return np.asarray(scores.cpu())


def best(
    scores: np.ndarray, count: int, argument: str, *, shuffle: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """`top_b` in the words of another package: ``argument`` is how it calls the number. ``shuffle``: equals by lot.

    Raises:
        TypeError: count is not a whole number.
        ValueError: fewer can be selected.
    """
    count = require_count(argument, count)
    selectable = int(np.count_nonzero(~np.isnan(scores)))
    if count > selectable:
        without = " (the others have no utility)" if selectable < len(scores) else ""
        raise ValueError(
            f"{argument} is {count}, but only {selectable} of {len(scores)} rows can be selected{without}"
        )
    if not shuffle:
        found: tuple[np.ndarray, np.ndarray] = top_b(scores, count)
        return found
    order = np.random.permutation(len(scores))  # noqa: NPY002  (as modAL: the user's seed)
    picks, utilities_of = top_b(scores[order], count)
    return order[picks], utilities_of


@contextmanager
def told_as(argument: str, count: int) -> Iterator[None]:
    """Say that too few can be picked in the words of another package."""
    try:
        yield
    except TooFewRowsError as error:
        raise ValueError(
            f"{argument} is {count}, but only {error.selectable} of {error.rows} rows can be picked"
        ) from error


def length(X: Any) -> int:
    """The number of instances of an array, a sparse matrix or a list."""
    shape = getattr(X, "shape", None)
    return len(X) if shape is None else int(shape[0])
