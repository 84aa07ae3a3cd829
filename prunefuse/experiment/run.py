"""One call from a configuration to a run folder: every arm with every seed, kept after every round; and one to go on."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import nn

from prunefuse._extras import needed_for
from prunefuse._options import changed
from prunefuse.data import Data
from prunefuse.data._fingerprint import fingerprint
from prunefuse.errors import (
    ConfigError,
    DamagedFileError,
    RunError,
)
from prunefuse.errors import RunInterrupted as RunInterrupted
from prunefuse.experiment import execute, folder, machine, networks, trial
from prunefuse.experiment.budgets import resolve_schedule
from prunefuse.experiment.config import SELECTORS, RunConfig, is_own
from prunefuse.experiment.cost import FORMULA
from prunefuse.experiment.datasets import load_data
from prunefuse.experiment.folder import Trial
from prunefuse.experiment.labeled import read_excluded, read_labeled, summary
from prunefuse.experiment.loop import ActiveLearning
from prunefuse.experiment.records import Event, Listener, Round
from prunefuse.experiment.shared import step_keys
from prunefuse.experiment.steps import clear
from prunefuse.version import __version__

with needed_for("a run"):
    from prunefuse.experiment import lifecycle
    from prunefuse.experiment.listening import Listening
    from prunefuse.experiment.progress import STATUS, RunProgress
    from prunefuse.experiment.report import report

_REDRAW = 60.0  # seconds between drawings of the report while a run goes on
_TABLES_EVERY = 5.0  # seconds between writings of the tables


def run(config: RunConfig | None = None, *, command: str | None = None, quiet: bool = False) -> Path:
    """Run an experiment.

    Everything is checked before any work is done. A report is drawn at the end, and now and then before it. If the run is
    stopped, by whatever, `resume` goes on with it.

    Args:
        config: What to run; None = the preset ``digits``.
        command: The command line, for the report.
        quiet: No progress on standard error.

    Returns:
        The run folder, new, with the files that `prunefuse.experiment.folder` lists.

    Raises:
        ConfigError: something in ``config`` is not possible; nothing has been written.
        FileNotFoundError: the data set is not there; nothing has been written.
        RunError: the run failed on the way (training diverged, the disk is full, memory ran out).
        RunInterrupted: Ctrl-C, SIGTERM or SIGHUP.
    """
    config = config or RunConfig()
    listening = Listening(config)  # before the data are read
    go_on = partial(_go_on, quiet=quiet, listening=listening)
    return lifecycle.begin(LoopRun(config, verify=True), command, go_on)


def resume(
    path: str | Path, *, jobs: int | None = None, device: str | None = None, quiet: bool = False
) -> Path:
    """Go on with a run that was stopped: to the same picks and, on the CPU, the same weights bit for bit.

    A finished run is left as it is.

    Args:
        path: The run folder.
        jobs: Processes side by side; None = those of the configuration.
        device: Where to compute; None = that of the configuration.
        quiet: No progress on standard error.

    Raises:
        RunFolderError: ``path`` is not the folder of such a run, or its configuration was changed.
        DamagedFileError: a file that is needed is not what was written.
        ConfigError: its data set or its weights are no longer what they were, or its device is not here.
        FolderInUseError: another process is at it.
        FileNotFoundError, RunError, RunInterrupted: as `run`.
    """
    path = Path(path)

    def check(facts: Mapping[str, Any]) -> None:
        for seed in facts["config"]["seeds"]:
            for arm in facts["arms"]:
                folder.check(folder.trial_folder(path, arm, seed))

    return lifecycle.resume(
        path,
        "run",
        jobs,
        opened=lambda config: LoopRun(changed(RunConfig(), config), device=device),
        check=check,
        go_on=partial(_go_on, quiet=quiet),
    )


def _go_on(experiment: LoopRun, jobs: int | None, *, quiet: bool, listening: Listening | None = None) -> Path:
    """Do what is not done yet. The folder is locked."""
    path, config = experiment.path, experiment.config
    listening = listening or Listening(config)
    jobs = jobs or execute.usual_jobs(experiment.device, experiment.threads)
    first = "accuracy" if config.task == "single-label" else "score"
    progress = RunProgress(quiet=quiet, metric=first)
    tables = _Tables(experiment)
    drawn = time.monotonic()

    def told(task: execute.Task, event: Event | None) -> None:
        nonlocal drawn
        if event is None:
            progress.end(task.name)
            return
        progress.begin_once(task.name, experiment.arm_of(task.name), task.title)
        progress(task.name, event)
        if isinstance(event, Round):
            tables.add(task.name)
            if time.monotonic() - drawn > _REDRAW:
                _draw_early(path, progress)
                drawn = time.monotonic()
        listening(task.name, event)

    try:
        with (
            execute.interruptible(),
            progress.running(
                experiment.planned,
                len(config.seeds),
                len(experiment.schedule),
                jobs=jobs,
                status=path / STATUS,
            ),
        ):
            for note in (*(f"data: {note}" for note in experiment.data.notes), *experiment.dense.notes):
                progress.note(note)
            progress.note(f"run folder {path}")
            progress.note(f"labels {', '.join(map(str, experiment.schedule))} of {experiment.pool_size}")
            before: dict[str, tuple[Round, ...]] = {}
            for task in experiment.tasks():
                execute.tidy(path / task.name)
                done = before[task.name] = tables.add(task.name, write=False)
                if experiment.is_done(task):
                    clear(
                        path / task.name / trial.STEPS
                    )  # where a kill came after the last round was committed
                progress.done_before(
                    experiment.arm_of(task.name), [line for one in done for line in one.costs]
                )
            with listening.to(path, before, progress.warn):
                execute.execute(experiment, jobs, told)
            tables.write()
        folder.finish(path)
        report([path])
    except KeyboardInterrupt:
        tables.write_quietly()
        if tables.rounds:
            _draw_early(path, progress)
        raise RunInterrupted(path, tables.rounds) from None
    except (OSError, RunError) as error:
        tables.write_quietly()
        if tables.rounds:
            _draw_early(path, progress)
        kept = f"The complete rounds are in {path}" if tables.rounds else f"No round was complete; see {path}"
        raise RunError(f"{error}. {kept}") from error
    finally:
        (path / STATUS).unlink(missing_ok=True)
    return path


class _Tables:
    """The rounds of all trials, as far as they are done, and the tables made of them."""

    def __init__(self, experiment: LoopRun) -> None:
        self._experiment = experiment
        self._trials: dict[str, Trial] = {}
        self._written = 0.0

    @property
    def rounds(self) -> int:
        """Rounds that are done."""
        return sum(len(one.rounds) for one in self._trials.values())

    def add(self, task: str, *, write: bool = True) -> tuple[Round, ...]:
        """Read again what a trial has on the disk."""
        arm, seed = self._experiment.trial_of(task)
        rounds = trial.read_rounds(self._experiment.path / task)
        if rounds:
            self._trials[task] = Trial(arm, seed, rounds)
        if write and time.monotonic() - self._written > _TABLES_EVERY:
            self.write()
        return rounds

    def write(self) -> None:
        """Write the tables."""
        order = [task.name for task in self._experiment.tasks()]
        found = [self._trials[name] for name in order if name in self._trials]
        if found:
            folder.write_tables(self._experiment.path, found, FORMULA)
        self._written = time.monotonic()

    def write_quietly(self) -> None:
        """Write them if that can be done: the trials have it all."""
        try:
            self.write()
        except (OSError, DamagedFileError):
            return


class LoopRun:
    """The data, the factories and the trials of a configuration; making one checks them.

    ``shared`` is a folder of steps that other runs have, too; None where there are none.
    """

    path: Path
    shared: Path | None = None

    def __init__(
        self,
        config: RunConfig,
        *,
        device: str | None = None,
        verify: bool = False,
        data: Data | None = None,
    ) -> None:
        self.config = config
        self.device = machine.resolve_device(device or config.device)
        models = (config.model, config.selector)
        self.data = data or load_data(config, seed=config.seeds[0], models=models, verify=verify)
        self.pool_size = len(self.data.pool)
        self.labeled: dict[int, Any] | None = None
        if config.labeled is not None:
            self.labeled = read_labeled(config.labeled, self.data, config.task)
        self.excluded: list[int] | None = None
        if config.exclude is not None:
            self.excluded = read_excluded(config.exclude, self.data)
        self.schedule = resolve_schedule(
            config.schedule,
            self.pool_size,
            budget=config.budget,
            initial=config.initial,
            rounds=config.rounds,
            labeled=None if self.labeled is None else len(self.labeled),
        )
        self.threads = config.threads or machine.usual_threads(self.data.input_shape)
        self.dense = networks.dense(config.model, self.data, config)
        self.proxy = None if config.selector in SELECTORS else self._factory(config.selector)

    def tasks(self) -> list[execute.Task]:
        """A task for every trial: an arm with a seed."""
        return [
            execute.Task(f"{arm}/seed{seed}", f"{arm}, seed {seed}")
            for seed in self.config.seeds
            for arm in self.config.arms
        ]

    def trial_of(self, task: str) -> tuple[str, int]:
        """Arm and seed of a task."""
        arm, _, seed = task.rpartition("/seed")
        return arm, int(seed)

    def arm_of(self, task: str) -> str:
        """Arm of a task."""
        return self.trial_of(task)[0]

    def is_done(self, task: execute.Task) -> bool:
        """Whether all rounds of a trial are on the disk."""
        state = trial.read_state(self.path / task.name)
        return len(state.rounds) == len(self.schedule) or state.stopped is not None

    def do(self, task: str, listener: Listener) -> None:
        """Do what is left of a trial."""
        with execute.told_apart():
            for _ in self.learner(*self.trial_of(task), listener, self.path / task):
                pass

    def prepare(self) -> None:
        """Make a loop of every arm, which checks the networks and plans the pruning."""
        _ = self.planned

    @cached_property
    def planned(self) -> dict[str, tuple[Any, ...]]:
        """The ledger lines of the first seed of every arm."""
        return {arm: self.learner(arm, self.config.seeds[0]).planned for arm in self.config.arms}

    def learner(
        self, arm: str, seed: int, listener: Listener | None = None, place: Path | None = None
    ) -> ActiveLearning:
        """One arm with one seed, ready to be iterated."""
        config = self.config.loop_of(arm, seed, self.schedule)
        try:
            learner = ActiveLearning(
                self.dense,
                self.data.pool,
                self.data.test,
                config,
                train=self.data.train,
                labeled=self.labeled,
                exclude=self.excluded,
                ids=self.data.ids,
                classes=self.data.classes or None,
                selector_factory=self.proxy if config.selector == "model" else None,
                device=self.device,
                listener=listener,
                folder=place,
                checkpoint_seconds=self.config.checkpoint_seconds,
            )
        except DamagedFileError:
            raise
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if self.shared is not None:
            folder, keys = self.shared, self.step_keys(arm, seed)
            learner.shared = lambda step: folder / keys[step] if step in keys else None
        return learner

    def step_keys(self, arm: str, seed: int) -> dict[str, str]:
        """Keys of the steps of a trial that other trials may have, too."""
        loop = self.config.loop_of(arm, seed, self.schedule)
        # A network of the user's is code, which nothing here can compare.
        own = any(is_own(name) for name in (self.config.model, self.config.selector))
        return {} if own else step_keys(loop, self._given)

    @cached_property
    def _given(self) -> dict[str, Any]:
        """What results of steps depend on beside the loop's configuration."""
        config = self.config
        return {
            "model": config.model,
            "shortcut": config.shortcut,
            "dropout": config.dropout,
            "weights": self.dense.sha256,
            "proxy": None if self.proxy is None else config.selector,
            "data": self.data_facts(),
            "augmentation": [config.flip, config.crop],
            "device": self.device.type,
            "version": __version__,  # another one may compute otherwise
        }

    def describe(self, command: str | None) -> dict[str, Any]:
        """What config.json holds."""
        facts = {
            "config": dataclasses.asdict(self.config),
            "schedule": list(self.schedule),
            "data": self.data_facts(),
            "classes": list(self.data.classes),
            "weights": self.weights_facts(),
            "arms": {arm: self._settings(arm) for arm in self.config.arms},
        }
        return folder.described(self, command, facts)

    def data_facts(self) -> dict[str, Any]:
        """What the data are, for the report and to compare with when the run goes on."""
        listed = {"labeled": self.labeled, "exclude": self.excluded}
        told = {name: summary(samples) for name, samples in listed.items() if samples is not None}
        return told | {
            "name": self.data.name,
            "pool": self.pool_size,
            "test": len(self.data.test),
            "classes": self.data.num_classes,
            "input_shape": list(self.data.input_shape),
            "pool_is": fingerprint(self.data.pool),
            "test_is": fingerprint(self.data.test),
        }

    def weights_facts(self) -> dict[str, Any] | None:
        """Which weights the dense network starts from, to compare with when the run goes on."""
        return self.dense.facts

    def _settings(self, arm: str) -> dict[str, Any]:
        """What trials must share to be seeds of one arm, by name."""
        loop = dataclasses.asdict(self.config.loop_of(arm, 0, self.schedule))
        for name in ("seed", "workers", "selector_recipe"):
            del loop[name]
        recipe = loop.pop("recipe")
        network = {
            "model": self.config.model,
            "shortcut": self.config.shortcut,
            "dropout": self.config.dropout,
            **self.dense.setting,
        }
        return network | loop | {f"recipe {name}": value for name, value in recipe.items()}

    def _factory(self, name: str) -> Callable[[], nn.Module]:
        return networks.factory(name, self.data, **networks.options(name, self.config))


def _draw_early(path: Path, progress: RunProgress) -> None:
    """Draw the report of the rounds so far. Nothing that goes wrong here is worth losing a run for."""
    try:
        report([path])
    except Exception as error:
        progress.note(f"the report could not be drawn: {type(error).__name__}: {error}")
