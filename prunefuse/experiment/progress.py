"""What a run says while it goes on: a live display on a terminal, plain lines in a log, nothing when quiet.

It is fed by the events of the steps, of several tasks at a time where a run has several processes. `prunefuse status` shows
what it last wrote to status.json.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from prunefuse import _files as files
from prunefuse.experiment.format import Metric, duration
from prunefuse.experiment.records import Epoch, Event, Network, Phase, PhaseName, Progress, Round, Stop
from prunefuse.experiment.steps import Line

STATUS = "status.json"
_LOG_EVERY = 30.0  # seconds between lines of a log within a round
_STATUS_EVERY = 1.0  # seconds between writings of status.json
TITLES: dict[PhaseName, str] = {
    "plan": "plan pruning",
    "train_selector": "train selector",
    "score_pool": "score pool",
    "select": "select",
    "fuse": "fuse",
    "teacher": "teacher",
    "train_final": "train final",
    "evaluate": "evaluate",
    "train_subset": "train F_s",
    "record": "record",
    "embed": "embed",
    "answer": "score by F_s",
    "neighbors": "neighbors",
    "extrapolate": "extrapolate",
    "train_full": "train on all",
}
_Kind = tuple[str, PhaseName, Network]


class Forecast:
    """Time left, from the work planned and the pace of the work done.

    Work of one kind (arm, phase, network) takes time in proportion to its FLOPs. Different kinds do not: small
    networks are bound by overhead. So each kind has its pace, and one not seen yet that of all together. Phases
    without FLOPs (planning, but with obspa) have no pace, and are left out of it.
    """

    def __init__(self, planned: Mapping[str, Sequence[Line]], seeds: int) -> None:
        self._planned = planned
        self._left: dict[_Kind, float] = defaultdict(float)
        for arm, lines in planned.items():
            for line in lines:
                self._left[arm, line.phase, line.network] += line.flops * seeds
        self._done: dict[_Kind, tuple[float, float]] = {}
        self._partial: dict[str, dict[_Kind, tuple[float, float]]] = {}

    def work(self, kind: _Kind, flops: float, seconds: float, task: str = "") -> None:
        """A part of what a task has in progress is done."""
        partial = self._partial.setdefault(task, {})
        before = partial.get(kind, (0.0, 0.0))
        partial[kind] = (before[0] + flops, before[1] + seconds)

    def complete(self, arm: str, lines: Iterable[Line], task: str = "") -> None:
        """A round or a step is done; its ledger replaces what was known of its parts."""
        self._partial.pop(task, None)
        for line in lines:
            kind = (arm, line.phase, line.network)
            before = self._done.get(kind, (0.0, 0.0))
            self._done[kind] = (before[0] + line.flops, before[1] + line.seconds)
            self._left[kind] = max(self._left[kind] - line.flops, 0.0)

    def stopped(self, arm: str, last: int) -> None:
        """One seed of an arm has stopped after round ``last``: what was planned beyond will not come."""
        for line in self._planned.get(arm, ()):
            if line.round > last:
                kind = (arm, line.phase, line.network)
                self._left[kind] = max(self._left[kind] - line.flops, 0.0)

    def seconds(self) -> tuple[float, float | None]:
        """Seconds that the work so far took, and that the work left will take (None before any work)."""
        known: dict[_Kind, tuple[float, float]] = dict(self._done)
        partial: dict[_Kind, float] = defaultdict(float)
        for parts in self._partial.values():
            for kind, (flops, seconds) in parts.items():
                before = known.get(kind, (0.0, 0.0))
                known[kind] = (before[0] + flops, before[1] + seconds)
                partial[kind] += flops
        flops = sum(flops for flops, _ in known.values())
        spent = sum(seconds for _, seconds in known.values())
        if flops == 0:
            return spent, None
        average = sum(seconds for own, seconds in known.values() if own > 0) / flops
        left = 0.0
        for kind, planned in self._left.items():
            own_flops, own_seconds = known.get(kind, (0.0, 0.0))
            pace = own_seconds / own_flops if own_flops > 0 else average
            left += max(planned - partial[kind], 0.0) * pace
        return spent, left

    def by_phase(self) -> dict[PhaseName, float]:
        """Seconds so far by phase, most first."""
        sums: dict[PhaseName, float] = defaultdict(float)
        for parts in (self._done, *self._partial.values()):
            for (_, phase, _), (_, seconds) in parts.items():
                sums[phase] += seconds
        return dict(sorted(sums.items(), key=lambda item: -item[1]))


@dataclass
class Running:
    """A task in progress: its name, its arm, and where it is."""

    name: str
    arm: str
    rounds: int
    started: float = field(default_factory=time.monotonic)
    phase: Phase | None = None
    phase_started: float = 0.0
    where: str = ""
    what: str = ""
    done: float = 0.0


class RunProgress:
    """Is told of the events of the tasks of a run, and shows where it is.

    ``metric`` is what epochs tell where it is called as long as no round has said so.
    """

    def __init__(
        self, *, quiet: bool = False, console: Console | None = None, metric: str = "accuracy"
    ) -> None:
        self._quiet = quiet
        self._metric = Metric(metric)
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._status: Path | None = None
        self._forecast = Forecast({}, 0)
        self._running: dict[str, Running] = {}
        self._rounds, self._jobs, self._status_written = 1, 1, 0.0
        self._started = self._logged = time.monotonic()

    @contextmanager
    def running(
        self,
        planned: Mapping[str, Sequence[Line]],
        seeds: int,
        rounds: int = 1,
        *,
        jobs: int = 1,
        status: Path | None = None,
    ) -> Iterator[None]:
        """Show progress while the block runs.

        Args:
            planned: Ledger lines of one seed of every arm, with their FLOPs.
            seeds: How many seeds every arm has.
            rounds: Rounds of each, the first random set included.
            jobs: Tasks that go on at a time.
            status: File that says where the run is, written now and then.
        """
        self._forecast = Forecast(planned, seeds)
        self._rounds, self._jobs, self._status = rounds, jobs, status
        self._started = self._logged = time.monotonic()
        if self._quiet or not self._console.is_terminal:
            yield
            return
        with Live(
            get_renderable=self.renderable, console=self._console, refresh_per_second=4, transient=True
        ):
            yield

    def note(self, text: str) -> None:
        """A line of its own."""
        if not self._quiet:
            self.warn(text)

    def warn(self, text: str) -> None:
        """A line of its own, also where it is quiet."""
        self._console.print(text, markup=False, highlight=False)

    def done_before(self, arm: str, lines: Iterable[Line]) -> None:
        """Work that an earlier process has done."""
        self._forecast.complete(arm, lines, "earlier")

    def begin(self, task: str, arm: str, title: str) -> None:
        """A task starts, and its events come; ``title`` is for people."""
        self._running[task] = Running(title, arm, self._rounds)

    def begin_once(self, task: str, arm: str, title: str) -> None:
        """The same, if it has not begun."""
        if task not in self._running:
            self.begin(task, arm, title)

    def end(self, task: str, lines: Iterable[Line] = (), text: str = "") -> None:
        """A task is done; the lines are those that no `Round` had, and ``text`` is for the log."""
        running = self._running.pop(task, None)
        if running is None:
            return
        self._forecast.complete(running.arm, lines, task)
        if text:
            took = duration(time.monotonic() - running.started)
            self.note(f"{text}  ({took}; {self._time_left()})")
        self._write_status()

    def __call__(self, task: str, event: Event) -> None:
        """Take an event of a task that has begun."""
        running = self._running.get(task)
        if running is None:
            return
        if isinstance(event, Progress):
            running.done = event.done / max(event.total, 1)
            running.what = f"{event.done:,} of {event.total:,} samples"
            self._log(running)
        elif isinstance(event, Phase):
            self._end_phase(task, running)
            running.phase, running.phase_started = event, time.monotonic()
            running.where = running.name
            if running.rounds > 1:
                running.where += f", round {event.round + 1}/{running.rounds}, {event.labels:,} labels"
            running.done, running.what = 0.0, ""
        elif isinstance(event, Epoch):
            self._end_epoch(task, running, event)
        elif isinstance(event, Stop):
            if event.stopped:
                self._forecast.stopped(running.arm, event.round)
            what = "stopped" if event.stopped else "it is proposed to stop"
            self.note(f"{running.name:<20} {what} at {event.labels:,} labels by {', '.join(event.rules)}")
        else:
            self._end_round(task, running, event)
        if isinstance(event, Round) or time.monotonic() - self._status_written > _STATUS_EVERY:
            self._write_status()

    def _end_phase(self, task: str, running: Running) -> None:
        """Count the phase that was going on; one with epochs has been counted epoch by epoch."""
        last = running.phase
        if last is not None and last.epochs == 0:
            seconds = time.monotonic() - running.phase_started
            self._forecast.work((running.arm, last.phase, last.network), last.flops, seconds, task)

    def _end_epoch(self, task: str, running: Running, event: Epoch) -> None:
        phase = running.phase
        if phase is None:
            return
        kind = (running.arm, phase.phase, phase.network)
        self._forecast.work(kind, phase.flops / phase.epochs, event.seconds, task)
        running.done = event.epoch / event.epochs
        found, on = event.train_accuracy, "labeled set"
        if event.test_accuracy is not None:
            found, on = event.test_accuracy, "test set"
        told = f"{self._metric.title} {self._metric.text(found)}{self._metric.unit} ({on})"
        running.what = f"epoch {event.epoch}/{event.epochs}, loss {event.loss:.3f}, {told}"
        self._log(running)

    def _log(self, running: Running) -> None:
        if running.phase is None or self._console.is_terminal:
            return
        if time.monotonic() - self._logged > _LOG_EVERY:
            title = TITLES[running.phase.phase]
            self.note(f"  {running.where}, {title}: {running.what}; {self._time_left()}")
            self._logged = time.monotonic()

    def _end_round(self, task: str, running: Running, event: Round) -> None:
        running.phase = None
        self._forecast.complete(running.arm, event.costs, task)
        now = time.monotonic()
        told = next((next(iter(metrics)) for metrics in event.metrics.values()), self._metric.name)
        metric = self._metric = Metric(told)
        title = "" if told == "accuracy" else f" {metric.title}"
        found = [
            f"{name}{title} {metric.text(accuracy)}{metric.unit}"
            for name, accuracy in (("final", event.final_accuracy), ("selector", event.selector_accuracy))
            if accuracy is not None
        ]
        if event.final_accuracy == event.selector_accuracy:
            found = found[:1]  # the dense arm's selector is its final network
        if event.unselectable:
            found.append(f"{event.unselectable:,} samples could not be scored (NaN)")
        self.note(
            f"{running.name:<20} round {event.index + 1}/{self._rounds}  {event.labels:>6,} labels  "
            f"{', '.join(found) or 'not tested'}  ({duration(now - running.started)}; {self._time_left()})"
        )
        running.started = self._logged = now

    def _seconds_left(self) -> float | None:
        left = self._forecast.seconds()[1]
        return None if left is None else left / self._jobs

    def _time_left(self) -> str:
        left = self._seconds_left()
        if left is None:
            return "time left unknown"
        return f"about {duration(left)} left" if left > 0 else "done"

    def _write_status(self) -> None:
        self._status_written = time.monotonic()
        if self._status is None:
            return
        told = {
            "written": datetime.now().astimezone().isoformat(timespec="seconds"),
            "elapsed": time.monotonic() - self._started,
            "left": self._seconds_left(),
            "tasks": [
                {
                    "where": one.where or one.name,
                    "phase": TITLES[one.phase.phase] if one.phase else "",
                    "what": one.what,
                }
                for one in self._running.values()
            ],
            "seconds": {TITLES[phase]: seconds for phase, seconds in self._forecast.by_phase().items()},
        }
        with suppress(OSError):  # no run is lost for it
            files.write_text(self._status, json.dumps(told) + "\n", durable=False)

    def renderable(self) -> RenderableType:
        """The live display: where each task is, its phase, and the whole."""
        left = self._seconds_left()
        spent = self._forecast.seconds()[0] / self._jobs
        whole = 0.0 if left is None else spent / (spent + left) if spent + left > 0 else 1.0
        elapsed = duration(time.monotonic() - self._started)
        parts: list[Any] = []
        for one in list(self._running.values()):
            title = TITLES[one.phase.phase] if one.phase else ""
            grid = Table.grid(padding=(0, 2))
            grid.add_row(f"{title:<14}", ProgressBar(1.0, one.done, width=30), Text(one.what))
            parts += [Text(one.where or one.name, style="bold"), grid]
        grid = Table.grid(padding=(0, 2))
        text = f"{100 * whole:.0f} %, {elapsed} so far, {self._time_left()}"
        grid.add_row(f"{'whole run':<14}", ProgressBar(1.0, whole, width=30), Text(text))
        return Group(*parts, grid)
