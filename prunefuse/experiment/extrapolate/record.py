"""The run folder: what is in it, and how it is read back.

::

    config.json                       resolved configuration, sizes in samples, command, versions, device
    manifest.json                     SHA-256 of the files beside it; configuration and data, to compare with later
    ledger.json                       the formula, and a line for every phase of every step and seed
    metrics.csv                       arm, seed, kept, accuracy, FLOPs and seconds
    report.html                       made from the files below and config.json, as are the two above
    seed<k>/subset/                   scores.csv of the subset, network.safetensors of F_s, plan.json if it was pruned
    seed<k>/embeddings/               embeddings.npy of all samples; answers/ for F_s' own scores
    seed<k>/by-<name>/scores.csv      of all samples: index, score, source (known or extrapolated), best first
    seed<k>/by-<name>/keep-<n>/       kept.csv: the same columns; final.safetensors
    seed<k>/full/, seed<k>/random/    with compare: the same files
    seed<k>/.../done.json             of a step that is done: what it found, what it took, SHA-256 of the files beside it

A step writes ``done.json`` last, and each file in one step (`prunefuse.files`). While it trains, it keeps a checkpoint.
Folders of format 1 have no SHA-256: they can be read, and cannot go on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunefuse.errors import DamagedFileError, RunFolderError
from prunefuse.experiment import folder
from prunefuse.experiment.extrapolate.ledger import Arm, Spending, arms
from prunefuse.experiment.extrapolate.methods import NEEDS
from prunefuse.experiment.steps import DONE, check_files, read_done

KIND = "extrapolate"


@dataclass(frozen=True)
class ExtrapolateRecord:
    """A run folder read back. ``done`` has what each finished step found, by seed and name of the step."""

    path: Path
    config: Mapping[str, Any]
    arms: tuple[Arm, ...]
    done: Mapping[int, Mapping[str, Mapping[str, Any]]]

    def lines(self, seed: int) -> list[Spending]:
        """The ledger of a seed."""
        return [Spending(**line) for found in self.done[seed].values() for line in found["spent"]]

    def check(self) -> None:
        """Raise ``DamagedFileError`` for a file of a step that is not what was written."""
        for seed, steps in self.done.items():
            for name, found in steps.items():
                check_files(self.path / f"seed{seed}" / name, found["files"])

    def finals(self, arm: Arm, keep: int) -> dict[int, Mapping[str, Any]]:
        """What training on the kept samples found, by seed."""
        name = arm.final(keep)
        return {seed: steps[name] for seed, steps in self.done.items() if name in steps}


def is_extrapolation(path: Path) -> bool:
    """Whether ``path`` is a folder of a run of score extrapolation, as far as config.json says."""
    try:
        return bool(json.loads((path / "config.json").read_text(encoding="utf-8")).get("kind") == KIND)
    except (OSError, ValueError, AttributeError):
        return False


def read(path: Path) -> ExtrapolateRecord:
    """Read a run folder, complete or not.

    Raises:
        RunFolderError: it is not one, or a file in it cannot be read.
    """
    config = folder.read_facts(path)
    if config.get("kind") != KIND:
        raise RunFolderError(f"{path} is not a folder of prunefuse extrapolate")
    try:
        done: dict[int, dict[str, Any]] = {}
        for seed in config["config"]["seeds"]:
            place = path / f"seed{seed}"
            done[seed] = {}
            for file in sorted(place.rglob(DONE)):
                found = read_done(file.parent, hashed=config["format"] > 1)
                assert found is not None
                done[seed][file.parent.relative_to(place).as_posix()] = found
        every = arms(config["config"]["by"], config["config"]["compare"], NEEDS)
    except DamagedFileError as error:
        raise RunFolderError(str(error)) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    return ExtrapolateRecord(path, config, every, done)
