"""What a run says while it goes on: a live display on a terminal, plain lines in a log, nothing when quiet."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from prunefuse.experiment.format import duration
from prunefuse.experiment.records import Cost, Epoch, Event, Network, Phase, PhaseName, Progress, Round

_LOG_EVERY = 30.0  # seconds between lines of a log within a round
_TITLES: dict[PhaseName, str] = {
    "plan": "plan pruning",
    "train_selector": "train selector",
    "score_pool": "score pool",
    "select": "select",
    "fuse": "fuse",
    "teacher": "teacher",
    "train_final": "train final",
    "evaluate": "evaluate",
}
_Kind = tuple[str, PhaseName, Network]


class Forecast:
    """Time left, from the work planned and the pace of the work done.

    Work of one kind (arm, phase, network) takes time in proportion to its FLOPs. Different kinds do not: small
    networks are bound by overhead. So each kind has its pace, and one not seen yet that of all together. Phases
    without FLOPs (planning, once per trial) have no pace, and are left out of it.
    """

    def __init__(self, planned: Mapping[str, Sequence[Cost]], seeds: int) -> None:
        self._left: dict[_Kind, float] = defaultdict(float)
        for arm, costs in planned.items():
            for cost in costs:
                self._left[arm, cost.phase, cost.network] += cost.flops * seeds
        self._done: dict[_Kind, tuple[float, float]] = {}
        self._partial: dict[_Kind, tuple[float, float]] = {}

    def work(self, kind: _Kind, flops: float, seconds: float) -> None:
        """A part of the round in progress is done."""
        before = self._partial.get(kind, (0.0, 0.0))
        self._partial[kind] = (before[0] + flops, before[1] + seconds)

    def complete(self, arm: str, costs: Iterable[Cost]) -> None:
        """A round is done; its ledger replaces what was known of its parts."""
        self._partial = {}
        for cost in costs:
            kind = (arm, cost.phase, cost.network)
            before = self._done.get(kind, (0.0, 0.0))
            self._done[kind] = (before[0] + cost.flops, before[1] + cost.seconds)
            self._left[kind] = max(self._left[kind] - cost.flops, 0.0)

    def seconds(self) -> tuple[float, float | None]:
        """Seconds that the work so far took, and that the work left will take (None before any work)."""
        known = {
            kind: tuple(
                map(sum, zip(self._done.get(kind, (0, 0)), self._partial.get(kind, (0, 0)), strict=True))
            )
            for kind in self._done.keys() | self._partial.keys()
        }
        flops = sum(flops for flops, _ in known.values())
        spent = sum(seconds for _, seconds in known.values())
        if flops == 0:
            return spent, None
        average = sum(seconds for own, seconds in known.values() if own > 0) / flops
        left = 0.0
        for kind, planned in self._left.items():
            own_flops, own_seconds = known.get(kind, (0.0, 0.0))
            pace = own_seconds / own_flops if own_flops > 0 else average
            left += max(planned - self._partial.get(kind, (0.0, 0.0))[0], 0.0) * pace
        return spent, left


class RunProgress:
    """Listens to the loops of a run, one after another, and shows where it is."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self._quiet = quiet
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._forecast = Forecast({}, 0)
        self._arm = self._where = self._what = ""
        self._phase: Phase | None = None
        self._done, self._rounds = 0.0, 0

    @contextmanager
    def running(self, planned: Mapping[str, Sequence[Cost]], seeds: int, rounds: int) -> Iterator[None]:
        """Show progress while the block runs.

        Args:
            planned: Ledger lines of one seed of every arm, with their FLOPs.
            seeds: How many seeds every arm has.
            rounds: Rounds of each, the first random set included.
        """
        self._forecast = Forecast(planned, seeds)
        self._rounds = rounds
        self._started = self._logged = self._round_started = time.monotonic()
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
            self._console.print(text, markup=False, highlight=False)

    def begin(self, arm: str, seed: int) -> None:
        """The next arm and seed start; events from now on are theirs."""
        self._arm, self._name = arm, f"{arm}, seed {seed}"
        self._round_started = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Take an event of the loop. Those before the first `begin` are of loops in the making, and ignored."""
        if not self._arm:
            return
        if isinstance(event, Progress):
            self._done = event.done / max(event.total, 1)
            self._what = f"{event.done:,} of {event.total:,} samples"
        elif isinstance(event, Phase):
            self._end_phase()
            self._phase, self._phase_started = event, time.monotonic()
            self._where = f"{self._name}, round {event.round + 1}/{self._rounds}, {event.labels:,} labels"
            self._done, self._what = 0.0, ""
        elif isinstance(event, Epoch):
            self._end_epoch(event)
        else:
            self._end_round(event)

    def _end_phase(self) -> None:
        """Count the phase that was going on; one with epochs has been counted epoch by epoch."""
        last = self._phase
        if last is not None and last.epochs == 0:
            self._forecast.work(
                (self._arm, last.phase, last.network), last.flops, time.monotonic() - self._phase_started
            )

    def _end_epoch(self, event: Epoch) -> None:
        phase = self._phase
        if phase is None:
            return
        self._forecast.work(
            (self._arm, phase.phase, phase.network), phase.flops / phase.epochs, event.seconds
        )
        self._done = event.epoch / event.epochs
        accuracy, on = event.train_accuracy, "labeled set"
        if event.test_accuracy is not None:
            accuracy, on = event.test_accuracy, "test set"
        self._what = f"epoch {event.epoch}/{event.epochs}, loss {event.loss:.3f}, accuracy {100 * accuracy:.1f} % ({on})"
        if not self._console.is_terminal and time.monotonic() - self._logged > _LOG_EVERY:
            self.note(f"  {self._where}, {_TITLES[phase.phase]}: {self._what}; {self._time_left()}")
            self._logged = time.monotonic()

    def _end_round(self, event: Round) -> None:
        self._phase = None
        self._forecast.complete(self._arm, event.costs)
        now = time.monotonic()
        found = [
            f"{name} {100 * accuracy:.1f} %"
            for name, accuracy in (("final", event.final_accuracy), ("selector", event.selector_accuracy))
            if accuracy is not None
        ]
        if event.final_accuracy == event.selector_accuracy:
            found = found[:1]  # the dense arm's selector is its final network
        if event.unselectable:
            found.append(f"{event.unselectable:,} samples could not be scored (NaN)")
        self.note(
            f"{self._name:<20} round {event.index + 1}/{self._rounds}  {event.labels:>6,} labels  "
            f"{', '.join(found) or 'not tested'}  ({duration(now - self._round_started)}; {self._time_left()})"
        )
        self._round_started = self._logged = now

    def _time_left(self) -> str:
        left = self._forecast.seconds()[1]
        if left is None:
            return "time left unknown"
        return f"about {duration(left)} left" if left > 0 else "done"

    def renderable(self) -> RenderableType:
        """The live display: where the run is, the phase, and the whole."""
        spent, left = self._forecast.seconds()
        whole = 0.0 if left is None else spent / (spent + left) if spent + left > 0 else 1.0
        elapsed = duration(time.monotonic() - self._started)
        title = _TITLES[self._phase.phase] if self._phase else ""
        grid = Table.grid(padding=(0, 2))
        grid.add_row(f"{title:<14}", ProgressBar(1.0, self._done, width=30), Text(self._what))
        text = f"{100 * whole:.0f} %, {elapsed} so far, {self._time_left()}"
        grid.add_row("whole run", ProgressBar(1.0, whole, width=30), Text(text))
        return Group(Text(self._where, style="bold"), grid)
