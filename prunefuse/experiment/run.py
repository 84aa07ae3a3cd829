"""One call from a configuration to a run folder: every arm with every seed, written after every round."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunefuse import _files as files
from prunefuse import data as datasets
from prunefuse.errors import RunInterrupted as RunInterrupted
from prunefuse.experiment import folder, machine, networks
from prunefuse.experiment.budgets import ConfigError, resolve_schedule
from prunefuse.experiment.config import SELECTORS, RunConfig
from prunefuse.experiment.cost import FORMULA
from prunefuse.experiment.folder import RunError, Trial
from prunefuse.experiment.loop import ActiveLearning
from prunefuse.experiment.progress import RunProgress
from prunefuse.experiment.report import report
from prunefuse.training import TrainingDivergedError

_REDRAW = 60.0  # seconds between drawings of the report while a run goes on


def run(config: RunConfig | None = None, *, command: str | None = None, quiet: bool = False) -> Path:
    """Run an experiment.

    Everything is checked before any work is done. A report is drawn at the end, and now and then before it.

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
        RunInterrupted: Ctrl-C.
    """
    config = config or RunConfig()
    progress = RunProgress(quiet=quiet)
    experiment = _Experiment(config)
    with machine.running_on(experiment.threads):
        first = {arm: experiment.learner(arm, config.seeds[0], progress) for arm in config.arms}
        path = folder.make(config.out, config.data, config.model)
        facts = experiment.describe(path, command)
        folder.write_config(path, facts)
        planned = {arm: learner.planned for arm, learner in first.items()}
        trials: dict[tuple[str, int], Trial] = {}
        try:
            with progress.running(planned, len(config.seeds), len(experiment.schedule)):
                progress.note(f"run folder {path}")
                progress.note(f"labels {', '.join(map(str, experiment.schedule))} of {experiment.pool_size}")
                drawn = time.monotonic()
                for seed in config.seeds:
                    for arm in config.arms:
                        learner = first.pop(arm, None) or experiment.learner(arm, seed, progress)
                        progress.begin(arm, seed)
                        for done in learner:
                            before = trials.get((arm, seed), Trial(arm, seed, ()))
                            trials[arm, seed] = Trial(arm, seed, (*before.rounds, done))
                            _write(path, tuple(trials.values()), trials[arm, seed], learner)
                            if time.monotonic() - drawn > _REDRAW:
                                _draw_early(path, progress)
                                drawn = time.monotonic()
            folder.write_config(path, facts | {"finished": machine.now()})
            report([path])
        except KeyboardInterrupt:
            if trials:
                _draw_early(path, progress)
            raise RunInterrupted(path, sum(len(trial.rounds) for trial in trials.values())) from None
        except (TrainingDivergedError, OSError, torch.OutOfMemoryError) as error:
            if trials:
                _draw_early(path, progress)
            kept = f"The complete rounds are in {path}" if trials else f"No round was complete; see {path}"
            raise RunError(f"{error}. {kept}") from error
    return path


class _Experiment:
    """The data and the factories of a configuration; making one checks them."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.device = machine.resolve_device(config.device)
        try:
            self.data = datasets.load(config.data, root=config.root, download=config.download)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self.pool_size = len(self.data.pool)
        self.schedule = resolve_schedule(
            config.schedule,
            self.pool_size,
            budget=config.budget,
            initial=config.initial,
            rounds=config.rounds,
        )
        self.threads = config.threads or machine.usual_threads(self.data.input_shape)
        self.dense = self._factory(config.model)
        self.proxy = None if config.selector in SELECTORS else self._factory(config.selector)

    def learner(self, arm: str, seed: int, listener: RunProgress) -> ActiveLearning:
        """One arm with one seed, ready to be iterated."""
        config = self.config.loop_of(arm, seed, self.schedule)
        try:
            return ActiveLearning(
                self.dense,
                self.data.pool,
                self.data.test,
                config,
                train=self.data.train,
                selector_factory=self.proxy if config.selector == "model" else None,
                device=self.device,
                listener=listener,
            )
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def describe(self, path: Path, command: str | None) -> dict[str, Any]:
        """What config.json holds."""
        return {
            "format": folder.FORMAT,
            "name": path.name,
            "command": command,
            "started": machine.now(),
            "finished": None,
            "config": dataclasses.asdict(self.config),
            "schedule": list(self.schedule),
            "data": {
                "name": self.data.name,
                "pool": self.pool_size,
                "test": len(self.data.test),
                "classes": self.data.num_classes,
                "input_shape": list(self.data.input_shape),
            },
            "arms": {arm: self._settings(arm) for arm in self.config.arms},
            "versions": machine.describe_versions(),
            "machine": machine.describe_machine(self.device),
        }

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
        }
        return network | loop | {f"recipe {name}": value for name, value in recipe.items()}

    def _factory(self, name: str) -> Callable[[], nn.Module]:
        return networks.factory(name, self.data, **networks.options(name, self.config))


def _write(path: Path, trials: tuple[Trial, ...], trial: Trial, learner: ActiveLearning) -> None:
    """Write all that a finished round changes."""
    place = folder.trial_folder(path, trial.arm, trial.seed)
    folder.write_picks(path, trial)
    if learner.plan is not None:
        learner.plan.save(place / "plan.json")
    if learner.selector is not None:
        files.save_tensors(place / "selector.safetensors", learner.selector.state_dict())
    if learner.final is not None:
        files.save_tensors(place / "final.safetensors", learner.final.state_dict())
    # Last, so that a round that the tables have is there in full.
    folder.write_tables(path, trials, FORMULA)


def _draw_early(path: Path, progress: RunProgress) -> None:
    """Draw the report of the rounds so far. Nothing that goes wrong here is worth losing a run for."""
    try:
        report([path])
    except Exception as error:
        progress.note(f"the report could not be drawn: {type(error).__name__}: {error}")
