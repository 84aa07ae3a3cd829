"""One call from a configuration to a pruned data set, the network trained on it, and what that cost; and one to go on."""

from __future__ import annotations

import dataclasses
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from prunefuse import _lock
from prunefuse._extras import needed_for
from prunefuse._options import changed
from prunefuse.data._fingerprint import fingerprint
from prunefuse.data._labels import OwnLabels
from prunefuse.errors import ConfigError, RunError
from prunefuse.errors import ExtrapolateInterrupted as ExtrapolateInterrupted
from prunefuse.experiment import execute, folder, machine, networks
from prunefuse.experiment.budgets import to_samples
from prunefuse.experiment.datasets import load_data
from prunefuse.experiment.extrapolate.config import ExtrapolateConfig
from prunefuse.experiment.extrapolate.ledger import Spending
from prunefuse.experiment.extrapolate.record import KIND, read
from prunefuse.experiment.extrapolate.setup import Setup
from prunefuse.experiment.extrapolate.steps import Steps, steps_of
from prunefuse.experiment.records import Event, Listener
from prunefuse.experiment.steps import Bench, Step, carry_out, check_files, read_done

with needed_for("a run"):
    from prunefuse.experiment import lifecycle
    from prunefuse.experiment.listening import Listening
    from prunefuse.experiment.progress import STATUS, RunProgress
    from prunefuse.experiment.report.extrapolation import report, step_line

_LEAST = 10  # samples of a subset: some are held out to choose options, some to judge


def run(config: ExtrapolateConfig | None = None, *, command: str | None = None, quiet: bool = False) -> Path:
    """Score a fraction of a data set, extrapolate to all of it, keep the best, train on those; returns the run folder.

    >>> from prunefuse.experiment.extrapolate import ExtrapolateConfig, read_kept, run
    >>> quick = prunefuse.Recipe(epochs=2, batch_size=64, lr=0.05, schedule="one-cycle")
    >>> config = ExtrapolateConfig(model="mlp", score="el2n", keep=("20%",), recipe=quick, out="mine", jobs=1)
    >>> len(read_kept(run(config, quiet=True) / "seed0/by-knn/keep-287/kept.csv"))
    287

    Everything is checked before any work is done. If the run is stopped, by whatever, `resume` goes on with it.

    Args:
        config: What to run; None = the default, on the digits.
        command: The command line, for the report.
        quiet: No progress on standard error.

    Returns:
        The run folder, new, with the files that `prunefuse.experiment.extrapolate.record` lists.

    Raises:
        ConfigError: something in ``config`` is not possible; nothing has been written.
        FileNotFoundError: the data set is not there; nothing has been written.
        RunError: the run failed on the way (training diverged, the disk is full, memory ran out).
        ExtrapolateInterrupted: Ctrl-C, SIGTERM or SIGHUP.
    """
    config = config or ExtrapolateConfig()
    listening = Listening(config)  # before the data are read
    go_on = partial(_go_on, quiet=quiet, listening=listening)
    return lifecycle.begin(ExtrapolateRun(config, verify=True), command, go_on)


def resume(
    path: str | Path, *, jobs: int | None = None, device: str | None = None, quiet: bool = False
) -> Path:
    """Go on with a run that was stopped, and return its folder. What is done is not done again.

    >>> from prunefuse.experiment.extrapolate import resume
    >>> try: resume("nowhere")
    ... except prunefuse.errors.RunFolderError as error: print(error)
    nowhere is not a run folder: it has no config.json

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
        FileNotFoundError, RunError, ExtrapolateInterrupted: as `run`.
    """
    path = Path(path)
    return lifecycle.resume(
        path,
        KIND,
        jobs,
        opened=lambda config: ExtrapolateRun(changed(ExtrapolateConfig(), config), device=device),
        check=lambda _: read(path).check(),
        go_on=partial(_go_on, quiet=quiet),
    )


class ExtrapolateRun:
    """The data and the steps of a configuration; making one checks them."""

    path: Path

    def __init__(self, config: ExtrapolateConfig, *, device: str | None = None, verify: bool = False) -> None:
        self.config = config
        self.device = machine.resolve_device(device or config.device)
        self.setup, self.threads = _set_up(config, self.device, verify)

    @cached_property
    def steps(self) -> dict[str, tuple[int, Step[Spending]]]:
        """Seed and step by name, each after its inputs."""
        return {step.name: (seed, step) for seed in self.config.seeds for step in steps_of(self.setup, seed)}

    def prepare(self) -> None:
        """Make the steps, and for that the networks."""
        _ = self.steps

    def tasks(self) -> list[execute.Task]:
        """A task for every step of every seed."""
        return [
            execute.Task(name, name.replace("/", ", ", 1), step.inputs)
            for name, (_, step) in self.steps.items()
        ]

    def is_done(self, task: execute.Task) -> bool:
        """Whether a step has been done."""
        return read_done(self.path / task.name) is not None

    def do(self, task: str, listener: Listener) -> None:
        """Do a step."""
        seed, step = self.steps[task]
        bench: Bench[Spending] = Bench(
            folder=self.path / task,
            listener=listener,
            device=self.device,
            checkpoint_seconds=self.config.checkpoint_seconds,
        )
        (self.path / task).mkdir(parents=True, exist_ok=True)
        with execute.told_apart(), _lock.locked(self.path / task):
            carry_out(step, Steps(self.setup, seed, self.path), bench, Spending)

    def describe(self, command: str | None) -> dict[str, Any]:
        """What config.json holds."""
        config, setup = self.config, self.setup
        facts = {
            "config": dataclasses.asdict(config),
            "recipe": dataclasses.asdict(config.training),
            "data": self.data_facts(),
            "weights": self.weights_facts(),
            "subset": setup.subset,
            "keeps": list(setup.keeps),
            "planned": {str(keep): self._compared(keep) for keep in setup.keeps},
        }
        return folder.described(self, command, facts, kind=KIND)

    def data_facts(self) -> dict[str, Any]:
        """What the data are, for the report and to compare with when the run goes on."""
        data = self.setup.data
        return {
            "name": data.name,
            "pool": len(self.setup.labels),
            "test": len(data.test),
            "classes": data.num_classes,
            "input_shape": list(data.input_shape),
            "pool_is": fingerprint(data.pool),
            "test_is": fingerprint(data.test),
        }

    def weights_facts(self) -> dict[str, Any] | None:
        """Which weights the network starts from, to compare with when the run goes on."""
        return self.setup.factory.facts

    def _compared(self, keep: int) -> dict[str, dict[str, float]]:
        """FLOPs by phase of the arms to compare with, whether they are run or not; by name of the arm."""
        steps = steps_of(self.setup, self.config.seeds[0], compare=("full", "random"))
        found: dict[str, dict[str, float]] = {}
        for arm, names in (("full", ("full", f"full/keep-{keep}")), ("random", (f"random/keep-{keep}",))):
            lines = [line for step in steps for line in step.work if line.step in names]
            found[arm] = {line.phase: line.flops for line in lines if line.phase != "evaluate"}
        return found


def _set_up(config: ExtrapolateConfig, device: torch.device, verify: bool) -> tuple[Setup, int]:
    """The data, the factory, the sizes; ConfigError where something does not fit."""
    data = load_data(config, seed=config.seeds[0], models=(config.network,), verify=verify)
    count = len(data.pool)
    subset = to_samples(config.subset, count, "subset")
    keeps = tuple(to_samples(size, count, "keep") for size in config.keep)
    if subset < min(_LEAST, count):
        raise ConfigError(
            f"subset must be at least {_LEAST} samples; got {config.subset}, {subset} of {count}"
        )
    if len(set(keeps)) < len(keeps):
        raise ConfigError(f"keep must be different sizes; got {', '.join(config.keep)} of {count} samples")
    need = config.recorder(1, data.num_classes).least
    for name, samples in (("subset", subset), ("all", count)):
        if config.training.epochs_for(samples) < need and (name == "subset" or "full" in config.compare):
            raise ConfigError(
                f"epochs must be at least {need} for the score {config.score}, got {config.training.epochs_for(samples)}"
            )
    if "gnn" in config.by:
        _require_geometric()
    factory = networks.dense(config.network, data, config)
    labels = torch.tensor(OwnLabels(data.pool)(range(count)), dtype=torch.int64)
    threads = config.threads or machine.usual_threads(data.input_shape)
    return Setup(config, data, factory, device, labels, subset, keeps), threads


def _require_geometric() -> None:
    from importlib.util import find_spec

    if find_spec("torch_geometric") is None:
        raise ConfigError(
            'by gnn needs torch-geometric, which is not installed: pip install "prunefuse[gnn]"'
        )


def _go_on(
    experiment: ExtrapolateRun, jobs: int | None, *, quiet: bool, listening: Listening | None = None
) -> Path:
    """Do what is not done yet. The folder is locked."""
    path = experiment.path
    listening = listening or Listening(experiment.config)
    jobs = jobs or execute.usual_jobs(experiment.device, experiment.threads)
    progress = RunProgress(quiet=quiet)
    planned = [line for _, step in experiment.steps.values() for line in step.work]

    def told(task: execute.Task, event: Event | None) -> None:
        progress.begin_once(task.name, "", task.title)
        if event is None:
            done = _found(path, task)
            spent = [Spending(**line) for line in done["spent"]]
            progress.end(task.name, spent, _line(task, done))
            listening.trained(task.name, spent[0].network, done)
        else:
            progress(task.name, event)
            listening(task.name, event)

    try:
        with (
            execute.interruptible(),
            progress.running({"": planned}, 1, jobs=jobs, status=path / STATUS),
        ):
            for note in (
                *(f"data: {note}" for note in experiment.setup.data.notes),
                *experiment.setup.factory.notes,
            ):
                progress.note(note)
            progress.note(f"run folder {path}")
            before: dict[str, dict[str, Any]] = {}
            for task in experiment.tasks():
                execute.tidy(path / task.name)
                if experiment.is_done(task):
                    done = before[task.name] = _found(path, task)
                    check_files(path / task.name, done["files"])
                    progress.done_before("", [Spending(**line) for line in done["spent"]])
                    progress.note(f"{_line(task, done)}  (done before)")
            with listening.to(path, {task.name: () for task in experiment.tasks()}, progress.warn):
                for name, done in before.items():
                    listening.trained(name, Spending(**done["spent"][0]).network, done)
                execute.execute(experiment, jobs, told)
        folder.finish(path)
        report(path)
    except KeyboardInterrupt:
        raise ExtrapolateInterrupted(path) from None
    except (OSError, RunError) as error:
        raise RunError(f"{error}. What is done is in {path}") from error
    finally:
        (path / STATUS).unlink(missing_ok=True)
    return path


def _found(path: Path, task: execute.Task) -> dict[str, Any]:
    found = read_done(path / task.name)
    assert found is not None
    return found


def _line(task: execute.Task, done: dict[str, Any]) -> str:
    return f"{task.title:<30} {step_line(done)}"
