"""What the runs of a study have found so far: a row for each run, seed and size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prunefuse import _files as files
from prunefuse.errors import RunFolderError
from prunefuse.experiment import folder
from prunefuse.experiment.cost import selection_cost
from prunefuse.experiment.extrapolate.ledger import spent
from prunefuse.experiment.extrapolate.record import read as read_extrapolation
from prunefuse.experiment.folder import RunRecord
from prunefuse.experiment.study.config import Study
from prunefuse.experiment.study.kind import KIND
from prunefuse.experiment.study.units import Unit, named_by_folders, units_of
from prunefuse.experiment.summary import whole_cost

COLUMNS = (
    *("run", "seed", "labels", "accuracy", "selector_accuracy"),
    *("selection_flops", "selection_seconds", "whole_flops", "whole_seconds"),
)


@dataclass(frozen=True)
class Row:
    """One size of one run with one seed. ``run`` is the unit's label; FLOPs and seconds as in reports of single runs."""

    run: str
    seed: int
    labels: int
    accuracy: float
    selector_accuracy: float | None
    selection_flops: float
    selection_seconds: float
    whole_flops: float
    whole_seconds: float


@dataclass(frozen=True)
class Results:
    """A study with what it has found.

    Attributes:
        path: Its folder.
        facts: Its config.json.
        study: What was asked for.
        units: Its runs, in order; those without rows, too.
        rows: By the name of the unit.
        records: The folders of loops that have something, by the name of the unit.
    """

    path: Path
    facts: Mapping[str, Any]
    study: Study
    units: tuple[Unit, ...]
    rows: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)
    records: Mapping[str, RunRecord] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[int, ...]:
        """All sizes."""
        return tuple(sorted({row.labels for rows in self.rows.values() for row in rows}))

    def at(self, unit: str, labels: int, name: str = "accuracy") -> dict[int, float]:
        """A column of a unit at a size, by seed."""
        rows = self.rows.get(unit, ())
        found = {row.seed: getattr(row, name) for row in rows if row.labels == labels}
        return {seed: value for seed, value in found.items() if value is not None}

    def curve(self, unit: str, seed: int) -> dict[int, float]:
        """Accuracy by size of a unit with one seed."""
        return {row.labels: row.accuracy for row in self.rows.get(unit, ()) if row.seed == seed}


def read(path: Path) -> Results:
    """What the folder of a study has.

    Raises:
        RunFolderError: it is none, or has nothing yet.
    """
    facts = folder.read_facts(path)
    if facts.get("kind") != KIND:
        raise RunFolderError(f"{path} is not a folder of prunefuse study")
    study = Study.from_plain(facts["config"])
    units = named_by_folders(path, units_of(study))
    shown: list[Unit] = []
    rows: dict[str, tuple[Row, ...]] = {}
    records: dict[str, RunRecord] = {}
    for unit in units:
        place = path / "trials" / unit.name
        if not (place / folder.CONFIG).exists():
            continue
        if study.kind == "extrapolate":
            for arm, own in _of_extrapolation(unit, place, study, len(units) > 1):
                shown.append(arm)
                rows[arm.name] = own
            continue
        shown.append(unit)
        try:
            record = folder.read(place)
        except RunFolderError as error:
            if "no complete round" in str(error):
                continue
            raise
        found = tuple(row for row in _of_loop(unit.label, record) if row.seed in study.seeds)
        trials = tuple(trial for trial in record.trials if trial.seed in study.seeds)
        if trials:
            records[unit.name] = RunRecord(record.path, record.config, trials, record.formula)
        if found:
            rows[unit.name] = found
    if not rows:
        raise RunFolderError(f"{path} has no trained network yet: there is nothing to report")
    return Results(path, facts, study, tuple(shown), rows, records)


def _of_loop(label: str, record: RunRecord) -> list[Row]:
    rows = []
    for trial in record.trials:
        costs = [cost for done in trial.rounds for cost in done.costs]
        for done in trial.rounds:
            if done.final_accuracy is None:
                continue
            chosen, whole = selection_cost(costs, done.labels), whole_cost(costs, done.labels)
            spent = (chosen.flops, chosen.seconds, whole.flops, whole.seconds)
            rows.append(
                Row(label, trial.seed, done.labels, done.final_accuracy, done.selector_accuracy, *spent)
            )
    return rows


def _of_extrapolation(
    unit: Unit, place: Path, study: Study, several: bool
) -> Iterator[tuple[Unit, tuple[Row, ...]]]:
    """Every arm of a run of score extrapolation as a unit of its own, with its rows."""
    record = read_extrapolation(place)
    roles = {"full": "dense", "random": "random"}
    for arm in record.arms:
        label = f"{arm.label} ({unit.label})" if several else arm.label
        rows = []
        for keep in record.config["keeps"]:
            for seed, done in record.finals(arm, keep).items():
                paid = spent(record.lines(seed), arm, keep)
                chosen = [cost for phase, cost in paid.items() if phase not in ("fuse", "train_final")]
                sums = [
                    sum(part)
                    for costs in (chosen, paid.values())
                    for part in (zip(*costs, strict=True) if costs else ((0.0,), (0.0,)))
                ]
                rows.append(Row(label, seed, keep, done["accuracy"], None, *sums))
        against = tuple(f"{unit.name}/{name}" for name in study.against if name != arm.name)
        found = tuple(row for row in rows if row.seed in study.seeds)
        if found:
            role = roles.get(arm.name, "main")
            yield (
                replace(unit, name=f"{unit.name}/{arm.name}", label=label, role=role, against=against),
                found,
            )


def csv_of(results: Results) -> str:
    """``results.csv``: the rows, with what tells their runs apart."""
    axes = list(dict.fromkeys(name for unit in results.units for name in unit.options))
    options = {unit.name: unit.options for unit in results.units}
    table = [
        {name: getattr(row, name) for name in COLUMNS} | dict(options.get(name_of, {}))
        for name_of, rows in results.rows.items()
        for row in rows
    ]
    return files.csv_text([*COLUMNS, *axes], table)
