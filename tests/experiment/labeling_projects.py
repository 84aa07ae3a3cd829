"""Folders of small images, and the command `prunefuse label` in processes of its own."""

import csv
import os
import shlex
import subprocess
import sys

import numpy as np
from PIL import Image

OPTIONS = (
    "--model mlp --epochs 4 --min-steps 0 --batch-size 4 --threads 1 --device cpu --checkpoint-seconds 0"
)
# What the images of `write_images` are.
DARK, LIGHT = "dark", "light"


def truth(path):
    """Dark where the number in the name is odd."""
    return DARK if int("".join(filter(str.isdigit, path.rpartition("/")[2]))) % 2 else LIGHT


def write_image(path, value, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 40, (8, 8, 3))
    Image.fromarray((noise + value).astype(np.uint8)).save(path)


def write_images(base, count=24, beside=()):
    """Images `unlabeled/…/NN.png` at several depths, or right in the folder, and `beside` in folders of classes."""
    top = base / "unlabeled" if beside else base
    for number in range(count):
        path = top / "deep" / str(number % 3) / f"{number:02}.png" if number % 4 else top / f"{number:02}.png"
        write_image(path, 30 if number % 2 else 200, number)
    for name in beside:
        for number in range(2):
            write_image(base / name / f"{number}.png", 30 if name == DARK else 200, 100 + number)
    return base


def command(line, *more):
    return [sys.executable, "-m", "prunefuse.cli", "label", *shlex.split(line), *map(str, more)]


def label(line, *more, code=0, arguments=None):
    """The output of `prunefuse label LINE`, standard error included."""
    done = subprocess.run(
        arguments or command(line, *more),
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def fill(path, answer=truth, annotator="anna", out=None):
    """Write the labels that `answer` gives for each path into a batch, empty for None."""
    filled = [
        {**row, "label": (label := answer(row["path"])) or "", "annotator": annotator if label else ""}
        for row in rows(path)
    ]
    write(out or path, filled)
    return out or path


def write(path, filled):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(filled[0]))
        writer.writeheader()
        writer.writerows(filled)
    return path
