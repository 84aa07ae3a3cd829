"""How a run begins, and how it goes on: what is checked and locked around its tasks, the same for both commands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from prunefuse import _commit, _lock
from prunefuse.data._fingerprint import differences
from prunefuse.errors import ConfigError, RunFolderError
from prunefuse.experiment import execute, folder, machine
from prunefuse.experiment.report import report


class Run(execute.Experiment, Protocol):
    """An experiment that knows its configuration."""

    path: Path

    @property
    def config(self) -> Any:
        """`RunConfig` or `ExtrapolateConfig`."""

    def describe(self, command: str | None) -> dict[str, Any]:
        """What config.json holds."""

    def data_facts(self) -> dict[str, Any]:
        """What the data are, to compare with when the run goes on."""

    def weights_facts(self) -> dict[str, Any] | None:
        """Which weights the network starts from, to compare with likewise; None without."""


R = TypeVar("R", bound=Run)


def begin(run: R, command: str | None, go_on: Callable[[R, int | None], Path]) -> Path:
    """Check a run, make its folder, lock it, and do the tasks."""
    with machine.running_on(run.threads):
        run.prepare()
        run.path = folder.make(run.config.out, run.config.data, run.config.model)
        with _lock.locked(run.path):
            folder.begin(run.path, run.describe(command))
            return go_on(run, run.config.jobs)


def resume(
    path: Path,
    kind: str,
    jobs: int | None,
    *,
    opened: Callable[[Mapping[str, Any]], R],
    check: Callable[[Mapping[str, Any]], None],
    go_on: Callable[[R, int | None], Path],
) -> Path:
    """Go on with a run that was stopped; a finished one is left as it is.

    Args:
        path: The run folder.
        kind: ``run`` or ``extrapolate``.
        jobs: Processes side by side; None = those of the configuration.
        opened: Makes the run from config.json.
        check: Raises for a file of a finished run that is not what was written; given config.json.
        go_on: Does the tasks.
    """
    facts = folder.read_facts(path)
    if facts.get("kind", "run") != kind:
        raise RunFolderError(f"{path} is not a folder of prunefuse {kind}")
    folder.check_format(path, facts)
    if facts["finished"] is not None:
        folder.check(path)
        check(facts)
        if folder.lacks_report(path):
            report([path])
        return path
    with _lock.locked(path):
        _commit.settle(path)
        folder.check(path)
        run = opened(facts["config"])
        run.path = path
        check_data(facts["data"], run.data_facts())
        check_weights(facts.get("weights"), run.weights_facts())
        with machine.running_on(run.threads):
            run.prepare()
            return go_on(run, run.config.jobs if jobs is None else jobs)


def check_data(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` where a data set is not what it was when the run began; says what differs."""
    for name, value in before.items():
        if isinstance(value, dict):
            for difference in differences(value, now[name]):
                what = name.removesuffix("_is")
                raise ConfigError(f"data: {what}: {difference}; the run cannot go on with it")
        elif now[name] != value:
            raise ConfigError(f"data: its {name} was {value} when the run began, and now is {now[name]}")


def check_weights(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> None:
    """Raise ``ConfigError`` where the file of the starting weights is not what it was when the run began."""
    if before is not None and now is not None and before["sha256"] != now["sha256"]:
        raise ConfigError(
            f"weights: {now['file']} is not what it was when the run began, by its SHA-256; the run cannot go on with it"
        )
