"""Texts in files: words, their numbers, and a data set by name."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from prunefuse.cli.app import app
from prunefuse.data import Vocabulary, load, words_of
from prunefuse.data._words import numbered
from prunefuse.experiment import folder


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" \n\t", []),
        ("It's GOOD, isn’t it?", ["it's", "good", ",", "isn’t", "it", "?"]),
        ("'quoted' a_b", ["'", "quoted", "'", "a", "_", "b"]),
        ("3.5 km/h", ["3", ".", "5", "km", "/", "h"]),
        ("हिन्दी में।", ["हिन्दी", "में", "।"]),
        ("日本 カナ ok", ["日", "本", "カ", "ナ", "ok"]),
        ("ﬁne ＡＢ", ["fine", "ab"]),
        ("e\u0301te\u0301", ["été"]),
        ("\U0001f600\U0001f600", ["\U0001f600"] * 2),
    ],
)
def test_words(text, words):
    assert words_of(text) == words


def test_the_most_frequent_words_have_numbers_and_ties_go_by_the_alphabet():
    vocabulary = Vocabulary.of(["b a", "a B c", "d"], 5)
    assert vocabulary.words == ("a", "b", "c")
    assert len(vocabulary) == 5
    assert vocabulary("d c  A!") == [1, 4, 2, 1]
    assert Vocabulary.of([], 9).words == ()


def test_texts_are_cut_and_filled():
    vocabulary = Vocabulary.of(["a b c"], 99)
    rows = numbered(["a b c", "", "b"], "xyz", vocabulary, len(vocabulary), None)
    assert rows.tolist() == [[2, 3, 4], [1, 0, 0], [3, 0, 0]]
    assert numbered(["a b c"], "x", vocabulary, len(vocabulary), 2).tolist() == [[2, 3]]
    assert numbered(["a"], "x", vocabulary, len(vocabulary), 3).tolist() == [[2, 0, 0]]
    assert numbered(["a " * 999], "x", vocabulary, len(vocabulary), None).shape == (1, 256)
    assert rows.dtype == torch.int32


@pytest.mark.parametrize("given", [[1.5], ["a"], [[1], [2]], [True], 3, "12"])
def test_a_tokenizer_gives_a_list_of_whole_numbers(given):
    with pytest.raises(TypeError, match=r"tokenizer must give a list of whole numbers, got .* for text one"):
        numbered(["a"], ["one"], lambda text: given, 9, None)


@pytest.mark.parametrize("given", [[-1, 2], [3, 9]])
def test_the_numbers_of_a_tokenizer_are_in_range(given):
    with pytest.raises(ValueError, match=r"tokenizer must give numbers in \[0, 9\), got (-1|9) for text one"):
        numbered(["a"], ["one"], lambda text: given, 9, None)


def write(path: Path, lines, header=("name", "text", "label")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *lines])
    return path


def rows(count=20):
    return [
        (f"n{i}", f"the film is {'good' if i % 2 else 'bad'} {i}", "yes" if i % 2 else "no")
        for i in range(count)
    ]


def test_a_file_of_texts_is_a_data_set(tmp_path):
    file = write(tmp_path / "texts.csv", rows())
    data = load(f"text:{file}", id="name", vocabulary=8)
    assert (len(data.pool), len(data.test), data.num_classes, data.classes) == (16, 4, 2, ("no", "yes"))
    assert (data.vocabulary, data.input_shape) == (8, (5,))
    assert len(data.ids) == 16
    assert set(data.ids) < {f"n{i}" for i in range(20)}
    item, label = data.pool[0]
    assert item.dtype == torch.int32
    assert label == int(data.ids[0][1:]) % 2
    again = load(f"text:{file}", id="name", vocabulary=8)
    assert torch.equal(again.pool.images, data.pool.images)
    split = [(*row, "test" if i > 12 else "train") for i, row in enumerate(rows())]
    data = load(f"text:{write(tmp_path / 's.csv', split, ('name', 'text', 'label', 'split'))}")
    assert (len(data.pool), len(data.test), data.ids[:2]) == (13, 7, ("1", "2"))
    # The vocabulary is that of the training texts.
    assert data.vocabulary == len({word for row in rows()[:13] for word in row[1].split()}) + 2


@pytest.mark.parametrize(
    ("lines", "options", "said"),
    [
        ([("a", "b", "")], {}, "line 2: text 1 must have a label, got none"),
        ([("a", "", "x"), ("a", "b", "y")], {}, "line 2: text 1 must not be empty"),
        ([("a", "b", "x")], {}, "labels must be of two classes or more, got only 'x'"),
        ([("a", "b", "x")], {"text": "words"}, "text must be one of its columns"),
        ([("a", "b", "x")], {"image_size": 8}, "image_size must be left out"),
        ([], {}, "must have texts, got none"),
    ],
)
def test_what_is_wrong_in_a_data_set_is_named(tmp_path, lines, options, said):
    file = write(tmp_path / "texts.csv", lines)
    with pytest.raises(ValueError, match=said):
        load(f"text:{file}", **options)


def test_other_data_have_no_texts(tmp_path):
    with pytest.raises(ValueError, match="must be left out with digits, which has no texts"):
        load("digits", text="words")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load(f"text:{tmp_path / 'no.csv'}")


@pytest.mark.parametrize("model", ["text_cnn", "mine.py:network"])
def test_a_run_on_texts(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from prunefuse.models import text_transformer\n"
        "def network(num_classes, vocabulary, length):\n"
        "    return text_transformer(num_classes, vocabulary=vocabulary, length=length, width=16, depth=1)\n"
    )
    write(tmp_path / "texts.csv", rows(60))
    line = f"run --data text:texts.csv --id name --model {model} --recipe text --epochs 2 --min-steps 0 --schedule 10,20"
    options = "--seeds 1 --jobs 1 --threads 1 --device cpu --baselines none --out out --quiet"
    result = CliRunner().invoke(app, [*line.split(), *options.split()])
    assert result.exit_code == 0, result.output
    facts = folder.read_facts(tmp_path / "out")
    assert facts["data"]["input_shape"] == [5]
    assert facts["classes"] == ["no", "yes"]
    picks = list(csv.DictReader((tmp_path / "out/prunefuse/seed0/picks.csv").open()))
    assert len(picks) == 20
    assert {row["id"] for row in picks} < {f"n{i}" for i in range(60)}


@pytest.mark.parametrize("model", ["text_cnn", "text_transformer"])
def test_scores_of_texts_are_extrapolated(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "texts.csv", rows(80))
    line = f"extrapolate --data text:texts.csv --id name --model {model} --epochs 2 --min-steps 0 --subset 50% --score el2n"
    options = "--by knn,ridge --prune-ratio 0.5 --fuse --jobs 1 --threads 1 --device cpu --out out --quiet"
    result = CliRunner().invoke(app, [*line.split(), *options.split()])
    assert result.exit_code == 0, result.output
    for by in ("knn", "ridge"):
        kept = list(csv.DictReader((tmp_path / f"out/seed0/by-{by}/keep-32/kept.csv").open()))
        assert len(kept) == 32
        assert "extrapolated" in {row["source"] for row in kept}
    recipe = folder.read_facts(tmp_path / "out")["config"]["recipe"]
    assert (recipe["optimizer"], recipe["epochs"]) == ("adamw", 2)  # that of texts


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("run --data text:texts.csv --seeds 1", "or FILE.py:FUNCTION, for texts, got resnet20"),
        ("run --model text_cnn --seeds 1", "for 1x8x8 images, got text_cnn"),
        ("run --text words --seeds 1", "must be left out with digits, which has no texts"),
        ("extrapolate --data text:texts.csv", "or FILE.py:FUNCTION, for texts, got resnet20"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_named(tmp_path, monkeypatch, line, said):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "texts.csv", rows(100))
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code == 2
    assert said in result.output
