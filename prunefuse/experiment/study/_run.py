"""Carries out a study: every run that is different once, side by side, kept and gone on with as single runs are.

::

    config.json, manifest.json    the study as it was asked for last; format, versions, machine
    trials/<run>/                 a folder for each run, as of `prunefuse run` or `prunefuse extrapolate`
    shared/<key>/                 what steps found that several runs have; see `prunefuse.experiment.shared`
    results.csv                   a row for every run, seed and size: accuracy, FLOPs and seconds
    report.html, report.md        means, differences, areas and plots
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from prunefuse import _commit, _lock
from prunefuse._extras import needed_for
from prunefuse.data import Data
from prunefuse.errors import ConfigError, DamagedFileError, RunError, RunFolderError, StudyInterrupted
from prunefuse.experiment import execute, folder, machine
from prunefuse.experiment.config import DataOptions, RunConfig, TextOptions
from prunefuse.experiment.cost import FORMULA
from prunefuse.experiment.datasets import load_data
from prunefuse.experiment.extrapolate.config import ExtrapolateConfig
from prunefuse.experiment.records import Cost, Event, Listener
from prunefuse.experiment.steps import Line
from prunefuse.experiment.study.config import Study, check
from prunefuse.experiment.study.kind import KIND
from prunefuse.experiment.study.pruning_config import PruningConfig
from prunefuse.experiment.study.units import Unit, named_by_folders, units_of

with needed_for("a study"):
    from prunefuse.experiment import lifecycle
    from prunefuse.experiment.extrapolate._run import ExtrapolateRun
    from prunefuse.experiment.progress import STATUS, RunProgress
    from prunefuse.experiment.report import extrapolation
    from prunefuse.experiment.run import LoopRun
    from prunefuse.experiment.study.pace import Forecast, measured_paces
    from prunefuse.experiment.study.pruning import PruningRun
    from prunefuse.experiment.study.report import report

_REDRAW = 120.0  # seconds between drawings of the report


def run(
    study: Study,
    out: str | Path | None = None,
    *,
    jobs: int | None = None,
    command: str | None = None,
    quiet: bool = False,
) -> Path:
    """Carry out a study, or the rest of it, and draw its report.

    What the folder has is not done again: a study that was stopped goes on, and one to whose grid values were added does
    those. Runs that are no longer asked for stay, and are in no report.

    >>> from prunefuse.experiment.study import read_study, run
    >>> small = ["on=digits", "model=mlp", "epochs=1", "min_steps=0", "schedule=['2%', '4%']", "seeds=[0]"]
    >>> folder = run(read_study("budgets", [*small, "prune_ratio=[0.5]"]), "mine", jobs=1, quiet=True)
    >>> sorted(path.name for path in folder.iterdir() if path.suffix != ".json")
    ['report.html', 'report.md', 'results.csv', 'shared', 'trials']

    Args:
        study: What to run.
        out: Its folder; None is ``studies/NAME``.
        jobs: Processes side by side; None = as many as `prunefuse run` takes. Results do not depend on it.
        command: The command line, for the report.
        quiet: No progress on standard error.

    Raises:
        ConfigError: something in it is not possible; nothing has been written.
        RunFolderError: ``out`` is a folder of something else.
        FolderInUseError, DamagedFileError, FileNotFoundError, RunError, StudyInterrupted: as `prunefuse run`.
    """
    check(study)
    path = Path("studies") / study.name if out is None else Path(out)
    if study.kind == "flops":
        from prunefuse.experiment.study.flops import compute

        return compute(study, path, command)
    _check_folder(path)
    experiment = StudyRun(study, path)
    with machine.running_on(experiment.threads):
        experiment.check()
        path.mkdir(parents=True, exist_ok=True)
        with _lock.locked(path):
            _commit.settle(path)
            started = folder.read_facts(path)["started"] if (path / folder.CONFIG).exists() else machine.now()
            folder.begin(path, experiment.describe(command, started))
            experiment.begin(command)
            return _go_on(
                experiment, jobs or execute.usual_jobs(experiment.device, experiment.threads), quiet
            )


def forecast(study: Study, out: str | Path | None = None, *, jobs: int | None = None) -> Forecast:
    """What a study will take: FLOPs of what is not done yet, and hours at the pace of what is, or of a few batches.

    >>> from prunefuse.experiment.study import forecast, read_study
    >>> small = ["on=digits", "model=mlp", "epochs=1", "schedule=['2%', '4%']", "seeds=[0]"]
    >>> forecast(read_study("budgets", small)).runs
    6

    Args:
        study: What would be run.
        out: Its folder, where a part of it may be done.
        jobs: Processes side by side, as of `run`.

    Raises:
        ConfigError: something in it is not possible.
        RunFolderError: ``out`` is a folder of something else.
    """
    check(study)
    path = Path("studies") / study.name if out is None else Path(out)
    _check_folder(path)
    experiment = StudyRun(study, path)
    with machine.running_on(experiment.threads):
        experiment.check()
        paces = measured_paces(experiment.loops, experiment.done_lines())
        return Forecast.of(
            experiment.lines_of,
            experiment.left(),
            paces,
            jobs or execute.usual_jobs(experiment.device, experiment.threads),
            len(experiment.units),
        )


def _check_folder(path: Path) -> None:
    """Raise ``RunFolderError`` unless ``path`` is new, empty, or of a study."""
    if not path.exists():
        return
    if not path.is_dir():
        raise RunFolderError(f"out must be a new folder or that of a study, got {path}, a file")
    if all(entry.name.startswith(".") for entry in path.iterdir()):
        return  # a study was killed before its configuration was written
    try:
        kind = folder.read_facts(path).get("kind", "run")
    except RunFolderError as error:
        raise RunFolderError(f"out must be a new folder or that of a study, got {path}: {error}") from error
    if kind != KIND:
        raise RunFolderError(f"out must be a new folder or that of a study, got {path}, of prunefuse {kind}")


@dataclass(frozen=True)
class _Place:
    """Where a task of the study is: its unit, and its name there."""

    unit: Unit
    task: str


class StudyRun:
    """The runs of a study; making one checks them. Its tasks are those of the runs."""

    def __init__(self, study: Study, path: Path, *, device: str | None = None) -> None:
        self.study, self.path = study, path
        asked = units_of(study)
        self.device = machine.resolve_device(device or asked[0].config.device)
        self._data: dict[str, Data] = {}
        self._experiments: dict[str, Any] = {}
        self.units = named_by_folders(path, asked)
        self.threads = max(self.experiment(unit).threads for unit in self.units)

    @classmethod
    def open(cls, path: Path, device: str | None = None) -> StudyRun:
        """The study of a folder."""
        return cls(Study.from_plain(folder.read_facts(path)["config"]), path, device=device)

    def place(self, unit: Unit) -> Path:
        """The folder of a run."""
        return self.path / "trials" / unit.name

    def experiment(self, unit: Unit) -> Any:
        """The run of a unit, with the data that others read, too."""
        if unit.name not in self._experiments:
            config = replace(unit.config, device=self.device.type)
            made: Any
            if isinstance(config, ExtrapolateConfig):
                made = ExtrapolateRun(config)
            elif isinstance(config, PruningConfig):
                made = PruningRun(config, self._read(config))
                made.shared = self.path / "shared"
            else:
                made = LoopRun(config, data=self._read(config))
                made.shared = self.path / "shared"
            made.path = self.place(unit)
            self._experiments[unit.name] = made
        return self._experiments[unit.name]

    @property
    def loops(self) -> list[tuple[Unit, LoopRun]]:
        """The runs of the loop."""
        found = [(unit, self.experiment(unit)) for unit in self.units]
        return [(unit, made) for unit, made in found if isinstance(made, LoopRun)]

    def _read(self, config: RunConfig | PruningConfig) -> Data:
        options = {
            name: getattr(config, name, None)
            for kind in (DataOptions, TextOptions)
            for name in kind.__dataclass_fields__
        }
        models = (config.model, getattr(config, "selector", config.model))
        for name in ("model", "weights", "shortcut", "dropout"):
            options.pop(name)
        key = repr((options, config.seeds[0], [one.startswith("torchvision:") for one in models]))
        if key not in self._data:
            self._data[key] = load_data(config, seed=config.seeds[0], models=models)
        return self._data[key]

    @cached_property
    def _places(self) -> dict[str, _Place]:
        return {
            f"trials/{unit.name}/{task.name}": _Place(unit, task.name)
            for unit in self.units
            for task in self.experiment(unit).tasks()
        }

    def check(self) -> None:
        """Make the networks and plans of all runs, before any work is done."""
        for unit in self.units:
            self.experiment(unit).prepare()

    def prepare(self) -> None:
        """In another process: of the first run, as others are checked and their first calls take no longer."""
        self.experiment(self.units[0]).prepare()

    def tasks(self) -> list[execute.Task]:
        """The tasks of all runs. Seeds of a run stand together, so that what is shared is there before others need it."""
        found = []
        for unit in self.units:
            for task in self.experiment(unit).tasks():
                prefix = f"trials/{unit.name}/"
                _, _, seed = task.name.rpartition("seed")
                title = (
                    f"{unit.label}, seed {seed}"
                    if isinstance(self.experiment(unit), LoopRun)
                    else f"{unit.label}, {task.title}"
                )
                found.append(
                    execute.Task(prefix + task.name, title, tuple(prefix + name for name in task.inputs))
                )
        return found

    def is_done(self, task: execute.Task) -> bool:
        """Whether a task has nothing left to do."""
        place = self._places[task.name]
        return bool(self.experiment(place.unit).is_done(execute.Task(place.task, "")))

    def do(self, task: str, listener: Listener) -> None:
        """Do a task, or the rest of it."""
        place = self._places[task]
        self.experiment(place.unit).do(place.task, listener)

    def unit_of(self, task: str) -> Unit:
        """The unit that a task is of."""
        return self._places[task].unit

    def left(self) -> list[execute.Task]:
        """Tasks that are not done."""
        return [task for task in self.tasks() if not self.is_done(task)]

    def lines_of(self, task: str) -> list[tuple[str, Line]]:
        """The ledger lines with FLOPs that a task will write, with a key that is equal where they are of a shared step."""
        place = self._places[task]
        made = self.experiment(place.unit)
        if isinstance(made, LoopRun):
            arm, seed = made.trial_of(place.task)
            keys = made.step_keys(arm, seed)
            return [
                (keys.get(_step_of(line), f"{task}/{number}") + line.phase, line)
                for number, line in enumerate(made.planned[arm])
            ]
        if isinstance(made, PruningRun):
            return [*made.lines_of(place.task)]
        return [(f"{task}/{line.phase}", line) for line in made.steps[place.task][1].work]

    def done_lines(self) -> list[tuple[str, Cost]]:
        """Names of units, with what their trials have taken so far."""
        from prunefuse.experiment.trial import read_rounds

        return [
            (unit.name, line)
            for unit, made in self.loops
            for task in made.tasks()
            for one in read_rounds(made.path / task.name)
            for line in one.costs
        ]

    def describe(self, command: str | None, started: str) -> dict[str, Any]:
        """What config.json holds."""
        facts = {"config": self.study.plain(), "data": {}}
        return folder.described(self, command, facts, kind=KIND, started=started)

    def begin(self, command: str | None) -> None:
        """Make the folders of runs that are new, and check that the data of the others are what they were."""
        for unit in self.units:
            made, place = self.experiment(unit), self.place(unit)
            execute.tidy(place)
            if not (place / folder.CONFIG).exists():
                place.mkdir(parents=True, exist_ok=True)
                folder.begin(place, made.describe(command))
                continue
            facts = folder.read_facts(place)
            lifecycle.check_data(facts["data"], made.data_facts())
            lifecycle.check_weights(facts.get("weights"), made.weights_facts())
            before = facts["config"]["seeds"]
            if new := [seed for seed in made.config.seeds if seed not in before]:
                made.config = replace(made.config, seeds=(*before, *new))
                folder.begin(place, made.describe(command))
                made.config = replace(unit.config, device=self.device.type)

    def finish(self, unit: Unit) -> None:
        """Write the tables of a run all of whose tasks are done."""
        made, place = self.experiment(unit), self.place(unit)
        if isinstance(made, LoopRun):
            found = folder.read(place)
            folder.write_tables(place, found.trials, FORMULA)
        folder.finish(place)
        if isinstance(made, ExtrapolateRun):
            extrapolation.report(place)


def _step_of(line: Line) -> str:
    """The step that writes a planned line of a loop."""
    if line.phase in ("score_pool", "select"):
        return f"{line.round}/label"  # of the round that is picked for
    if line.phase == "teacher" or line.network == "final":
        return f"{line.round}/train_final"
    return f"{line.round}/train_selector"


def _go_on(experiment: StudyRun, jobs: int, quiet: bool) -> Path:
    """Do what is not done yet. The folder is locked."""
    path, study = experiment.path, experiment.study
    progress = RunProgress(quiet=quiet)
    drawn = time.monotonic()

    def told(task: execute.Task, event: Event | None) -> None:
        nonlocal drawn
        unit = experiment.unit_of(task.name)
        if event is not None:
            progress.begin_once(task.name, unit.name, task.title)
            progress(task.name, event)
            return
        progress.end(task.name)
        own = [one for one in experiment.tasks() if experiment.unit_of(one.name) == unit]
        if all(map(experiment.is_done, own)):
            experiment.finish(unit)
        if time.monotonic() - drawn > _REDRAW:
            _draw_early(path, progress)
            drawn = time.monotonic()

    left = experiment.left()
    planned = _planned(experiment, left)
    rounds = max((len(made.schedule) for _, made in experiment.loops), default=1)
    try:
        with execute.interruptible(), progress.running(planned, 1, rounds, jobs=jobs, status=path / STATUS):
            notes = {note for _, made in experiment.loops for note in made.data.notes}
            for note in sorted(notes):
                progress.note(f"data: {note}")
            whole = len(experiment.tasks())
            progress.note(
                f"study {study.name}: {len(experiment.units)} runs, {len(left)} of {whole} trials to do"
            )
            progress.note(f"study folder {path}")
            for task in left:
                execute.tidy(path / task.name)
            execute.execute(experiment, jobs, told)
        for unit in experiment.units:
            if folder.read_facts(experiment.place(unit))["finished"] is None:  # killed before that
                experiment.finish(unit)
        folder.finish(path)
        report(path)
    except KeyboardInterrupt:
        _draw_early(path, progress)
        raise StudyInterrupted(path) from None
    except (OSError, RunError) as error:
        _draw_early(path, progress)
        raise RunError(f"{error}. What is done is in {path}") from error
    finally:
        (path / STATUS).unlink(missing_ok=True)
    return path


def _planned(experiment: StudyRun, left: Sequence[execute.Task]) -> Mapping[str, Sequence[Line]]:
    """Ledger lines of what is left, by unit; those of shared steps once."""
    planned: dict[str, list[Line]] = {}
    seen: set[str] = set()
    for task in left:
        for key, line in experiment.lines_of(task.name):
            if key not in seen:
                seen.add(key)
                planned.setdefault(experiment.unit_of(task.name).name, []).append(line)
    return planned


def _draw_early(path: Path, progress: RunProgress) -> None:
    """Draw the report of what there is. Nothing that goes wrong here is worth losing a study for."""
    try:
        report(path)
    except (RunFolderError, DamagedFileError, ConfigError):
        return
    except Exception as error:
        progress.note(f"the report could not be drawn: {type(error).__name__}: {error}")
