"""What people bring to the command line: broken files, names in no encoding, pipes; errors are one line."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from prunefuse.cli.app import app

RUN = [
    *("--schedule", "4,8", "--epochs", "1", "--min-steps", "1", "--model", "mlp", "--baselines", "none"),
    *("--seeds", "1", "--device", "cpu", "--threads", "1"),
]


def write(root: Path, *parts: str, count: int = 8) -> None:
    rng = np.random.default_rng(0)
    for part in parts:
        (root / part).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image = Image.fromarray(rng.integers(0, 255, (16, 16, 3)).astype(np.uint8))
            with (root / part / f"{i}.jpg").open("wb") as file:
                image.save(file, "JPEG")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "photos", "train/a", "train/b", "test/a", "test/b")
    return tmp_path / "photos"


def run(data: str | Path, *more: str) -> Any:
    return CliRunner().invoke(app, ["run", "--data", f"folder:{data}", *RUN, "-o", "out", *more])


def command(*words: str | bytes, **environment: str) -> subprocess.CompletedProcess[bytes]:
    call = [sys.executable, "-m", "prunefuse.cli", *words]
    return subprocess.run(call, capture_output=True, check=False, env=os.environ | environment)


def test_a_broken_file_ends_a_run_before_any_work(photos: Path) -> None:
    broken = photos / "train" / "b" / "5.jpg"
    broken.write_bytes(broken.read_bytes()[:-60])
    result = run(photos)
    assert result.exit_code == 1
    assert str(broken) in result.stderr
    assert "--skip-broken" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not Path("out").exists()
    left = run(photos, "--skip-broken")
    assert left.exit_code == 0, left.output
    assert f"left out, as they cannot be read: {broken}" in left.stderr
    assert "labels 4, 8 of 15" in left.stderr


def test_the_size_of_images_and_what_is_left_out_are_told(photos: Path) -> None:
    (photos / "train" / "a" / "notes.txt").write_text("no image")
    result = run(photos, "--image-size", "8", "--no-flip", "--crop", "2")
    assert result.exit_code == 0, result.output
    assert "images are read as 3x8x8 (the shorter sides of 16 of them are 16 to 16)" in result.stderr
    assert "left out, as they are no images that are read: 1 of .txt" in result.stderr
    assert "Warning" not in result.stderr


def test_a_folder_without_a_test_part_is_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "photos", "a", "b", count=10)
    result = run("photos", "--test-fraction", "0.4")
    assert result.exit_code == 0, result.output
    assert "labels 4, 8 of 12" in result.stderr
    assert "8 of 20 images are the test part, 0.4 of each class" in result.stderr


def test_a_folder_whose_name_is_in_no_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"caf\xe9")
    write(tmp_path / name, "train/a", "train/b", "test/a", "test/b")
    result = run(name)
    assert result.exit_code == 0, result.output
    assert Path("out/report.html").is_file()
    again = CliRunner().invoke(app, ["run", "--resume", "out", "-q"])
    assert again.exit_code == 0, again.output
    missing = command("run", "--data", b"folder:" + b"caf\xe8", *RUN)
    assert missing.returncode == 1
    assert missing.stderr.startswith(b"Error: folder must have ")
    assert b"Traceback" not in missing.stderr


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_utility_that_is_nan_everywhere_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("u.py").write_text("def u(logits):\n    return logits.amax(1) * float('nan')\n")
    words = ["--strategy", "u.py:u", "--schedule", "30,60", "--seeds", "2", "--jobs", jobs]
    result = CliRunner().invoke(app, ["run", *RUN, *words, "-o", "out"])
    assert result.exit_code == 1
    [last] = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    assert "strategy: 30 samples are to be picked to reach 60 labels, but only 0 of 1407 can be" in last
    assert re.search(r"\bout\b", last)
    assert not re.search(r"\bb\b is", last)
    assert "Traceback" not in result.output


def test_a_network_whose_head_is_a_convolution_has_features(photos: Path) -> None:
    write(photos.parent / "larger", "train/a", "train/b", "test/a", "test/b", count=4)
    options = ["--model", "torchvision:squeezenet1_1", "--strategy", "k_center", "--image-size", "32"]
    result = run("larger", *options)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
@pytest.mark.parametrize("name", ["score", "run", "report", "bench"])
def test_help_prints_in_any_encoding(name: str, encoding: str) -> None:
    done = command(name, "--help", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"--help" in done.stdout


def test_a_dash_is_standard_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(0).random((9, 4)))
    for options, lines in ((["--top", "2"], 3), ([], 10)):
        done = command("score", "x.npy", "-o", "-", *options)
        assert done.returncode == 0
        assert len(done.stdout.splitlines()) == lines
        assert done.stdout.startswith(b"index,utility,file,row")
        assert done.stderr.decode().strip() == f"{lines - 1} of 9 rows: standard output"
        quiet = command("score", "x.npy", "-o", "-", "-q", *options)
        assert (quiet.stdout, quiet.stderr) == (done.stdout, b"")
    assert [file.name for file in tmp_path.iterdir()] == ["x.npy"]


def test_a_file_of_logits_in_no_encoding_stands_in_the_table_as_it_is(tmp_path: Path) -> None:
    file = os.fsencode(tmp_path) + b"/caf\xe9.npy"
    with open(file, "wb") as opened:
        np.save(opened, np.random.default_rng(0).random((9, 4)))
    out = tmp_path / "picks.csv"
    done = command("score", file, "-o", str(out))
    assert done.returncode == 0, done.stderr
    assert file in out.read_bytes()
