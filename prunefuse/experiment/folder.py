"""The run folder: what is in it, how it is written, how it is read back.

::

    config.json                  resolved configuration, schedule in samples, arms, command, versions, device
    metrics.csv                  arm, seed, round, labels, selector_accuracy, final_accuracy, unselectable
    epochs.csv                   arm, seed, round, network, epoch, epochs, lr, loss, train_accuracy,
                                 test_accuracy, seconds
    ledger.json                  formula of the cost of selection; an entry per arm, seed, round and phase
    report.html                  made from the files above
    <arm>/seed<k>/picks.csv      round, order, index (into the data set), utility
    <arm>/seed<k>/plan.json      what the pruning removed
    <arm>/seed<k>/selector.safetensors, final.safetensors

Everything is written again after every round, each file in one step (`prunefuse.files`): a run that is killed
leaves a folder of whole files, those of its last complete round.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from prunefuse import _files as files
from prunefuse.errors import RunError as RunError
from prunefuse.errors import RunFolderError as RunFolderError
from prunefuse.experiment.budgets import ConfigError
from prunefuse.experiment.records import Cost, Epoch, Round

METRICS = ("arm", "seed", "round", "labels", "selector_accuracy", "final_accuracy", "unselectable")
EPOCHS = (
    *("arm", "seed", "round", "network", "epoch", "epochs"),
    *("lr", "loss", "train_accuracy", "test_accuracy", "seconds"),
)
_TABLES = ("metrics.csv", "epochs.csv", "ledger.json")
FORMAT = 1  # of the folder, in config.json
PICKS = ("round", "order", "index", "utility")


@dataclass(frozen=True)
class Trial:
    """One arm with one seed, and the rounds it has completed."""

    arm: str
    seed: int
    rounds: tuple[Round, ...]


@dataclass(frozen=True)
class RunRecord:
    """A run folder read back. ``config`` is config.json as it stands; picks are left on the disk."""

    path: Path
    config: Mapping[str, Any]
    trials: tuple[Trial, ...]
    formula: str


def create(parent: Path, name: str) -> Path:
    """Make a new folder ``parent/name``, or ``name-2``, ``name-3`` … where that exists.

    Raises:
        OSError: the folder cannot be made.
    """
    parent.mkdir(parents=True, exist_ok=True)
    attempt = 1
    while True:
        path = parent / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            path.mkdir()  # fails if it exists, so two runs that start together cannot share one
        except FileExistsError:
            attempt += 1
        else:
            return path


def make(out: str | None, data: str, model: str) -> Path:
    """Make the folder of a run: ``out``, or a new one under ``runs/`` with the time, the data and the model in its name.

    Raises:
        ConfigError: it exists, or cannot be made.
    """
    try:
        if out is not None:
            path = Path(out)
            path.mkdir(parents=True)
            return path
        name = data.removeprefix("folder:").rstrip("/").rpartition("/")[2]
        return create(Path("runs"), f"{datetime.now():%Y%m%d-%H%M%S}-{name}-{model.replace(':', '-')}")
    except FileExistsError as error:
        raise ConfigError(f"out must be a folder that does not exist yet, got {out}") from error
    except OSError as error:
        raise ConfigError(f"out: the run folder cannot be made: {error}") from error


def write_config(path: Path, config: Mapping[str, Any]) -> None:
    """Write config.json."""
    files.write_json(path / "config.json", config)


def write_tables(path: Path, trials: Sequence[Trial], formula: str) -> None:
    """Write metrics.csv, epochs.csv and ledger.json of all trials so far."""
    metrics: list[dict[str, Any]] = []
    epochs: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    for trial in trials:
        key = {"arm": trial.arm, "seed": trial.seed}
        for done in trial.rounds:
            metrics.append(key | {"round": done.index} | _named(done, METRICS[3:]))
            epochs.extend(key | _named(epoch, EPOCHS[2:]) for epoch in done.epochs)
            entries.extend(key | asdict(cost) for cost in done.costs)
    write_csv(path / "metrics.csv", METRICS, metrics)
    write_csv(path / "epochs.csv", EPOCHS, epochs)
    files.write_json(path / "ledger.json", {"formula": formula, "entries": entries})


def write_picks(path: Path, trial: Trial) -> None:
    """Write picks.csv of one trial."""
    rows = [
        dict(zip(PICKS, (done.index, order, index, utility), strict=True))
        for done in trial.rounds
        for order, (index, utility) in enumerate(
            zip(done.picks, done.utilities or [None] * len(done.picks), strict=True)
        )
    ]
    write_csv(trial_folder(path, trial.arm, trial.seed) / "picks.csv", PICKS, rows)


def trial_folder(path: Path, arm: str, seed: int) -> Path:
    """Folder of one arm and seed."""
    return path / arm / f"seed{seed}"


def read(path: Path) -> RunRecord:
    """Read a run folder, complete or not.

    Raises:
        RunFolderError: it is not one, or a file in it cannot be read.
    """
    missing = [name for name in ("config.json", *_TABLES) if not (path / name).is_file()]
    if missing == list(_TABLES):
        raise RunFolderError(f"{path} has no complete round yet: there is nothing to report")
    if missing:
        raise RunFolderError(f"{path} is not a run folder: it has no {', '.join(missing)}")
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        if config["format"] != FORMAT:
            raise ValueError(
                f"format {config['format']} in config.json, and this version reads format {FORMAT}"
            )
        ledger = json.loads((path / "ledger.json").read_text(encoding="utf-8"))
        epochs: dict[tuple[str, int, int], list[Epoch]] = {}
        for row in read_csv(path / "epochs.csv"):
            key = (row["arm"], int(row["seed"]), int(row["round"]))
            epochs.setdefault(key, []).append(_epoch(row))
        costs: dict[tuple[str, int, int], list[Cost]] = {}
        for entry in ledger["entries"]:
            key = (entry.pop("arm"), entry.pop("seed"), entry["round"])
            costs.setdefault(key, []).append(Cost(**entry))
        trials: dict[tuple[str, int], list[Round]] = {}
        for row in read_csv(path / "metrics.csv"):
            key = (row["arm"], int(row["seed"]), int(row["round"]))
            done = Round(
                index=key[2],
                labels=int(row["labels"]),
                picks=(),
                utilities=None,
                selector_accuracy=_number(row["selector_accuracy"]),
                final_accuracy=_number(row["final_accuracy"]),
                unselectable=int(row["unselectable"]),
                epochs=tuple(epochs.get(key, ())),
                costs=tuple(costs.get(key, ())),
            )
            trials.setdefault(key[:2], []).append(done)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if not trials:
        raise RunFolderError(
            f"{path} has no complete round: metrics.csv has no rows, there is nothing to report"
        )
    found = tuple(Trial(arm, seed, tuple(rounds)) for (arm, seed), rounds in trials.items())
    return RunRecord(path, config, found, ledger["formula"])


def _epoch(row: Mapping[str, str]) -> Epoch:
    network = row["network"]
    if network not in ("selector", "final"):
        raise ValueError(f"network {network!r} in epochs.csv")
    return Epoch(
        round=int(row["round"]),
        network=network,  # type: ignore[arg-type]  # mypy does not narrow a str to its literals
        epoch=int(row["epoch"]),
        epochs=int(row["epochs"]),
        lr=float(row["lr"]),
        loss=float(row["loss"]),
        train_accuracy=float(row["train_accuracy"]),
        test_accuracy=_number(row["test_accuracy"]),
        seconds=float(row["seconds"]),
    )


def _number(text: str) -> float | None:
    return float(text) if text else None


def _named(record: object, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(record, name) for name in names}


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table with these columns; None becomes an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(path, text.getvalue())


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a table, by column."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
