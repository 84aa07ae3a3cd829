"""Several people at one project, and images that come and go while it lasts; in processes that are killed."""

from __future__ import annotations

import io
import signal
import subprocess
import sys

import pytest
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
from rich.console import Console
from typer.testing import CliRunner

from prunefuse.cli.app import app
from prunefuse.cli.progress import TrainingProgress
from prunefuse.errors import ConfigError
from prunefuse.experiment.labeling import labels, project
from prunefuse.experiment.labeling.work import next_batch
from prunefuse.experiment.records import Epoch, Progress


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images")


@pytest.fixture
def made(images, tmp_path):
    """A project of 24 images, with classes and without labels."""
    call(f"start {tmp_path / 'project'} --data {images} --classes dark,light {OPTIONS}")
    return tmp_path / "project"


def call(line, code=0):
    result = CliRunner().invoke(app, ["label", *line.split()])
    assert result.exit_code == code, result.output
    return result.output


def batch(made, name, count, *, who=""):
    """The paths of a batch that is written for somebody."""
    out = made.parent / f"{name}.csv"
    call(f"next {made} -n {count} --out {out}" + (f" --for {who}" if who else ""))
    return [row["path"] for row in rows(out)]


def test_people_get_different_images_and_the_same_person_the_same_again(made, tmp_path):
    anna, ben, anyone = batch(made, "a", 5, who="anna"), batch(made, "b", 5, who="ben"), batch(made, "c", 5)
    assert len({*anna, *ben, *anyone}) == 15
    assert batch(made, "a2", 5, who="anna") == anna
    assert batch(made, "b2", 7, who="ben")[:5] == ben
    assert batch(made, "c2", 3) == anyone[:3]
    assert {row["annotator"] for row in rows(tmp_path / "a.csv")} == {"anna"}
    assert '"person": "anna"' in (tmp_path / "a.html").read_text()
    said = call(f"status {made}")
    assert [line.split() for line in said.splitlines() if "asked of" in line] == [
        ["asked", "of", "anna", "5"],
        ["asked", "of", "ben", "7"],
    ]
    # What is labeled is nobody's; what was left empty stays with whom it was asked of.
    fill(tmp_path / "a.csv", {path: truth(path) for path in anna[:3]}.get)
    call(f"import {made} {tmp_path / 'a.csv'}")
    assert batch(made, "a3", 4, who="anna")[:2] == anna[3:]
    assert not set(batch(made, "d", 24, who="dora")) & {*anna, *ben, *anyone}
    assert labels.status(made).open_for["anna"] == 4
    everything = [batch(made, f"last-{who}", 24, who=who) for who in ("anna", "ben", "dora")]
    assert len(set().union(*everything, anyone, anna[:3])) == 24 == sum(map(len, everything)) + 5 + 3


def test_a_tie_goes_to_somebody_who_has_not_voted(made, tmp_path):
    for who, value in (("anna", DARK), ("ben", LIGHT)):
        (tmp_path / "t.csv").write_text(f"path,label,annotator\n00.png,{value},{who}\n")
        call(f"import {made} {tmp_path / 't.csv'}")
    assert "00.png" not in batch(made, "a", 23, who="anna")
    said = call(f"next {made} -n 3 --for ben --out {tmp_path / 'none.csv'}")
    assert (
        said
        == "Nothing is left to ask: 24 images are without a label, 23 with others, who were asked for them (--for)\n"
    )
    assert batch(made, "c", 1, who="cleo") == ["00.png"]
    assert "24 with others" in call(f"next {made} -n 2 --out {tmp_path / 'none.csv'}")  # it is cleo's now
    fill(tmp_path / "c.csv", lambda path: LIGHT, annotator="cleo")
    call(f"import {made} {tmp_path / 'c.csv'}")
    assert labels.status(made).labels == {DARK: 0, LIGHT: 1}


def test_two_people_ask_at_the_same_moment(tmp_path):
    images = write_images(tmp_path / "images", beside=(DARK, LIGHT))
    label(f"start {tmp_path / 'p'} --data {images} {OPTIONS}")
    running = [
        subprocess.Popen(
            command(f"next {tmp_path / 'p'} -n 6 --for {who} --out {tmp_path / who}.csv"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for who in ("anna", "ben")
    ]
    for process in running:
        said, _ = process.communicate()
        assert process.returncode == 0, said
    batches = [[row["path"] for row in rows(tmp_path / f"{who}.csv")] for who in ("anna", "ben")]
    assert len({*batches[0], *batches[1]}) == 12
    assert {row["why"] for who in ("anna", "ben") for row in rows(tmp_path / f"{who}.csv")} == {
        "highest margin"
    }
    assert len(list((tmp_path / "p" / "rounds").iterdir())) == 1
    assert labels.status(tmp_path / "p").open_for == {"anna": 6, "ben": 6}


def test_images_that_come_and_go(made, images, tmp_path):
    first = batch(made, "1", 6)
    call(f"import {made} {fill(tmp_path / '1.csv')}")
    before = project.find(made).index
    for number in (50, 51):
        write_image(images / "aaa" / f"{number}.png", 30 if number % 2 else 200, number)
    (images / "broken.png").write_bytes(b"half a picture")
    waiting = next(path for path in before if path not in first)
    (images / waiting).unlink()
    (images / first[0]).unlink()
    assert "new images, which `next` takes in  3" in call(f"status {made}")
    assert "images no longer there             2" in call(f"status {made}")
    said = call(f"next {made} -n 100 --out {tmp_path / '2.csv'}")
    assert "2 images are new; images are read as 3x8x8" in said
    assert "left out, as it cannot be read: broken.png" in said
    assert "2 images are no longer there: " in said
    assert "training the selector on 5 labels" in said
    assert {row["path"] for row in rows(tmp_path / "2.csv")} == {
        *before, "aaa/50.png", "aaa/51.png",
    } - {waiting, *first}  # fmt: skip
    now = project.find(made)
    assert {path: now.index[path] for path in before} == before
    assert now.paths[24:] == ("aaa/50.png", "aaa/51.png")
    # Labels are still there, also of what is gone; and what is repaired or comes back is taken in.
    assert sum(labels.status(made).labels.values()) == 6
    write_image(images / "broken.png", 200)
    write_image(images / waiting, 30)
    call(f"import {made} {fill(tmp_path / '2.csv')}")
    assert set(batch(made, "3", 100)) == {"broken.png", waiting}
    assert "1 image is no longer there: " in call(f"predict {made} --out {tmp_path / 'p.csv'}")
    assert {row["path"] for row in rows(tmp_path / "p.csv")} == {"broken.png", waiting}
    assert {row["index"] for row in rows(tmp_path / "p.csv")} == {"26", str(before[waiting])}
    # All are gone: a folder that is not mounted is no reason to forget anything.
    images.rename(tmp_path / "elsewhere")
    images.mkdir()
    with pytest.raises(ConfigError, match=r"must have the images of .*project, got none of them"):
        next_batch(made, 2, tmp_path / "4.csv")


def test_later_images_in_folders_of_classes_have_labels(tmp_path):
    images = write_images(tmp_path / "images", beside=(DARK, LIGHT))
    call(f"start {tmp_path / 'p'} --data {images} {OPTIONS}")
    write_image(images / DARK / "late.png", 30)
    (images / "unlabeled" / "00.png").rename(images / LIGHT / "00.png")
    said = call(f"next {tmp_path / 'p'} -n 3 --out {tmp_path / '1.csv'}")
    assert "2 images are new" in said
    assert "training the selector on 6 labels" in said
    assert labels.status(tmp_path / "p").labels == {DARK: 3, LIGHT: 3}


KILLED = """
import os, signal, sys
left, folder = int(sys.argv.pop(1)), sys.argv.pop(1)

def dying(event, arguments):
    global left
    if event in ("open", "os.rename", "os.remove", "os.link") and folder in str(arguments[0]):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(dying)
from prunefuse.cli import main
main()
"""


def test_a_next_that_is_killed_while_it_takes_in_images_has_done_so_or_not(made, images, tmp_path):
    write_image(images / "late.png", 30)
    seen, killed = set(), 0
    while True:
        copy = tmp_path / f"copy{killed}"
        subprocess.run(["cp", "-r", made, copy], check=True)
        arguments = [
            "label",
            "next",
            str(copy),
            "-n",
            "30",
            "--for",
            "anna",
            "--out",
            str(tmp_path / f"{killed}.csv"),
        ]
        run = [sys.executable, "-c", KILLED, str(killed + 1), str(copy / "journal"), *arguments]
        done = subprocess.run(run, capture_output=True, text=True)
        now = project.find(copy)
        asked = now.read().holders
        assert now.paths[24:] in ((), ("late.png",))
        assert set(asked.values()) <= {"anna"}
        assert len(asked) in (0, 25)
        assert (
            len(asked) == 25 or not (tmp_path / f"{killed}.csv").exists()
        )  # nothing is out that is not known
        seen.add((len(now.paths), len(asked)))
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        killed += 1
        again = tmp_path / f"again{killed}.csv"
        call(f"next {copy} -n 30 --for anna --out {again}")
        assert len(rows(again)) == 25
        assert project.find(copy).paths[24:] == ("late.png",)
    assert killed > 3
    assert seen >= {(24, 0), (25, 0), (25, 25)}


def shown(**console):
    text = io.StringIO()
    with TrainingProgress(console=Console(file=text, width=120, **console)) as progress:
        progress.note("training the selector on 4 labels")
        progress(Epoch(0, "selector", 3, 80, 0.1, 0.5, 0.9, None, 1.0))
        progress(Progress(500, 1000, ""))
    return text.getvalue()


def test_a_training_shows_a_bar_on_a_terminal_and_lines_in_a_log(monkeypatch):
    monkeypatch.setattr("prunefuse.cli.progress._LOG_EVERY", 0.0)
    terminal = shown(force_terminal=True)
    assert "training the selector on" in terminal
    assert "500/1000" in terminal
    assert shown(force_terminal=False).splitlines() == [
        "training the selector on 4 labels",
        "epoch 3 of 80, loss 0.5",
        "500 of 1,000 images scored",
    ]
