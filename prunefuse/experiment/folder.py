"""The run folder: what is in it, how it is written, how it is read back.

::

    config.json                  resolved configuration, schedule in samples, arms, names of classes, command, versions, device
    metrics.csv                  arm, seed, round, labels, selector_accuracy, final_accuracy, unselectable; kappa and
                                 uncertainty, which stopping rules look at
    scores.csv                   arm, seed, round, labels, network, metric, class, value: all metrics of the test set, those
                                 of a class with its index
    epochs.csv                   arm, seed, round, network, epoch, epochs, lr, loss, train_accuracy,
                                 test_accuracy, seconds
    ledger.json                  formula of the cost of selection; an entry per arm, seed, round and phase
    manifest.json                SHA-256 of the files above; configuration and data, to compare with when the run goes on
    status.json                  while it runs: where it is, for `prunefuse status`
    report.html                  drawn from the folders below
    <arm>/seed<k>/               what the rounds found: `prunefuse.experiment.trial`

The tables are for people and other programs: they are made of the folders of the trials, which is where a report is drawn
from and a run goes on from. Folders of format 1 have no manifests: they can be read, and cannot go on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from prunefuse import _commit
from prunefuse import _files as files
from prunefuse._lock import LOCK
from prunefuse.errors import ConfigError, DamagedFileError
from prunefuse.errors import RunError as RunError
from prunefuse.errors import RunFolderError as RunFolderError
from prunefuse.experiment import machine
from prunefuse.experiment import trial as trials_on_disk
from prunefuse.experiment.records import Cost, Epoch, Round

METRICS = (
    *("arm", "seed", "round", "labels", "selector_accuracy", "final_accuracy", "unselectable"),
    *("kappa", "uncertainty"),
)
EPOCHS = (
    *("arm", "seed", "round", "network", "epoch", "epochs"),
    *("lr", "loss", "train_accuracy", "test_accuracy", "seconds"),
)
SCORES = ("arm", "seed", "round", "labels", "network", "metric", "class", "value")
_TABLES = ("metrics.csv", "epochs.csv", "ledger.json")  # what every folder has
CONFIG = "config.json"
FORMAT = 2  # of the folder, in config.json


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

    A folder that a run left when it was killed before its configuration was written is used again.

    Raises:
        ConfigError: it exists, or cannot be made.
    """
    try:
        if out is not None:
            path = Path(out)
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                if not path.is_dir() or not _is_left_over(path):
                    raise
            return path
        name = data.removeprefix("folder:").rstrip("/").rpartition("/")[2]
        return create(Path("runs"), f"{datetime.now():%Y%m%d-%H%M%S}-{name}-{model.replace(':', '-')}")
    except FileExistsError as error:
        mend = f"; --resume {out} goes on with the run in it" if (Path(str(out)) / CONFIG).is_file() else ""
        raise ConfigError(f"out must be a folder that does not exist yet, got {out}{mend}") from error
    except OSError as error:
        raise ConfigError(f"out: the run folder cannot be made: {error}") from error


def _is_left_over(path: Path) -> bool:
    """Whether a folder has nothing but what a run leaves that is killed while it writes its configuration."""
    # A staged file is itself written to a temporary name beside it, with one more dot.
    ours = (LOCK, *(f"{dots}{name}." for name in (CONFIG, _commit.MANIFEST) for dots in (".", "..")))
    return all(entry.name.startswith(ours) for entry in path.iterdir())


def described(
    run: Any,
    command: str | None,
    facts: Mapping[str, Any],
    *,
    kind: str | None = None,
    started: str | None = None,
) -> dict[str, Any]:
    """What config.json of a run holds: its name and command, ``facts``, and what it was made with.

    Args:
        run: An experiment with ``path``, ``config`` and ``device``.
        command: The command line; None from Python.
        facts: What this kind of run says of itself.
        kind: Its kind; a run of the loop has none.
        started: When it was begun; None is now.
    """
    told = {"format": FORMAT, **({} if kind is None else {"kind": kind})}
    told |= {"name": run.path.name, "command": command, "started": started or machine.now(), "finished": None}
    made = {"versions": machine.describe_versions(), "machine": machine.describe_machine(run.device)}
    return {**told, **facts, **made}


def begin(path: Path, facts: Mapping[str, Any]) -> None:
    """Write config.json, and keep what the run may not differ in when it goes on."""
    content = files.utf8(json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    told = json.loads(content)
    _commit.commit(path, {CONFIG: content}, {"config": told["config"], "data": told["data"]})


def read_facts(path: Path) -> dict[str, Any]:
    """config.json of a run folder of this format.

    Raises:
        RunFolderError: there is none, it is of another format, or it was changed; says how.
    """
    try:
        manifest = _commit.manifest(path)
    except DamagedFileError as error:
        raise RunFolderError(str(error)) from error
    try:
        facts: dict[str, Any] = json.loads(_read(path / CONFIG, manifest))
    except FileNotFoundError:
        raise RunFolderError(f"{path} is not a run folder: it has no {CONFIG}") from None
    except DamagedFileError as error:
        assert manifest is not None
        changes = _changes(path / CONFIG, manifest.facts["config"])
        raise RunFolderError(changes or str(error)) from error
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path / CONFIG} cannot be read: {error}") from error
    if not isinstance(facts, dict) or facts.get("format") not in (1, FORMAT):
        told = facts.get("format") if isinstance(facts, dict) else None
        raise RunFolderError(
            f"{path} cannot be read: format {told} in {CONFIG}, and this version reads formats 1 and {FORMAT}"
        )
    if facts["format"] == FORMAT and manifest is None:
        raise RunFolderError(f"{path / _commit.MANIFEST} is missing: nothing without it can be trusted")
    return facts


def finish(path: Path) -> None:
    """Write into config.json that the run is finished."""
    from prunefuse.experiment import machine

    facts = {**read_facts(path), "finished": machine.now()}
    content = json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    _commit.commit(path, {CONFIG: files.utf8(content)})


def lacks_report(path: Path) -> bool:
    """Whether a finished run was killed before its report was drawn."""
    drawn = path / "report.html"
    return not drawn.exists() or drawn.stat().st_mtime_ns < (path / CONFIG).stat().st_mtime_ns


def check(path: Path) -> None:
    """Raise ``DamagedFileError`` for a file of a manifest that is not what was written; tables may be missing."""
    found = _commit.manifest(path)
    if found is None:
        raise DamagedFileError(f"{path / _commit.MANIFEST} is missing: it says what the run has written")
    for name in found.files:
        if name not in _TABLES or (path / name).exists():
            found.read(name)


def check_format(path: Path, facts: Mapping[str, Any]) -> None:
    """Raise ``RunFolderError`` unless a run can go on from a folder."""
    if facts["format"] != FORMAT:
        raise RunFolderError(
            f"{path} was written before runs could go on (format {facts['format']}): it can be reported, "
            "not resumed"
        )


def _read(path: Path, manifest: _commit.Manifest | None) -> bytes:
    return path.read_bytes() if manifest is None else manifest.read(path.name)


def _changes(path: Path, before: Mapping[str, Any]) -> str:
    """How the configuration in a changed config.json differs from that of the run; empty if that cannot be told."""
    try:
        now = json.loads(path.read_bytes())["config"]
        pairs = [(name, before.get(name), now.get(name)) for name in dict.fromkeys([*before, *now])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    told = "; ".join(f"{name} was {old!r} and now is {new!r}" for name, old, new in pairs if old != new)
    return told and f"{path} was changed since the run began: {told}. Put it back, or begin a new run"


def write_tables(path: Path, trials: Sequence[Trial], formula: str) -> None:
    """Write metrics.csv, scores.csv, epochs.csv and ledger.json of all trials so far, as one."""
    _commit.commit(path, {name: files.utf8(text) for name, text in tables(trials, formula).items()})


def tables(trials: Sequence[Trial], formula: str) -> dict[str, str]:
    """The content of metrics.csv, epochs.csv, ledger.json and scores.csv, by name."""
    metrics: list[dict[str, Any]] = []
    scores: list[dict[str, Any]] = []
    epochs: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    for trial in trials:
        key = {"arm": trial.arm, "seed": trial.seed}
        for done in trial.rounds:
            signals = {name: done.signals.get(name) for name in METRICS[7:]}
            metrics.append(key | {"round": done.index} | _named(done, METRICS[3:7]) | signals)
            scores.extend(key | row for row in _scores(done))
            epochs.extend(key | _named(epoch, EPOCHS[2:]) for epoch in done.epochs)
            entries.extend(key | asdict(cost) for cost in done.costs)
    ledger = json.dumps(
        {"formula": formula, "entries": entries}, indent=1, ensure_ascii=False, allow_nan=False
    )
    contents = (files.csv_text(METRICS, metrics), files.csv_text(EPOCHS, epochs), ledger + "\n")
    return dict(zip(_TABLES, contents, strict=True)) | {"scores.csv": files.csv_text(SCORES, scores)}


def _scores(done: Round) -> Iterable[dict[str, Any]]:
    for network, metrics in done.metrics.items():
        key = {"round": done.index, "labels": done.labels, "network": network}
        for name, value in metrics.items():
            values = enumerate(value) if isinstance(value, tuple) else (("", value),)
            yield from (key | {"metric": name, "class": place, "value": one} for place, one in values)


def trial_folder(path: Path, arm: str, seed: int) -> Path:
    """Folder of one arm and seed."""
    return path / arm / f"seed{seed}"


def read(path: Path) -> RunRecord:
    """Read a run folder, complete or not.

    Raises:
        RunFolderError: it is not one, or a file in it cannot be read or was changed; names the file.
    """
    facts = read_facts(path)
    if facts.get("kind", "run") != "run":
        raise RunFolderError(f"{path} is of prunefuse {facts['kind']}, whose reports are of one folder alone")
    try:
        trials, formula = _read_tables(path) if facts["format"] == 1 else _read_trials(path, facts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, DamagedFileError):
            raise RunFolderError(str(error)) from error
        raise RunFolderError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if not any(trial.rounds for trial in trials):
        raise RunFolderError(f"{path} has no complete round yet: there is nothing to report")
    return RunRecord(path, facts, tuple(trial for trial in trials if trial.rounds), formula)


def _read_trials(path: Path, facts: Mapping[str, Any]) -> tuple[list[Trial], str]:
    """What the folders of the trials say; the tables are checked, though not read."""
    from prunefuse.experiment.cost import FORMULA

    manifest = _commit.manifest(path)
    assert manifest is not None
    for name in _TABLES:
        if name in manifest.files and (path / name).exists():
            manifest.read(name)
    return [
        Trial(arm, seed, trials_on_disk.read_rounds(trial_folder(path, arm, seed)))
        for seed in facts["config"]["seeds"]
        for arm in facts["arms"]
    ], FORMULA


def _read_tables(path: Path) -> tuple[list[Trial], str]:
    """What the tables of a folder of format 1 say; picks are left on the disk."""
    missing = [name for name in _TABLES if not (path / name).is_file()]
    if missing == list(_TABLES):
        return [], ""
    if missing:
        raise RunFolderError(f"{path} is not a run folder: it has no {', '.join(missing)}")
    ledger = json.loads((path / "ledger.json").read_text(encoding="utf-8"))
    epochs: dict[tuple[str, int, int], list[Epoch]] = {}
    for row in files.read_csv(path / "epochs.csv"):
        key = (row["arm"], int(row["seed"]), int(row["round"]))
        epochs.setdefault(key, []).append(_epoch(row))
    costs: dict[tuple[str, int, int], list[Cost]] = {}
    for entry in ledger["entries"]:
        key = (entry.pop("arm"), entry.pop("seed"), entry["round"])
        costs.setdefault(key, []).append(Cost(**entry))
    trials: dict[tuple[str, int], list[Round]] = {}
    for row in files.read_csv(path / "metrics.csv"):
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
    found = [Trial(arm, seed, tuple(rounds)) for (arm, seed), rounds in trials.items()]
    return found, str(ledger["formula"])


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
