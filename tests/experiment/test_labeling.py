"""The cycle of labels from people by the command line: start, next, import, status, export, predict."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from labeling_projects import (
    DARK,
    LIGHT,
    OPTIONS,
    command,
    fill,
    label,
    rows,
    truth,
    write_image,
    write_images,
)
from typer.testing import CliRunner

from prunefuse.cli.app import app
from prunefuse.errors import ConfigError, DamagedFileError
from prunefuse.experiment.labeling import journal, labels, project, sheet
from prunefuse.experiment.labeling.images import data_of
from prunefuse.experiment.labeling.work import next_batch


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images")


@pytest.fixture
def made(images, tmp_path):
    """A project of 24 images, with classes and without labels."""
    call("start", tmp_path / "project", f"--data {images} --classes dark,light {OPTIONS}")
    return tmp_path / "project"


def call(name, folder, line="", code=0):
    result = CliRunner().invoke(app, ["label", name, str(folder), *shlex.split(str(line))])
    assert result.exit_code == code, result.output
    return result.output


def table(path, *lines, header="path,label,annotator,note"):
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def tree(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_whole_cycle_by_processes(tmp_path):
    images, out = write_images(tmp_path / "images", beside=(DARK, LIGHT)), tmp_path / "out"
    before = tree(images)
    said = label(f"start {tmp_path / 'project'} --data {images} {OPTIONS}")
    assert "28 images, 4 of them with a label; classes dark, light" in said
    seen = set()
    for number in range(2):
        file = out / f"batch{number}.csv"
        said = label(f"next {tmp_path / 'project'} -n 6 --out {file}")
        assert f"training the selector on {4 + 6 * number} labels" in said
        batch = rows(file)
        assert list(batch[0]) == [
            "path",
            "index",
            "utility",
            "predicted",
            "why",
            "label",
            "annotator",
            "note",
        ]
        assert {row["why"] for row in batch} == {"highest margin"}
        assert {row["predicted"] for row in batch} <= {DARK, LIGHT}
        utilities = [float(row["utility"]) for row in batch]
        assert utilities == sorted(utilities, reverse=True)
        assert not seen & {row["path"] for row in batch}
        seen |= {row["path"] for row in batch}
        assert (out / f"batch{number}.html").exists()
        said = label(f"import {tmp_path / 'project'} {fill(file)}")
        assert said.startswith("6 new, 0 changed, 0 not labeled yet")
    said = label(f"status {tmp_path / 'project'}")
    assert {line.split()[0]: line.split()[-1] for line in said.splitlines()[:4]} == {
        "images": "28", "labeled": "16", "dark": str(2 + sum(truth(p) == DARK for p in seen)),
        "light": str(2 + sum(truth(p) == LIGHT for p in seen)),
    }  # fmt: skip
    assert "on 10 labels" in said
    label(f"export {tmp_path / 'project'} --out {out / 'labels.csv'}")
    exported = {row["path"]: row for row in rows(out / "labels.csv")}
    assert len(exported) == 16
    assert exported["dark/0.png"]["annotators"] == "given"
    assert all(exported[path]["label"] == truth(path) for path in seen)
    label(f"predict {tmp_path / 'project'} --out {out / 'predictions.csv'}")
    predicted = rows(out / "predictions.csv")
    assert list(predicted[0]) == ["path", "index", "label", "probability", DARK, LIGHT]
    assert {row["path"] for row in predicted}.isdisjoint(exported)
    assert len(predicted) == 12
    for row in predicted:
        assert float(row[DARK]) + float(row[LIGHT]) == pytest.approx(1, abs=1e-5)
        assert float(row[row["label"]]) == float(row["probability"]) >= 0.5
    assert tree(images) == before  # nothing is written beside the images


def test_without_labels_images_are_drawn_by_the_seed(images, tmp_path):
    drawn = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        call("start", tmp_path / name, f"--data {images} --classes dark,light --seed {seed} {OPTIONS}")
        call("next", tmp_path / name, f"-n 5 -o {tmp_path / name}.csv")
        drawn.append([row["path"] for row in rows(tmp_path / f"{name}.csv")])
        assert {row["utility"] + row["predicted"] for row in rows(tmp_path / f"{name}.csv")} == {""}
    assert drawn[0] == drawn[1] != drawn[2]
    assert not (tmp_path / "a" / "rounds").exists()


def test_without_labels_images_are_chosen_by_features_if_asked(images, tmp_path):
    """Rows of a file, in the order of the project's images: two clusters, of which typiclust takes one image each."""
    project = tmp_path / "project"
    names = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))
    features = np.stack([[float(truth(name) == DARK) * 10 + 0.01 * i, 0.0] for i, name in enumerate(names)])
    np.save(tmp_path / "features.npy", features)
    given = f"--cold-start typiclust --features-from {tmp_path / 'features.npy'}"
    label(f"start {project} --data {images} --classes {DARK},{LIGHT} {OPTIONS} --strategy k_center {given}")
    label(f"next {project} -n 2 --out {tmp_path / 'batch.csv'}")
    picked = rows(tmp_path / "batch.csv")
    assert {truth(row["path"]) for row in picked} == {DARK, LIGHT}
    assert {row["why"] for row in picked} == {"typiclust, which needs no labels"}


def test_what_is_not_labeled_is_asked_again_and_what_nobody_can_tell_is_not(made, tmp_path):
    first = tmp_path / "1.csv"
    call("next", made, f"-n 8 -o {first}")
    asked = [row["path"] for row in rows(first)]
    answers = dict(zip(asked, ["?", "?", None, None, DARK, LIGHT, DARK, LIGHT], strict=True))
    assert "6 new, 0 changed, 2 not labeled yet" in call("import", made, fill(first, answers.get))
    call("next", made, f"-n 5 -o {tmp_path / '2.csv'}")
    again = rows(tmp_path / "2.csv")
    assert [row["path"] for row in again[:2]] == asked[2:4]
    assert [row["why"] for row in again] == ["asked before"] * 2 + ["highest margin"] * 3
    # Without new labels the same are asked, and more only where more are wanted.
    call("next", made, f"-n 7 -o {tmp_path / '3.csv'}")
    third = [row["path"] for row in rows(tmp_path / "3.csv")]
    assert third[:5] == [row["path"] for row in again]
    assert len(set(third)) == 7
    call("next", made, f"-n 100 -o {tmp_path / '4.csv'}")
    everything = {row["path"] for row in rows(tmp_path / "4.csv")}
    assert len(everything) == 24 - 6
    assert not everything & {path for path, answer in answers.items() if answer}
    call("import", made, fill(tmp_path / "4.csv"))
    assert "Nothing is left to label" in call("next", made, f"-n 2 -o {tmp_path / '5.csv'}")
    assert not (tmp_path / "5.csv").exists()
    status = labels.status(made)
    assert (sum(status.labels.values()), status.cannot_tell, status.open) == (22, 2, 0)


def test_labels_are_corrected_and_a_file_imported_again_changes_nothing(made, tmp_path):
    file = table(tmp_path / "a.csv", "00.png, light ,anna,", "04.png,dark,anna,blurred")
    assert "2 new" in call("import", made, file)
    before = tree(made)
    assert "0 new, 0 changed" in call("import", made, file)
    assert tree(made) == before
    fixed = table(tmp_path / "b.csv", "04.png,light,anna,sharp", "00.png,,anna,")
    assert "04.png: dark → light" in call("import", made, fixed)
    before = tree(made)
    said = call("import", made, file)
    assert "1 of its labels were corrected since, and stay so" in said
    assert "not 04.png: light → dark" in said
    assert tree(made) == before
    assert "04.png: light → dark" in call("import", made, f"{file} --again")
    call("export", made, f"-o {tmp_path / 'out.csv'}")
    assert [(r["path"], r["label"], r["note"]) for r in rows(tmp_path / "out.csv")] == [
        ("00.png", "light", ""),
        ("04.png", "dark", "blurred"),
    ]
    # Every word that was ever said is still there.
    said = [entry["rows"] for entry in journal._entries(made / "journal")]
    assert ["04.png", "anna", "light", "sharp"] in said[1]


def test_annotators_vote_and_a_disagreement_is_shown(made, tmp_path):
    for who, first, second in (("anna", DARK, DARK), ("ben", LIGHT, LIGHT), ("", DARK, "?")):
        file = table(tmp_path / "labels.csv", f"00.png,{first},,of {who}", f"04.png,{second},,")
        call("import", made, f"{file} --annotator '{who}'")
    call("export", made, f"-o {tmp_path / 'out.csv'}")
    assert [tuple(row.values()) for row in rows(tmp_path / "out.csv")] == [
        ("00.png", DARK, "dark:2 light:1", "unnamed anna ben", "unnamed: of; anna: of anna; ben: of ben"),
        ("04.png", "", "?:1 dark:1 light:1", "unnamed anna ben", ""),
    ]
    said = call("status", made)
    assert "disagreements  2" in said
    assert [line.split(maxsplit=2) for line in said.splitlines()[-2:]] == [
        ["00.png", "dark", "unnamed dark, anna dark, ben light"],
        ["04.png", "tie", "unnamed ?, anna dark, ben light"],
    ]
    # A tie is asked first, with what was said.
    call("next", made, f"-n 2 -o {tmp_path / 'batch.csv'}")
    first = rows(tmp_path / "batch.csv")[0]
    assert (first["path"], first["why"]) == ("04.png", "annotators disagree: unnamed ?, anna dark, ben light")
    call("import", made, table(tmp_path / "more.csv", "04.png,light,cleo,"))
    assert labels.status(made).labels == {DARK: 1, LIGHT: 1}


@pytest.mark.parametrize(
    ("lines", "wrong"),
    [
        (["nowhere.png,dark,,"], ["line 2: path must be of an image of the project, got 'nowhere.png'"]),
        (["00.png,cat,,"], ["line 2: label must be one of dark, light, ? or empty, got 'cat'"]),
        (["00.png,Dark,,"], ["line 2: label must be one of dark, light, ? or empty, got 'Dark' (is dark meant? case counts)"]),
        (["00.png,dark,,", "00.png,dark,,"], ["line 3: duplicate of line 2, 00.png"]),
        (
            ["00.png,dark,anna,", "", "00.png,light,anna,"],
            ["line 4: conflict with line 2: label of 00.png by annotator anna must be one, got 'dark' and 'light'"],
        ),
        (["00.png,dark,,", "04.png,dark,"], ["line 3: fields must be 4, got 3"]),
        (
            ['00.png,dark,,"two', 'lines"', "x.png,dark,,", "04.png,1,,"],
            ["line 4: path must be", "line 5: label must be"],
        ),
    ],
)  # fmt: skip
def test_every_wrong_line_is_named_and_nothing_is_taken(made, tmp_path, lines, wrong):
    file, before = table(tmp_path / "labels.csv", *lines), tree(made)
    said = call("import", made, str(file), 2).splitlines()
    assert len(said) == len(wrong) + 1
    for line, expected in zip(said, wrong, strict=False):
        assert f"{file}, {expected}" in line
    assert said[-1].startswith(f"Nothing of {file} was taken")
    assert tree(made) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: columns must have path once, got none"),
        (b"path,klass\n00.png,dark\n", "line 1: columns must have label once, got path, klass"),
        (b'path,label\n"00.png,dark\n', "content must be CSV"),
        (b"path,label,index\n00.png,dark,7\n", "line 2: index must be 0, that of 00.png, got '7'"),
    ],
)
def test_a_file_that_has_no_labels_is_refused(made, tmp_path, content, message):
    (tmp_path / "labels.csv").write_bytes(content)
    assert message in call("import", made, f"{tmp_path / 'labels.csv'}", 2)


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffpath;label;note\r\n00.png;dark;schön\r\n".encode(),
        "path\tlabel\tnote\n00.png\tdark\tschön\n".encode("utf-16"),
        "Label , note,PATH\ndark,schön, 00.png \n".encode(),
    ],
)
def test_files_of_spreadsheets_are_read(made, tmp_path, content):
    (tmp_path / "labels.csv").write_bytes(content)
    call("import", made, f"{tmp_path / 'labels.csv'}")
    [vote] = project.find(made).read().votes["00.png"].values()
    assert (vote.label, vote.note) == (DARK, "schön")


def test_labels_one_has_come_from_a_file_and_from_folders(images, tmp_path):
    have = table(tmp_path / "have.csv", "00.png, dark,,", "04.png,light,,", "08.png,?,,", "12.png,dark,ben,")
    said = call("start", tmp_path / "project", f"--data {images} --labels {have} {OPTIONS}")
    assert "24 images, 4 of them with a label; classes dark, light" in said
    status = labels.status(tmp_path / "project")
    assert (status.labels, status.cannot_tell, status.annotators) == ({DARK: 2, LIGHT: 1}, 1, {"ben": 1})
    # A person's word replaces what was there, and stands beside that of another person.
    call(
        "import",
        tmp_path / "project",
        table(tmp_path / "more.csv", "00.png,light,anna,", "12.png,light,anna,"),
    )
    status = labels.status(tmp_path / "project")
    assert (status.labels, status.disputed) == (
        {DARK: 0, LIGHT: 2},
        (("12.png", "tie", "anna light, ben dark"),),
    )


def test_folders_are_labels_only_beside_unlabeled_and_hidden_files_are_nothing(tmp_path):
    images = write_images(tmp_path / "images", count=4, beside=(DARK, LIGHT))
    write_image(images / "other" / "9.png", 100)
    for hidden in (".thumbs/1.png", "__MACOSX/1.png", "dark/._0.png"):
        (images / hidden).parent.mkdir(exist_ok=True)
        (images / hidden).write_bytes(b"nothing")
    call("start", tmp_path / "a", f"--data {images} --classes light,dark")
    assert (project.find(tmp_path / "a").classes, len(project.find(tmp_path / "a").given)) == (
        (LIGHT, DARK),
        4,
    )
    call("start", tmp_path / "b", f"--data {images}")
    assert project.find(tmp_path / "b").classes == (DARK, LIGHT, "other")
    (images / "unlabeled").rename(images / "rest")
    call("start", tmp_path / "c", f"--data {images} --classes light,dark")
    assert (len(project.find(tmp_path / "c").paths), project.find(tmp_path / "c").given) == (9, {})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--data {images}", "classes must be two or more names (--classes a,b), got none"),
        ("--data {images} --classes dark", "classes must be two or more names (--classes a,b), got dark"),
        (
            "--data {images} --classes 'dark,dark '",
            "classes must be different names, not empty or ?, got 'dark'",
        ),
        ("--data {images} --classes a,?", "classes must be different names, not empty or ?, got '?'"),
        ("--data {images}/no --classes a,b", "data must be a folder of images"),
        ("--data {empty} --classes a,b", "data must be a folder with images"),
        (
            "--data {broken} --classes a,b",
            "data must have images that can be read, got cannot identify image file",
        ),
        ("--data {images} --classes a,b --labels no.csv", "no.csv cannot be read: No such file"),
        ("--data {images} --classes a,b --labels {wrong}", "line 2: label must be one of a, b"),
        ("--data {images} --classes a,b --model nothing", "model must be one of"),
        ("--data {images} --classes a,b --lr -1", "lr must be a positive number"),
    ],
)
def test_what_cannot_be_started_is_named_and_nothing_is_written(images, tmp_path, line, message):
    for name in ("empty", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken/1.png").write_bytes(b"no image")
    wrong = table(tmp_path / "wrong.csv", "00.png,cat,,")
    places = {"images": images, "empty": tmp_path / "empty", "broken": tmp_path / "broken", "wrong": wrong}
    assert message in call("start", tmp_path / "project", line.format(**places), 2)
    assert not (tmp_path / "project").exists()


def test_images_are_read_by_the_options_of_a_run(images, tmp_path):
    (images / "deep" / "broken.png").write_bytes(b"no image")
    said = call(
        "start",
        tmp_path / "p",
        f"--data {images} --classes a,b --image-size 6 --no-flip --crop 0 --skip-broken",
    )
    assert "left out, as it cannot be read: deep/broken.png" in said
    assert "images are read as 3x6x6" in said
    found = project.find(tmp_path / "p")
    data = data_of(found.base, found.paths, found.classes, found.config)
    assert torch.equal(data.train[3][0], data.pool[3][0])  # without augmentation
    assert (data.pool[3][0].shape, len(data.pool)) == ((3, 6, 6), 24)
    assert "new images" not in call("status", tmp_path / "p")
    write_image(images / "later.png", 3)
    assert "new images, which `next` takes in  1" in call("status", tmp_path / "p")


def test_a_project_is_not_among_the_images_nor_over_another(images, made, tmp_path):
    assert "DIR must not be among the images" in call(
        "start", images / "p", f"--data {images} --classes a,b", 2
    )
    assert "DIR must be a folder that does not exist yet" in call(
        "start", made, f"--data {images} --classes a,b", 2
    )
    assert "DIR must be a project that `prunefuse label start` made" in call("status", images, code=2)


def test_a_start_that_was_killed_is_made_again(images, tmp_path):
    # What is on the disk after a kill, at the moments at which a file is written.
    for number, left in enumerate(
        (".lock", "..project.json.0123456789abcdef.new.0a1b2c3d.tmp", ".project.json.0123456789abcdef.new")
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / left).write_bytes(b"")
        call("start", folder, f"--data {images} --classes a,b")
        assert labels.status(folder).images == 24
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".project").write_bytes(b"mine")
    call("start", tmp_path / "other", f"--data {images} --classes a,b", 2)


def test_nothing_is_written_over_a_file(made, tmp_path):
    for name, file in (("next", "b.csv"), ("next", "b.html"), ("export", "e.csv"), ("predict", "p.csv")):
        (tmp_path / file).write_text("mine")
        out = tmp_path / Path(file).with_suffix(".csv")
        said = call(name, made, f"--out {out}", 2)
        assert f"out must be a file that does not exist yet, got {tmp_path / file}" in said
        assert (tmp_path / file).read_text() == "mine"
        (tmp_path / file).unlink()
    assert "must have labels of two classes to predict the others, got no labels" in call(
        "predict", made, f"-o {out}", 2
    )
    assert "n must be at least 1, got 0" in call("next", made, "-n 0", 2)


def test_an_entry_that_was_changed_or_is_missing_is_refused(made, tmp_path):
    for number in (0, 4):
        call("import", made, f"{table(tmp_path / f'{number}.csv', f'0{number}.png,dark,anna,')}")
    first, _ = sorted((made / "journal").iterdir())
    content = first.read_text()
    first.write_text(content.replace(DARK, LIGHT))
    with pytest.raises(DamagedFileError, match=r"000001\.json was changed or is damaged"):
        labels.status(made)
    first.unlink()
    with pytest.raises(DamagedFileError, match=r"000001\.json is missing"):
        labels.status(made)


@pytest.mark.parametrize(
    "strategy", ["random", "badge", "margin --selector dense", "k_center --selector resnet8"]
)
def test_strategies_and_selectors(tmp_path, strategy):
    images = write_images(tmp_path / "images", beside=(DARK, LIGHT))
    call("start", tmp_path / "p", f"--data {images} {OPTIONS} --strategy {strategy}")
    call("next", tmp_path / "p", f"-n 3 -o {tmp_path / 'b.csv'}")
    batch = rows(tmp_path / "b.csv")
    assert len({row["path"] for row in batch}) == 3
    assert {row["why"] for row in batch} == {
        "random draw" if strategy == "random" else f"highest {strategy.split()[0]}"
    }
    assert all(row["predicted"] in (DARK, LIGHT) for row in batch)


KILLED = """
import os, signal, sys
left, folder = int(sys.argv.pop(1)), sys.argv.pop(1)

def dying(event, arguments):
    global left
    if event in ("open", "os.rename", "os.remove", "os.truncate") and folder in str(arguments[0]):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(dying)
from prunefuse.cli import main
main()
"""


def test_an_import_that_is_killed_has_happened_or_not(made, tmp_path):
    earlier = table(tmp_path / "earlier.csv", "00.png,light,anna,", "12.png,dark,anna,")
    call("import", made, f"{earlier}")
    file = table(tmp_path / "labels.csv", "00.png,dark,anna,", "04.png,light,ben,", "08.png,?,ben,")
    outcomes, killed = [], 0
    while True:
        copy = tmp_path / f"copy{killed}"
        subprocess.run(["cp", "-r", made, copy], check=True)
        run = [
            sys.executable,
            "-c",
            KILLED,
            str(killed + 1),
            str(copy),
            "label",
            "import",
            str(copy),
            str(file),
        ]
        done = subprocess.run(run, capture_output=True, text=True)
        votes = project.find(copy).read().votes
        told = {(path, by, vote.label) for path, own in votes.items() for by, vote in own.items()}
        before = {("00.png", "anna", LIGHT), ("12.png", "anna", DARK)}
        after = {
            ("00.png", "anna", DARK),
            ("12.png", "anna", DARK),
            ("04.png", "ben", LIGHT),
            ("08.png", "ben", "?"),
        }
        assert told in (before, after)
        outcomes.append(told == after)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        killed += 1
        call("import", copy, str(file))
        votes = project.find(copy).read().votes
        assert {(path, by, vote.label) for path, own in votes.items() for by, vote in own.items()} == after
        assert not list((copy / "journal").glob(".*"))
    assert killed > 5
    assert outcomes[-1]
    assert not all(outcomes)


def test_two_imports_at_once_are_both_taken(made, tmp_path):
    paths = project.find(made).paths
    people = []
    for who in ("anna", "ben", "cleo"):
        file = table(tmp_path / f"{who}.csv", *(f"{path},{truth(path)},{who},by {who}" for path in paths))
        people.append(subprocess.Popen(command("import", made, file), stderr=subprocess.PIPE, text=True))
    for person in people:
        _, errors = person.communicate()
        assert person.returncode == 0, errors
    votes = project.find(made).read().votes
    assert {path: set(own) for path, own in votes.items()} == {
        path: {"anna", "ben", "cleo"} for path in paths
    }
    assert len(list((made / "journal").iterdir())) == 3


def test_labels_that_come_while_a_batch_is_made_are_not_asked(made, tmp_path, monkeypatch):
    call("import", made, table(tmp_path / "a.csv", "00.png,light,anna,", "deep/1/13.png,dark,anna,"))
    draw = sheet.draw

    def meanwhile(found, picks, name, *person):
        if not (tmp_path / "b.csv").exists():
            call("import", made, f"{table(tmp_path / 'b.csv', f'{picks[0].path},dark,ben,')}")
        return draw(found, picks, name, *person)

    monkeypatch.setattr(sheet, "draw", meanwhile)
    batch = next_batch(made, 4, tmp_path / "batch.csv")
    assert len(batch.picks) == 3
    told = rows(tmp_path / "b.csv")[0]["path"]
    assert told not in {row["path"] for row in rows(tmp_path / "batch.csv")}
    assert told not in (tmp_path / "batch.html").read_text()


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_a_next_that_is_killed_inside_its_training_goes_on_to_the_same_batch(tmp_path):
    images = write_images(tmp_path / "images", beside=(DARK, LIGHT))
    for name in ("killed", "whole"):
        label(f"start {tmp_path / name} --data {images} {OPTIONS} --epochs 80")
    running = subprocess.Popen(
        command(f"next {tmp_path / 'killed'} -n 5 --out {tmp_path / 'killed.csv'}"), stderr=subprocess.DEVNULL
    )
    steps = tmp_path / "killed/rounds"
    while not list(steps.glob("*/.steps/0/train_selector/checkpoint.safetensors")):
        assert running.poll() is None, "it ended before it was killed"
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "killed.csv").exists()
    assert labels.status(tmp_path / "killed").trained is None
    [checkpoint] = steps.glob("*/.steps/0/train_selector/checkpoint.safetensors")
    for name in ("killed", "whole"):
        label(f"next {tmp_path / name} -n 5 --out {tmp_path / name}.csv")
    assert rows(tmp_path / "killed.csv") == rows(tmp_path / "whole.csv")
    assert not checkpoint.exists()
    weights = [
        next((tmp_path / name / "rounds").glob("*/selector.safetensors")) for name in ("killed", "whole")
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_network_is_trained_where_labels_are_new_and_the_one_before_is_removed(made, tmp_path):
    call("import", made, table(tmp_path / "a.csv", "00.png,light,anna,", "deep/1/13.png,dark,anna,"))
    said = []
    next_batch(made, 2, tmp_path / "1.csv", say=said.append)
    next_batch(made, 2, tmp_path / "2.csv", say=said.append)
    assert said == ["training the selector on 2 labels"]
    assert rows(tmp_path / "1.csv") == [row | {"why": "highest margin"} for row in rows(tmp_path / "2.csv")]
    call("import", made, f"{fill(tmp_path / '1.csv')}")
    next_batch(made, 2, tmp_path / "3.csv", say=said.append)
    assert said[1:] == ["training the selector on 4 labels"]
    assert len(list((made / "rounds").iterdir())) == 1
    with pytest.raises(ConfigError, match="exist yet"):
        next_batch(made, 2, tmp_path / "3.csv")


def test_standard_output(made, tmp_path):
    assert (
        label(f"next {made} -n 3 --out -").splitlines()[0]
        == "path,index,utility,predicted,why,label,annotator,note"
    )
    label(f"import {made}", table(tmp_path / "a.csv", "00.png,light,anna,"))
    assert "00.png,light,light:1,anna," in label(f"export {made} --out -").splitlines()
