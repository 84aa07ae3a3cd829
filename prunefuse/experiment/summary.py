"""What one or several run folders say, arm by arm: accuracy and cost, with the spread over seeds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev
from typing import Any

from prunefuse.experiment.cost import Spent, selection_cost
from prunefuse.experiment.folder import RunFolderError, RunRecord, Trial, trial_folder
from prunefuse.experiment.format import Metric, setting
from prunefuse.experiment.records import Cost, Epoch, Network, PhaseName, Round


@dataclass(frozen=True)
class Spread:
    """Values of one quantity over seeds, at least one."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Arithmetic mean."""
        return sum(self.values) / len(self.values)

    @property
    def deviation(self) -> float:
        """Standard deviation between seeds, by n - 1; 0 of one."""
        return stdev(self.values) if len(self.values) > 1 else 0.0

    @property
    def low(self) -> float:
        """Smallest."""
        return min(self.values)

    @property
    def high(self) -> float:
        """Largest."""
        return max(self.values)


@dataclass(frozen=True)
class Arm:
    """All trials of one arm with the same settings.

    ``label`` is the arm's name, with what tells it from other arms of that name where several runs are pooled.
    ``role`` is ``main``, ``dense`` or ``random``. ``folders`` has the folder of each trial.
    """

    label: str
    role: str
    settings: Mapping[str, Any]
    trials: tuple[Trial, ...]
    folders: tuple[Path, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds that have at least one complete round."""
        return tuple(trial.seed for trial in self.trials)

    @property
    def labels(self) -> tuple[int, ...]:
        """Labeled-set sizes reached by any trial, increasing."""
        return tuple(sorted({done.labels for done in self._rounds()}))

    def accuracy(self, labels: int, network: Network) -> Spread | None:
        """Last-epoch test accuracy, or the first metric of another task, at this size, over the seeds that have one."""
        found = [
            done.final_accuracy if network == "final" else done.selector_accuracy
            for done in self._rounds()
            if done.labels == labels
        ]
        return _spread(value for value in found if value is not None and value == value)  # not NaN

    def metrics(self, labels: int, network: Network = "final") -> dict[str, Spread]:
        """All metrics of one number on the test set at this size, by name, over the seeds that have them."""
        found: dict[str, list[float]] = {}
        for done in self._rounds():
            for name, value in done.metrics.get(network, {}).items() if done.labels == labels else ():
                if not isinstance(value, tuple) and value == value:
                    found.setdefault(name, []).append(value)
        return {name: Spread(tuple(values)) for name, values in found.items()}

    def of_classes(self, labels: int, network: Network = "final") -> dict[str, tuple[float, ...]]:
        """The metrics of each class at this size, by name, mean over the seeds that have them."""
        found: dict[str, list[tuple[float, ...]]] = {}
        for done in self._rounds():
            for name, value in done.metrics.get(network, {}).items() if done.labels == labels else ():
                if isinstance(value, tuple):
                    found.setdefault(name, []).append(value)
        return {
            name: tuple(sum(values) / len(values) for values in zip(*rows, strict=True))
            for name, rows in found.items()
        }

    def selection(self, labels: int) -> tuple[Spread, Spread] | None:
        """FLOPs and seconds spent to select this many labels, over the seeds that reached them."""
        spent = [
            selection_cost([cost for done in trial.rounds for cost in done.costs], labels)
            for trial in self.trials
            if any(done.labels == labels for done in trial.rounds)
        ]
        if not spent:
            return None
        return Spread(tuple(cost.flops for cost in spent)), Spread(tuple(cost.seconds for cost in spent))

    def whole(self, labels: int) -> tuple[Spread, Spread] | None:
        """FLOPs and seconds of selecting this many labels and then making one final network of them.

        Over the seeds that have one. Final networks of smaller sizes are no part of it, nor are tests.
        """
        spent = [
            whole_cost([cost for done in trial.rounds for cost in done.costs], labels)
            for trial in self.trials
            if any(done.labels == labels and done.final_accuracy is not None for done in trial.rounds)
        ]
        if not spent:
            return None
        return Spread(tuple(cost.flops for cost in spent)), Spread(tuple(cost.seconds for cost in spent))

    def phases(self) -> dict[PhaseName, tuple[float, float]]:
        """FLOPs and seconds per phase, all rounds of a trial together, mean over the trials that got farthest."""
        most = max(len(trial.rounds) for trial in self.trials)
        farthest = [trial for trial in self.trials if len(trial.rounds) == most]
        total: dict[PhaseName, tuple[float, float]] = {}
        for trial in farthest:
            for cost in (cost for done in trial.rounds for cost in done.costs):
                flops, seconds = total.get(cost.phase, (0.0, 0.0))
                total[cost.phase] = (flops + cost.flops, seconds + cost.seconds)
        count = len(farthest)
        return {phase: (flops / count, seconds / count) for phase, (flops, seconds) in total.items()}

    def curves(self, labels: int, network: Network) -> list[list[Epoch]]:
        """Epochs of this network at this size, one list per trial that recorded them."""
        curves = [
            [epoch for epoch in done.epochs if epoch.network == network]
            for done in self._rounds()
            if done.labels == labels
        ]
        return [curve for curve in curves if curve]

    def unselectable(self) -> int:
        """Most pool samples whose utility was NaN in one round of one trial."""
        return max((done.unselectable for done in self._rounds()), default=0)

    def _rounds(self) -> Iterable[Round]:
        return (done for trial in self.trials for done in trial.rounds)


@dataclass(frozen=True)
class Summary:
    """Arms of the runs, the main ones first. ``repeated`` names trials left out because they were there already."""

    runs: tuple[RunRecord, ...]
    arms: tuple[Arm, ...]
    repeated: tuple[str, ...]

    @property
    def labels(self) -> tuple[int, ...]:
        """Labeled-set sizes of any arm, increasing."""
        return tuple(sorted({labels for arm in self.arms for labels in arm.labels}))

    @property
    def metric(self) -> Metric:
        """What ``Arm.accuracy`` is: the first metric of the task, accuracy in runs that do not say."""
        told = (
            next(iter(metrics))
            for arm in self.arms
            for trial in arm.trials
            for done in trial.rounds
            for metrics in done.metrics.values()
        )
        return Metric(next(told, "accuracy"))

    @property
    def pool(self) -> int:
        """Samples in the pool."""
        return int(self.runs[0].config["data"]["pool"])


def whole_cost(costs: Sequence[Cost], labels: int) -> Spent:
    """What a final network of ``labels`` labels took: selecting them, and all that went into training it.

    A selector of this size is counted where the final network is it, is fused with it, or is taught by it.
    """
    last = [cost for cost in costs if cost.labels == labels]
    made = {(cost.phase, cost.network) for cost in last}
    used = {phase for phase, _ in made} & {"fuse", "teacher"} or made.isdisjoint(
        {("train_final", "final"), ("train_selector", "final")}
    )
    phases = {"train_final", "teacher", "fuse", *({"plan", "train_selector"} if used else ())}
    paid = [
        cost
        for cost in last
        if cost.phase in phases or (cost.phase, cost.network) == ("train_selector", "final")
    ]
    chosen = selection_cost(costs, labels)
    return Spent(
        chosen.flops + sum(cost.flops for cost in paid), chosen.seconds + sum(cost.seconds for cost in paid)
    )


def summarize(runs: Sequence[RunRecord]) -> Summary:
    """Pool runs on the same data: trials with the same settings become the seeds of one arm.

    Raises:
        RunFolderError: runs on different data.
    """
    data = [run.config["data"] for run in runs]
    for run, other in zip(runs, data, strict=True):
        if other != data[0]:
            raise RunFolderError(
                f"{runs[0].path} is on {_describe(data[0])} and {run.path} on {_describe(other)}: "
                "runs on different data cannot share a report"
            )
    groups: dict[str, dict[int, tuple[Trial, Path]]] = {}
    meaning: dict[str, tuple[str, Mapping[str, Any]]] = {}
    repeated = []
    for run in runs:
        for trial in run.trials:
            settings = run.config["arms"][trial.arm]
            key = json.dumps([trial.arm, settings], sort_keys=True)
            meaning[key] = (trial.arm, settings)
            group = groups.setdefault(key, {})
            if trial.seed in group:
                repeated.append(f"{trial.arm} seed {trial.seed} of {run.path.name}")
            else:
                group[trial.seed] = (trial, trial_folder(run.path, trial.arm, trial.seed))
    arms = [
        Arm(
            _label(meaning[key], list(meaning.values())),
            meaning[key][0] if meaning[key][0] in ("dense", "random") else "main",
            meaning[key][1],
            tuple(trial for trial, _ in group.values()),
            tuple(folder for _, folder in group.values()),
        )
        for key, group in groups.items()
    ]
    arms.sort(key=lambda arm: ("main", "dense", "random").index(arm.role))  # stable: as given within a role
    return Summary(tuple(runs), tuple(arms), tuple(repeated))


def _label(one: tuple[str, Mapping[str, Any]], every: list[tuple[str, Mapping[str, Any]]]) -> str:
    """Name of the arm, and its settings that arms of the same name do not share."""
    name, settings = one
    namesakes = [other for other_name, other in every if other_name == name]
    telling = [
        f"{key.replace('_', ' ')} {setting(value)}"
        for key, value in settings.items()
        if any(other.get(key) != value for other in namesakes)
    ]
    return f"{name} ({', '.join(telling)})" if telling else name


def _describe(data: Mapping[str, Any]) -> str:
    return f"{data['name']} ({data['pool']} + {data['test']} samples)"


def _spread(values: Iterable[float]) -> Spread | None:
    found = tuple(values)
    return Spread(found) if found else None
