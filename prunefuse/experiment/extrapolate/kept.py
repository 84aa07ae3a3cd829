"""Which samples: the random subset, and those that are kept by their scores. The tables that say so."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from prunefuse import _files as files
from prunefuse._seeds import generator
from prunefuse.selection._batches import best_of_each
from prunefuse.selection._top_b import top_b

COLUMNS = ("index", "score", "source")
SOURCES = ("known", "extrapolated", "none")


def keep_best(scores: Tensor, count: int, seed: int, labels: Tensor | None = None) -> Tensor:
    """The ``count`` samples of highest score, best first.

    Args:
        scores: (N,) floating; NaN is never kept. Equals are kept in random order: data sets in folders are sorted by
            class, so the lower index would favor the first classes where scores are counts.
        count: At most the number of scores that are not NaN.
        seed: Fixes the order of equals.
        labels: (N,) classes: as many of each are kept as there are, the best of each, and then the second best of each,
            and so on.

    Returns:
        Indices (count,) int64, on the CPU.

    Raises:
        ValueError: there are fewer scores.
    """
    order = torch.randperm(len(scores), generator=generator(seed, "equal scores"))
    shuffled = scores.cpu()[order]
    rows = top_b(shuffled, count)[0] if labels is None else best_of_each(shuffled, labels[order], count)
    return order[rows]


def random_subset(samples: int, count: int, seed: int, purpose: str, labels: Tensor | None = None) -> Tensor:
    """``count`` random samples, ascending; with ``labels`` (N,) as many of every class as there are."""
    draws = torch.rand(samples, dtype=torch.float64, generator=generator(seed, purpose))
    return keep_best(draws, count, seed, labels).sort().values


def write_scores(path: Path, indices: Tensor, scores: Tensor | None, known: Tensor | None) -> None:
    """Write a table of samples: index into the data set, score, and where the score is from.

    Args:
        path: The .csv file, written in one step.
        indices: (n,).
        scores: (N,) of all samples of the data set; None = there are none.
        known: (N,) bool: recorded, not extrapolated.
    """
    rows = []
    for index in indices.tolist():
        if scores is None or known is None:
            rows.append({"index": index, "score": None, "source": "none"})
        else:
            source = "known" if known[index] else "extrapolated"
            rows.append({"index": index, "score": repr(float(scores[index])), "source": source})
    files.write_text(path, files.csv_text(COLUMNS, rows))


def read_kept(path: Path) -> Tensor:
    """The indices (n,) int64 of a table such as kept.csv, in its order.

    >>> from prunefuse.experiment.extrapolate import read_kept
    >>> from pathlib import Path
    >>> _ = Path("kept.csv").write_text("index,score,source\\n7,0.9,known\\n2,0.4,extrapolated\\n")
    >>> read_kept(Path("kept.csv"))
    tensor([7, 2])
    """
    return torch.tensor([int(row["index"]) for row in files.read_csv(path)], dtype=torch.int64)


def read_scores(path: Path, samples: int) -> Tensor:
    """Scores (samples,) float64 of a table, NaN for samples it does not have."""
    scores = torch.full((samples,), torch.nan, dtype=torch.float64)
    for row in files.read_csv(path):
        scores[int(row["index"])] = float(row["score"])
    return scores


def finite(scores: Tensor) -> Tensor:
    """Scores with one more than the largest in the place of infinite ones, as of samples never learned."""
    usual = scores[scores.isfinite()]
    most = float(usual.max()) if len(usual) else 0.0
    return torch.where(scores == torch.inf, most + 1, scores)
