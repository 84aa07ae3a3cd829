"""Scoring files to a CSV, against the scores of the whole in memory."""

from __future__ import annotations

import csv
from fractions import Fraction

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


@pytest.fixture
def passes(tmp_path):
    """Three members of an ensemble over 30 rows, one of them in two files, and their logits (3, 30, 4)."""
    logits = torch.randn(3, 30, 4, generator=torch.Generator().manual_seed(1)).numpy()
    logits[1, 7, 2] = np.nan
    (tmp_path / "b").mkdir()
    np.save(tmp_path / "a.npy", logits[0])
    np.save(tmp_path / "b" / "1.npy", logits[1, :13])
    np.save(tmp_path / "b" / "2.npy", logits[1, 13:])
    np.save(tmp_path / "c.npy", logits[2])
    return [tmp_path / "a.npy", tmp_path / "b", tmp_path / "c.npy"], logits


@pytest.mark.parametrize("strategy", [None, "predictive_entropy", "variation_ratio", "mean_entropy"])
def test_ensembles_of_files_and_of_axes(passes, tmp_path, strategy):
    paths, logits = passes
    expected = prunefuse.score_ensemble(logits, strategy or "bald")
    np.save(tmp_path / "first.npy", logits)
    np.save(tmp_path / "second.npy", logits.swapaxes(0, 1))
    given = {"files": paths, 0: [tmp_path / "first.npy"], 1: [tmp_path / "second.npy"]}
    for members, files in given.items():
        how = {"members": members, "block_bytes": 500}
        done = score_pool(files, tmp_path / f"{members}.csv", strategy, **how)
        found = rows(tmp_path / f"{members}.csv")
        assert np.array_equal([np.float32(row["utility"]) for row in found], expected, equal_nan=True)
        assert done.unselectable == {files[0]: 1}
        score_pool(files, tmp_path / f"{members}-top.csv", strategy, top=5, **how)
        picks = [int(row["index"]) for row in rows(tmp_path / f"{members}-top.csv")]
        assert picks == prunefuse.top_b(expected, 5)[0].tolist()


def test_members_may_differ_in_type_but_not_in_rows_or_classes(passes, tmp_path):
    paths, logits = passes
    np.save(paths[2], logits[2].astype(np.float16))
    score_pool(paths, tmp_path / "out.csv", members="files")
    mixed = np.stack([logits[0], logits[1], logits[2].astype(np.float16)])
    expected = prunefuse.score_ensemble(mixed, "bald")
    found = [np.float32(row["utility"]) for row in rows(tmp_path / "out.csv")]
    assert np.array_equal(found, expected, equal_nan=True)
    for wrong, message in (
        (logits[2, :29], "has 29 rows, where the first member, .*a.npy, has 30"),
        (logits[2, :, :3], "has 3 classes"),
    ):
        np.save(paths[2], wrong)
        with pytest.raises(LogitsFileError, match=message):
            score_pool(paths, tmp_path / "no.csv", members="files")
    for strategy, members, message in (
        ("bald", None, "got bald, which is for an ensemble"),
        ("margin", "files", "must be one of bald, .*, got margin, which is not for an ensemble"),
        ("best", "files", "must be one of bald"),
        ("k_center", "files", "which is not for an ensemble"),
    ):
        with pytest.raises(ValueError, match=message):
            score_pool(paths[:1], tmp_path / "no.csv", strategy, members=members, top=2)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_features_are_covered_in_order(tmp_path, dtype):
    features = np.random.default_rng(2).normal(size=(40, 3)).astype(dtype)
    features[11] = np.inf
    np.save(tmp_path / "1.npy", features[:15])
    np.save(tmp_path / "2.npy", features[15:])
    paths, known = [tmp_path / "1.npy", tmp_path / "2.npy"], [3, 30, 30]
    done = score_pool(paths, tmp_path / "a.csv", "k_center", top=6, labeled=known, block_bytes=70)
    expected = prunefuse.k_center_greedy(features, 6, labeled=known).tolist()
    found = rows(tmp_path / "a.csv")
    assert [int(row["index"]) for row in found] == expected
    assert {row["utility"] for row in found} == {""}
    assert (done.scored, done.written, done.unselectable) == (38, 6, {tmp_path / "1.npy": 1})
    # What is excluded is neither picked nor a center.
    without = [*range(0, 40, 2)]
    score_pool(paths, tmp_path / "b.csv", "k_center", top=6, labeled=[3], exclude=without)
    left = np.setdiff1d(np.arange(40), without)
    inside = prunefuse.k_center_greedy(features[left], 6, labeled=[left.tolist().index(3)])
    assert [int(row["index"]) for row in rows(tmp_path / "b.csv")] == left[inside].tolist()
    with pytest.raises(
        ValueError, match=r"top is 39, but only 38 of 39 rows can be selected: .*1\.npy has 1 that"
    ):
        score_pool(paths, tmp_path / "no.csv", "k_center", top=39, labeled=[3])
    for how, message in (
        ({}, "top must be a number of rows"),
        ({"top": 2, "temperature": 2.0}, "features as they are"),
    ):
        with pytest.raises(ValueError, match=message):
            score_pool(paths, tmp_path / "no.csv", "k_center", **how)


def as_file(folder, kind, indices, count):
    path = folder / f"rows.{kind}"
    if kind == "npy":
        np.save(path, indices)
    elif kind == "mask.npy":
        np.save(path, np.isin(np.arange(count), indices))
    elif kind == "csv":
        path.write_text("utility,index\n" + "".join(f"0.5,{i}\n" for i in indices))
    else:
        path.write_text("\n".join(map(str, indices)) + "\n\n")
    return path


@pytest.mark.parametrize("kind", ["txt", "csv", "npy", "mask.npy", None])
def test_rows_that_are_excluded_or_labeled_are_not_written(pool, tmp_path, kind):
    folder, logits = pool
    without, known = [0, 5, 61, 62, 99], [7, 8]
    given = without if kind is None else as_file(tmp_path, kind, without, 100)
    done = score_pool([folder], tmp_path / "all.csv", exclude=given, labeled=known, block_bytes=100)
    left = np.setdiff1d(np.arange(100), without + known)
    found = rows(tmp_path / "all.csv")
    assert [int(row["index"]) for row in found] == left.tolist()
    scores = prunefuse.score(logits)
    assert np.array_equal([np.float32(row["utility"]) for row in found], scores[left], equal_nan=True)
    assert (done.rows, done.scored, done.written, done.unselectable) == (100, 93, 93, {folder / "3.npy": 1})
    score_pool([folder], tmp_path / "top.csv", top=9, exclude=given, labeled=known)
    picks = left[prunefuse.top_b(scores[left], 9)[0]]
    assert [int(row["index"]) for row in rows(tmp_path / "top.csv")] == picks.tolist()
    # What was written may be given back, so that the next are others.
    score_pool([folder], tmp_path / "next.csv", top=9, exclude=tmp_path / "top.csv")
    assert not {r["index"] for r in rows(tmp_path / "top.csv")} & {
        r["index"] for r in rows(tmp_path / "next.csv")
    }
    with pytest.raises(ValueError, match="at most the number of rows that are left to pick from, 93, got 94"):
        score_pool([folder], tmp_path / "no.csv", top=94, exclude=given, labeled=known)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("3\n1.5\n", "line 2: must have the index of a row, got '1.5'"),
        ("9" * 30, "line 1: must have the index of a row, got '9999"),
        ("3\n\nx\n", "line 3: must have the index"),
        ("100\n", r"must hold rows of the pool \(0 to 99\), got 100"),
        ("-1\n", r"must hold rows of the pool \(0 to 99\), got -1"),
        ("a,b\n1,2\n", "must have an index on each line, or a column index"),
        ("0\n1\n" * 50, "got 0 or 1 for each of the 100 rows"),
        (np.arange(3) / 2, "exclude, .*, must be a sequence of row indices, or a mask"),
        (np.ones(99, bool), "must be a mask of the 100 rows of the pool"),
        (np.ones((2, 2), np.int64), "must be a sequence"),
        (np.array(["a"]), "must be an array of numbers"),
        (np.array([{}], object), "must have indices of rows, or a mask"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_file_of_rows_that_are_none_is_named(pool, tmp_path, content, message):
    path = tmp_path / ("rows.npy" if isinstance(content, np.ndarray) else "rows.txt")
    if isinstance(content, np.ndarray):
        np.save(path, content)
    elif content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        score_pool([pool[0]], tmp_path / "no.csv", exclude=path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_random_part_is_scored(pool, tmp_path):
    folder, logits = pool
    drawn = []
    for number, (sample, seed, size) in enumerate(
        [(20, 0, 100), (20, 0, 9000), (20, 1, 100), (Fraction(1, 4), 0, 60)]
    ):
        out = tmp_path / f"{number}.csv"
        done = score_pool([folder], out, exclude=[1, 2], sample=sample, seed=seed, block_bytes=size)
        found = rows(out)
        drawn.append([int(row["index"]) for row in found])
        assert done.scored == done.written == len(drawn[-1]) == (24 if sample != 20 else 20)
        scores = prunefuse.score(logits)[drawn[-1]]
        assert np.array_equal([np.float32(row["utility"]) for row in found], scores, equal_nan=True)
    assert drawn[0] == drawn[1] != drawn[2]
    assert not {1, 2} & {index for some in drawn for index in some}
    score_pool([folder], tmp_path / "top.csv", sample=20, top=3, exclude=[1, 2])
    best = prunefuse.top_b(prunefuse.score(logits)[drawn[0]], 3)[0]
    assert [int(row["index"]) for row in rows(tmp_path / "top.csv")] == np.array(drawn[0])[best].tolist()
    for sample in (0, 99, Fraction(1, 1000)):
        with pytest.raises(ValueError, match="sample must be"):
            score_pool([folder], tmp_path / "no.csv", sample=sample, exclude=[1, 2])


def test_the_names_of_rows_are_written(tmp_path):
    logits = torch.randn(9, 3, generator=torch.Generator().manual_seed(3)).double().numpy()
    folder = tmp_path / "pool"
    folder.mkdir()
    for number, part in enumerate((logits[:4], logits[4:])):
        lines = [f'"{number}/{i}, ü.png",{",".join(map(repr, row))}' for i, row in enumerate(part.tolist())]
        (folder / f"{number}.csv").write_text("\n".join(["path,a,b,c", *lines, ""]))
    names = [f"0/{i}, ü.png" for i in range(4)] + [f"1/{i}, ü.png" for i in range(5)]
    score_pool([folder], tmp_path / "all.csv", "margin", id="path", exclude=[2, 5], block_bytes=50)
    found = rows(tmp_path / "all.csv")
    assert list(found[0]) == ["index", "utility", "file", "row", "id"]
    assert [row["id"] for row in found] == [names[int(row["index"])] for row in found]
    score_pool([folder], tmp_path / "top.csv", "margin", id="path", top=4)
    best = prunefuse.top_b(prunefuse.score(logits, "margin"), 4)[0].tolist()
    assert [(int(row["index"]), row["id"]) for row in rows(tmp_path / "top.csv")] == [
        (i, names[i]) for i in best
    ]
    assert [float(row["utility"]) for row in rows(tmp_path / "top.csv")] == prunefuse.score(logits, "margin")[
        best
    ].tolist()
