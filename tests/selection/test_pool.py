"""Scoring files to a CSV, against the scores of the whole in memory."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

import prunefuse
from prunefuse.scoring._files import LogitsFileError
from prunefuse.selection._pool import score_pool


@pytest.fixture
def pool(tmp_path):
    """A folder of uneven shards, one of them empty, one with two NaN rows; and the rows of all, in order."""
    logits = torch.randn(100, 5, generator=torch.Generator().manual_seed(0)).numpy()
    logits[[62, 70], 3] = np.nan
    folder = tmp_path / "pool"
    folder.mkdir()
    for i, (first, last) in enumerate([(0, 20), (20, 20), (20, 61), (61, 100)]):
        np.save(folder / f"{i}.npy", logits[first:last])
    return folder, logits


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_best_rows_and_where_they_are(pool, tmp_path):
    folder, logits = pool
    said = []
    done = score_pool(
        [folder], tmp_path / "picks.csv", "margin", top=10, temperature=0.5, block_bytes=7 * 20,
        progress=lambda *now: said.append(now),
    )  # fmt: skip
    indices, utilities = prunefuse.top_b(prunefuse.score(logits, "margin", temperature=0.5), 10)
    found = rows(tmp_path / "picks.csv")
    assert list(found[0]) == ["index", "utility", "file", "row"]
    assert [int(row["index"]) for row in found] == indices.tolist()
    assert [np.float32(row["utility"]) for row in found] == utilities.tolist()
    for row in found:
        assert np.array_equal(np.load(row["file"])[int(row["row"])], logits[int(row["index"])])
    assert (done.rows, done.written, done.unselectable) == (100, 10, {folder / "3.npy": 2})
    assert said[-1] == (folder / "3.npy", 100, 100)
    assert [done for _, done, _ in said] == sorted({done for _, done, _ in said})


def test_without_a_top_every_row_is_written(pool, tmp_path):
    folder, logits = pool
    done = score_pool([folder], tmp_path / "all.csv", block_bytes=100)
    found = rows(tmp_path / "all.csv")
    assert [int(row["index"]) for row in found] == list(range(100))
    assert np.array_equal(
        [np.float32(row["utility"]) for row in found], prunefuse.score(logits), equal_nan=True
    )
    assert found[20]["file"] == str(folder / "2.npy")
    assert found[20]["row"] == "0"
    assert (done.written, done.unselectable) == (100, {folder / "3.npy": 2})


def test_probabilities(pool, tmp_path):
    p = torch.softmax(torch.arange(12.0).reshape(3, 4).sin(), 1).double().numpy()
    np.save(tmp_path / "p.npy", p)
    score_pool([tmp_path / "p.npy"], tmp_path / "out.csv", probabilities=True)
    assert [float(row["utility"]) for row in rows(tmp_path / "out.csv")] == prunefuse.score(
        p, probabilities=True
    ).tolist()


def test_nothing_is_written_or_overwritten_on_an_error(pool, tmp_path):
    folder, _ = pool
    out = tmp_path / "out.csv"
    with pytest.raises(
        ValueError, match=r"top is 99, but only 98 of 100 rows can be selected: .*3\.npy has 2 that are NaN"
    ):
        score_pool([folder], out, top=99)
    with pytest.raises(ValueError, match="top must be at most the number of rows, 100, got 101"):
        score_pool([folder], out, top=101)
    with pytest.raises(ValueError, match="strategy must be one of"):
        score_pool([folder], out, "best")
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        score_pool([folder], out, top=0)
    shard = folder / "2.npy"
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(LogitsFileError, match=r"2\.npy: truncated"):
        score_pool([folder], out)
    assert [path.name for path in tmp_path.iterdir()] == ["pool"]
    out.write_text("mine")
    with pytest.raises(FileExistsError, match=r"out\.csv exists and is not overwritten"):
        score_pool([folder], out)
    assert out.read_text() == "mine"
