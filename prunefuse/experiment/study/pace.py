"""What a study will take: its planned FLOPs, at the pace of what is done, or of a few batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn import functional

from prunefuse._table import Table
from prunefuse.experiment import execute
from prunefuse.experiment.format import duration, engineering
from prunefuse.experiment.records import Cost
from prunefuse.experiment.run import LoopRun
from prunefuse.experiment.steps import Line
from prunefuse.experiment.study.units import Unit
from prunefuse.training import flops_per_input

_BATCHES = 4  # that are timed, after one that is not
_TRAINED = ("train_selector", "train_final", "train_subset", "train_full")


@dataclass(frozen=True)
class Paces:
    """FLOPs in a second: by the unit's name, whether it is training, and the network; and what others have."""

    known: dict[tuple[str, bool, str], float] = field(default_factory=dict)
    usual: dict[bool, float] = field(default_factory=dict)

    def seconds(self, unit: str, line: Line) -> float:
        """Seconds that a planned line will take."""
        trains = line.phase in _TRAINED
        pace = self.known.get((unit, trains, line.network)) or self.usual.get(trains) or 1e9
        return line.flops / pace


@dataclass(frozen=True)
class Forecast:
    """What is left of a study.

    Attributes:
        runs: Runs that are different, those that are done included.
        trials: Trials, or steps, to do.
        flops: FLOPs of them, those of shared steps once.
        alone: FLOPs, if every trial did all of its steps itself.
        seconds: Seconds, with the processes side by side.
        lines: FLOPs and seconds by run.
    """

    runs: int
    trials: int
    flops: float
    alone: float
    seconds: float
    lines: tuple[tuple[str, float, float], ...] = ()

    @classmethod
    def of(
        cls,
        lines_of: Callable[[str], Iterable[tuple[str, Line]]],
        left: Sequence[execute.Task],
        paces: Paces,
        jobs: int,
        runs: int,
    ) -> Forecast:
        """Sums of the lines of tasks, each shared step with the first that has it."""
        seen: set[str] = set()
        sums: dict[str, tuple[float, float]] = {}
        alone = 0.0
        for task in left:
            unit = task.name.split("/")[1]
            flops, seconds = sums.get(unit, (0.0, 0.0))
            for key, line in lines_of(task.name):
                alone += line.flops
                if key not in seen:
                    seen.add(key)
                    flops, seconds = flops + line.flops, seconds + paces.seconds(unit, line)
            sums[unit] = flops, seconds
        told = tuple((unit, *found) for unit, found in sums.items())
        whole = sum(seconds for _, _, seconds in told)
        return cls(runs, len(left), sum(flops for _, flops, _ in told), alone, whole / jobs, told)

    def blocks(self) -> list[Table | str]:
        """As a table and lines, for a terminal."""
        rows = [[name, engineering(flops), duration(seconds)] for name, flops, seconds in self.lines]
        shared = (
            f" ({engineering(self.alone, 'FLOP')} without shared steps)" if self.alone > self.flops else ""
        )
        told = f"{self.runs} runs, {self.trials} trials to do: {engineering(self.flops, 'FLOP')}{shared}"
        return [
            *([Table(["run", "FLOPs to do", "seconds of one process"], rows)] if rows else []),
            f"{told}, about {duration(self.seconds)} ({self.seconds / 3600:.2f} h)",
        ]


def measured_paces(loops: Sequence[tuple[Unit, LoopRun]], done: Sequence[tuple[str, Cost]]) -> Paces:
    """The pace of finished trials, and where there are none, of a few batches of every network."""
    sums: dict[tuple[str, bool, str], tuple[float, float]] = {}
    for name, cost in done:
        if cost.flops > 0 and cost.seconds > 0:
            key = name, cost.phase in _TRAINED, str(cost.network)
            flops, seconds = sums.get(key, (0.0, 0.0))
            sums[key] = flops + cost.flops, seconds + cost.seconds
    known = {key: flops / seconds for key, (flops, seconds) in sums.items()}
    timed: dict[tuple[float, bool], float] = {}
    for unit, made in loops:
        if any(key[0] == unit.name for key in known):
            continue
        for trains, network, pace in _calibrated(made, timed):
            known[unit.name, trains, network] = pace
    usual = {
        trains: sorted(found)[len(found) // 2]
        for trains in (True, False)
        if (found := [pace for (_, kind, _), pace in known.items() if kind == trains])
    }
    return Paces(known, usual)


def _calibrated(made: LoopRun, timed: dict[tuple[float, bool], float]) -> Iterable[tuple[bool, str, float]]:
    """Whether it is training, the network, and its FLOPs in a second, of the networks of a run; equal ones are timed once."""
    plan = made.learner(made.config.arms[0], made.config.seeds[0]).plan
    dense = made.dense()
    selector = dense if made.proxy is None else made.proxy()
    example = made.data.pool[0][0][None]
    for name, model in (("selector", selector if plan is None else plan.extract(dense)), ("final", dense)):
        flops = flops_per_input(model, example)
        for trains in (True, False):
            if (flops, trains) not in timed:
                timed[flops, trains] = _timed(model, made, flops, trains)
            yield trains, name, timed[flops, trains]


def _timed(model: torch.nn.Module, made: LoopRun, flops: float, trains: bool) -> float:
    """FLOPs in a second of a few batches."""
    size = min(made.config.recipe.batch_size if trains else 512, made.pool_size)
    images = torch.stack([made.data.pool[index][0] for index in range(size)]).to(made.device)
    labels = torch.zeros(size, dtype=torch.int64, device=made.device)
    model = model.to(made.device).train(trains)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def once() -> None:
        with torch.set_grad_enabled(trains):
            out = model(images)
        if trains:
            optimizer.zero_grad()
            functional.cross_entropy(out, labels).backward()
            optimizer.step()
        if made.device.type == "cuda":
            torch.cuda.synchronize(made.device)

    once()
    start = time.perf_counter()
    for _ in range(_BATCHES):
        once()
    return (3 if trains else 1) * _BATCHES * size * flops / (time.perf_counter() - start)
