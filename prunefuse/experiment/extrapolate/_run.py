"""One call from a configuration to a pruned data set, the network trained on it, and what that cost; and one to go on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from prunefuse import data as datasets
from prunefuse.data._labels import OwnLabels
from prunefuse.errors import ExtrapolateInterrupted as ExtrapolateInterrupted
from prunefuse.experiment import folder, machine, networks
from prunefuse.experiment.budgets import ConfigError, to_samples
from prunefuse.experiment.extrapolate import ledger
from prunefuse.experiment.extrapolate.config import ExtrapolateConfig
from prunefuse.experiment.extrapolate.methods import NEEDS
from prunefuse.experiment.extrapolate.progress import StepProgress
from prunefuse.experiment.extrapolate.record import FORMAT, KIND, read
from prunefuse.experiment.extrapolate.setup import Setup
from prunefuse.experiment.extrapolate.steps import Steps
from prunefuse.experiment.folder import RunError
from prunefuse.experiment.format import duration
from prunefuse.experiment.report.extrapolation import report, step_line
from prunefuse.training import TrainingDivergedError

_LEAST = 10  # samples of a subset: some are held out to choose options, some to judge


def run(config: ExtrapolateConfig | None = None, *, command: str | None = None, quiet: bool = False) -> Path:
    """Score a fraction of a data set, extrapolate to all of it, keep the best, and train on those.

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
        ExtrapolateInterrupted: Ctrl-C.
    """
    config = config or ExtrapolateConfig()
    setup, threads = _set_up(config)
    with machine.running_on(threads):
        path = folder.make(config.out, config.data, config.model)
        facts = _describe(path, setup, command)
        folder.write_config(path, facts)
        return _go_on(path, setup, facts, quiet)


def resume(path: str | Path, *, quiet: bool = False) -> Path:
    """Go on with a run that was stopped. What is done is not done again; a finished run gets its report drawn again.

    Raises:
        RunFolderError: ``path`` is not the folder of such a run.
        ConfigError: its data set is no longer what it was, or its device is not here.
        FileNotFoundError, RunError, ExtrapolateInterrupted: as `run`.
    """
    path = Path(path)
    facts = read(path).config
    setup, threads = _set_up(ExtrapolateConfig.from_json(facts["config"]))
    now = _describe_data(setup)
    for name, before in facts["data"].items():
        if now[name] != before:
            raise ConfigError(f"data: its {name} was {before} when the run began, and now is {now[name]}")
    with machine.running_on(threads):
        return _go_on(path, setup, facts, quiet)


def _set_up(config: ExtrapolateConfig) -> tuple[Setup, int]:
    """The data, the factory, the sizes; ConfigError where something does not fit."""
    device = machine.resolve_device(config.device)
    try:
        data = datasets.load(config.data, root=config.root, download=config.download)
    except ValueError as error:
        raise ConfigError(str(error)) from error
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
    factory = networks.factory(config.network, data, **networks.options(config.network, config))
    labels = torch.tensor(OwnLabels(data.pool)(range(count)), dtype=torch.int64)
    threads = config.threads or machine.usual_threads(data.input_shape)
    return Setup(config, data, factory, device, labels, subset, keeps), threads


def _require_geometric() -> None:
    from importlib.util import find_spec

    if find_spec("torch_geometric") is None:
        raise ConfigError(
            'by gnn needs torch-geometric, which is not installed: pip install "prunefuse[gnn]"'
        )


def _go_on(path: Path, setup: Setup, facts: Mapping[str, Any], quiet: bool) -> Path:
    """Do what is not done yet."""
    config = setup.config
    found = ledger.arms(config.by, config.compare, NEEDS)
    try:
        with StepProgress(quiet=quiet) as progress:
            progress.note(f"run folder {path}")
            for seed in config.seeds:
                steps = Steps(setup, seed, path / f"seed{seed}", progress)
                # Full scores first, which the others are compared with.
                wanted = sorted({step for arm in found for step in arm.steps}, key=_order)
                for name in wanted:
                    _one(steps, name, progress)
                for arm in found:
                    for keep in setup.keeps:
                        _one(steps, arm.final(keep), progress, arm, keep)
        if facts["finished"] is None:
            folder.write_config(path, {**facts, "finished": machine.now()})
        report(path)
    except KeyboardInterrupt:
        raise ExtrapolateInterrupted(path) from None
    except (TrainingDivergedError, OSError, torch.OutOfMemoryError) as error:
        raise RunError(f"{error}. What is done is in {path}") from error
    return path


def _one(steps: Steps, name: str, progress: StepProgress, *final: Any) -> None:
    progress.begin(f"seed {steps.seed}, {name}")
    before = (steps.place / name / "done.json").is_file()
    done = steps.run(name, *final)
    seconds = sum(line["seconds"] for line in done["spent"])
    took = "done before" if before else duration(seconds)
    progress.note(f"seed {steps.seed}  {name:<22} {step_line(done)}  ({took})")


def _order(step: str) -> tuple[int, str]:
    first = ("full", "subset", "embeddings", "answers")
    return (first.index(step), "") if step in first else (len(first), step)


def _describe(path: Path, setup: Setup, command: str | None) -> dict[str, Any]:
    """What config.json holds."""
    config, recipe, count = setup.config, setup.config.training, len(setup.labels)
    flops = setup.flops(setup.dense(config.seeds[0]))
    return {
        "format": FORMAT,
        "kind": KIND,
        "name": path.name,
        "command": command,
        "started": machine.now(),
        "finished": None,
        "config": dataclasses.asdict(config),
        "recipe": dataclasses.asdict(recipe),
        "data": _describe_data(setup),
        "subset": setup.subset,
        "keeps": list(setup.keeps),
        "planned": {
            str(keep): ledger.planned(recipe, count, keep, flops, config.recorded) for keep in setup.keeps
        },
        "versions": machine.describe_versions(),
        "machine": machine.describe_machine(setup.device),
    }


def _describe_data(setup: Setup) -> dict[str, Any]:
    data = setup.data
    return {
        "name": data.name,
        "pool": len(setup.labels),
        "test": len(data.test),
        "classes": data.num_classes,
        "input_shape": list(data.input_shape),
    }
