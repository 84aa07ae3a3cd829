"""`prunefuse run` for other tasks than one class for each sample, on files as people have them."""

from __future__ import annotations

import csv
import json
import random
import re

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from prunefuse.cli.app import app
from prunefuse.data import load

TOPICS = {"food": ("soup", "bread"), "money": ("bank", "price"), "sport": ("goal", "match")}
SMALL = "--epochs 2 --seeds 1 --jobs 1 --baselines random --batch-size 8 --quiet"


def call(line, code=0):
    result = CliRunner().invoke(app, line.split(), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def write_rows(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture
def texts(tmp_path):
    """Texts with none, one or several of three topics."""
    draw, rows = random.Random(0), []
    for number in range(120):
        topics = [name for name in TOPICS if draw.random() < 0.4]
        words = draw.choices(["the", "a", "was", "with"], k=4) + [
            draw.choice(TOPICS[name]) for name in topics
        ]
        rows.append([f"t{number}", " ".join(draw.sample(words, len(words))), ";".join(topics) or "-"])
    return write_rows(tmp_path / "texts.csv", ["id", "text", "label"], rows)


def run_of(folder):
    facts = json.loads((folder / "config.json").read_text())
    with (folder / "scores.csv").open() as file:
        return facts, list(csv.DictReader(file))


def test_a_run_on_texts_with_several_labels_reports_f1(tmp_path, texts):
    out = tmp_path / "run"
    line = f"run --data text:{texts} --task multi-label --model text_cnn --recipe text --schedule 10,20 --out {out}"
    printed = call(f"{line} {SMALL}".replace("--quiet", "")).partition("arm labels")[2]
    assert printed.startswith(" F1 range")
    assert "F1 macro" in printed
    html = re.sub("<[^>]*>", " ", (out / "report.html").read_text().partition("</style>")[2])
    page = " ".join(html.split())
    assert "F1 against labels" in page
    assert "test F1 of the final network" in page
    assert "Accuracy against labels" not in page
    assert "3 labels" in page
    assert "Each of the 3 classes" in page
    facts, scores = run_of(out)
    assert facts["config"]["task"] == "multi-label"
    assert facts["classes"] == ["food", "money", "sport"]
    assert {"f1", "exact_match", "recall"} <= {row["metric"] for row in scores}
    with (out / "prunefuse/seed0/picks.csv").open() as file:
        picks = list(csv.DictReader(file))
    told = {row["id"]: row["label"] for row in csv.DictReader(texts.open())}
    assert len(picks) == 20
    assert all(row["class"] == told[row["id"]] for row in picks)
    # The same again finds that all is there; the report is that of the folder.
    call(f"run --resume {out} --quiet")
    call(f"report {out}")


def test_labels_that_one_has_may_be_several(tmp_path, texts):
    rows = list(csv.DictReader(texts.open()))
    pool = load(f"text:{texts}", task="multi-label").ids
    mine = [row for row in rows if row["id"] in pool][:12]
    start = write_rows(tmp_path / "mine.csv", ["id", "label"], [[row["id"], row["label"]] for row in mine])
    line = f"run --data text:{texts} --task multi-label --model text_cnn --recipe text {SMALL} --labeled"
    out = tmp_path / "run"
    call(f"{line} {start} --schedule 12,16 --out {out}")
    with (out / "random/seed0/picks.csv").open() as file:
        picks = list(csv.DictReader(file))
    assert [(row["id"], row["class"]) for row in picks[:12]] == [(row["id"], row["label"]) for row in mine]
    wrong = write_rows(tmp_path / "wrong.csv", ["id", "label"], [[mine[0]["id"], "food;cars"]])
    said = call(f"{line} {wrong} --schedule 1,16 --out {tmp_path / 'other'}", code=2)
    assert (
        "line 2: label must be any of food, money, sport with ; between them, or -, got 'food;cars'" in said
    )


def test_images_in_a_table_have_several_labels(tmp_path):
    rows = []
    for number in range(40):
        row, column = divmod(number % 4, 2)
        image = np.random.default_rng(number).integers(0, 60, (8, 8), dtype=np.uint8)
        image[: 4 * row + 4, : 4 * column + 4] += 150
        Image.fromarray(image).save(tmp_path / f"{number}.png")
        rows.append([f"{number}.png", ";".join(["low"] * row + ["wide"] * column) or "-"])
    table = write_rows(tmp_path / "images.csv", ["path", "label"], rows)
    out = tmp_path / "run"
    call(f"run --data table:{table} --task multi-label --model mlp --schedule 8,12 --out {out} {SMALL}")
    facts, scores = run_of(out)
    assert facts["classes"] == ["low", "wide"]
    assert {row["metric"] for row in scores} >= {"f1", "recall"}


def test_numbers_are_predicted_from_arrays_tables_and_texts(tmp_path, texts):
    images = np.random.default_rng(0).random((60, 8, 8, 1), dtype=np.float32)
    np.savez(tmp_path / "data.npz", images=images, labels=images.mean((1, 2, 3)))
    out = tmp_path / "run"
    line = "--task regression --strategy greedy_outputs --schedule 8,12"
    call(f"run --data arrays:{tmp_path / 'data.npz'} {line} --model mlp --out {out} {SMALL}")
    assert {row["metric"] for row in run_of(out)[1]} == {"r2", "rmse", "mae"}
    assert "R² against labels" in (out / "report.html").read_text()
    rows = [[row["text"], f"{len(row['text'])};0.5"] for row in csv.DictReader(texts.open())]
    data = load(f"text:{write_rows(tmp_path / 'numbers.csv', ['text', 'label'], rows)}", task="regression")
    assert (data.num_classes, data.classes) == (2, ())
    assert data.pool.labels.shape == (96, 2)


def test_json_lines_have_lists_of_labels(tmp_path):
    path = tmp_path / "texts.jsonl"
    told = [["a", "b"], [], ["b"], "a;b", "-"] * 2
    lines = [json.dumps({"text": f"word {number}", "label": label}) for number, label in enumerate(told)]
    path.write_text("\n".join(lines))
    data = load(f"text:{path}", task="multi-label", test_fraction=0.1)
    assert data.classes == ("a", "b")
    found = {name: data.pool.labels[place].tolist() for place, name in enumerate(data.ids)}
    expected = [[1, 1], [0, 0], [0, 1], [1, 1], [0, 0]] * 2
    assert len(found) == 9
    assert all(label == expected[int(name) - 1] for name, label in found.items())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "--task multi_label",
            "task must be one of single-label, multi-label, regression, got 'multi_label'",
        ),
        (
            "--task segmentation",
            "task must be one of single-label, multi-label, regression, got 'segmentation'",
        ),
        ("--data digits --task multi-label", "task must be single-label with digits"),
        (
            "--task regression --strategy k_center",
            "labels must be finite numbers, with ; between several, got 'money' in line 3",
        ),
        ("--task multi-label --strategy bald --dropout 0.1", "strategy must be"),
        ("--task multi-label --stop-when kappa:0.9", "stop_when must be cost alone"),
    ],
)
def test_what_a_task_cannot_be_is_said(tmp_path, line, said):
    rows = [["a b", "1.5"], ["c d", "money"]] * 10
    path = write_rows(tmp_path / "texts.csv", ["text", "label"], rows)
    data = "" if "--data" in line else f"--data text:{path}"
    found = call(
        f"run {data} {line} --model text_cnn --schedule 4,6 --out {tmp_path / 'run'} {SMALL}", code=2
    )
    assert said in found
    assert not (tmp_path / "run").exists()


def test_labels_with_semicolons_are_classes_of_their_own_and_a_note_says_so(texts):
    data = load(f"text:{texts}")
    assert "food;sport" in data.classes
    assert any("--task multi-label" in note for note in data.notes)


@pytest.mark.parametrize(
    ("task", "labels", "said"),
    [
        ("multi-label", np.full((60, 2), 2), "must be zeros and ones for multi-label"),
        ("multi-label", np.zeros(60, dtype=int), r"must be \(60, L\) for multi-label, got shape \(60,\)"),
        ("regression", np.full(60, np.nan), "must be finite numbers"),
        ("regression", np.zeros((60, 2, 2)), r"must be \(60, D\) for regression, got shape \(60, 2, 2\)"),
        ("multi-label", np.zeros((60, 0)), r"must be \(60, L\) for multi-label"),
    ],
)
def test_arrays_of_labels_are_checked(tmp_path, task, labels, said):
    np.savez(tmp_path / "data.npz", images=np.zeros((60, 8, 8), np.uint8), labels=labels)
    with pytest.raises(ValueError, match=said):
        load(f"arrays:{tmp_path / 'data.npz'}", task=task)
