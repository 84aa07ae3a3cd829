"""The runner: the contenders of a case are checked against float64 first, then timed in turns."""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

Kind = Literal["ours", "peer", "limit"]
Run = Callable[[], Any]

SECONDS = 2.0  # of timed rounds per case
ROUNDS = (5, 50)  # at least, at most
_COVER = 1_000_000  # clocks of a GPU, about half a millisecond: longer than the host takes to queue a call
SLOW = 1.0  # seconds; a slower peer is run once
LOOSE = 1e-3  # tolerance of the peers' errors: they are shown, what they allow themselves is not ours to test


def _unchanged(result: Any) -> Any:
    return result


@dataclass(frozen=True)
class Contender:
    """One way to do the work of a case.

    Attributes:
        name: As printed.
        kind: ``ours``; ``peer``, a package or plain torch; ``limit``, which does not do the work but only what nobody
            who does it can avoid.
        build: Prepares it (imports, compiles, converts the data) and returns the call to time. ImportError where the
            package is not installed.
        read: From what the call returns to what the case checks; not timed.
        parts: It is given the first of this many equal parts of the work, and its time is multiplied.
        skip: Why it is not run, or nothing.
    """

    name: str
    kind: Kind
    build: Callable[[], Run]
    read: Callable[[Any], Any] = _unchanged
    parts: int = 1
    skip: str = ""


@dataclass(frozen=True)
class Task:
    """A case, ready to run.

    Attributes:
        contenders: Ours first.
        error: The largest deviation of a result from the truth (float64), in the case's own terms.
        tolerance: What it may be for us.
        work: Bytes or FLOPs that have to be moved or computed.
        unit: Of ``work`` per nanosecond.
        cold: The cache is cleared before every call.
        reset: Called before every checked call, for what works in place.
        yardstick: The contender whose error we may have as well, where it is larger: plain torch in this precision.
    """

    contenders: tuple[Contender, ...]
    error: Callable[[Any], float]
    tolerance: float
    work: float
    unit: Literal["GB/s", "GFLOP/s"]
    cold: bool = True
    reset: Callable[[], None] | None = None
    yardstick: str = ""


@dataclass(frozen=True)
class Case:
    """One line of the table of cases."""

    name: str
    make: Callable[[torch.device], Task]


@dataclass(frozen=True)
class Line:
    """What was measured of one contender.

    ``seconds`` are all its timed calls (none if it did not run: then ``note`` says why); ``memory`` is the most bytes
    beyond those in use before the call, its result included, None where it cannot be told.
    """

    name: str
    kind: Kind
    seconds: tuple[float, ...] = ()
    error: float | None = None
    matches: bool | None = None
    memory: int | None = None
    note: str = ""

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """Lower quartile, median, upper quartile of the seconds."""
        if len(self.seconds) < 2:
            return (self.seconds[0],) * 3
        low, median, high = statistics.quantiles(self.seconds, method="inclusive")
        return low, median, high

    @property
    def median(self) -> float:
        """Of the seconds."""
        return self.quartiles[1]


@dataclass(frozen=True)
class Result:
    """What was measured of one case."""

    case: str
    device: str
    work: float
    unit: str
    cold: bool
    lines: tuple[Line, ...]

    @property
    def ours(self) -> Line:
        """The line that is ours."""
        return next(line for line in self.lines if line.kind == "ours")

    @property
    def limits(self) -> tuple[Line, ...]:
        """The limits that ran."""
        return tuple(line for line in self.lines if line.kind == "limit" and line.seconds)

    @property
    def best_peer(self) -> Line | None:
        """The fastest peer whose results are right."""
        right = [line for line in self.lines if line.kind == "peer" and line.seconds and line.matches]
        return min(right, key=lambda line: line.median, default=None)


class Race:
    """Checks the contenders of a case when it is made; then `others` and `ours` in turns are one round."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self._case, self._device, self._task = case, device, case.make(device)
        self._evict = _evictor(device) if self._task.cold else None
        self._lines: dict[str, Line] = {}
        self._seconds: dict[str, list[float]] = {}
        self._runs: dict[str, tuple[Run, int]] = {}
        for contender in self._task.contenders:
            self._enter(contender)
        self._ours = self._task.contenders[0].name

    @property
    def rounds(self) -> int:
        """How many rounds the time for a case is good for."""
        one = sum(self._seconds[name][0] / parts for name, (_, parts) in self._runs.items())
        one += 0.02 * len(self._runs) * self._task.cold
        return max(ROUNDS[0], min(ROUNDS[1], int(SECONDS / one)))

    def others(self) -> None:
        """Times every contender but ours once."""
        for name in self._runs:
            if name != self._ours:
                self._time(name)
        if self._evict:
            self._evict()

    def ours(self) -> None:
        """Times ours once. `others` has cleared the cache, which a caller's own clock should not see."""
        self._time(self._ours, evict=False)

    def result(self) -> Result:
        """Of all rounds so far; of what was run once or in no round, the checked call."""
        lines, task = [], self._task
        plain = self._lines[task.yardstick].error if task.yardstick else None
        allowed = min(LOOSE, max(task.tolerance, plain or 0.0))
        for name, line in self._lines.items():
            seconds = self._seconds.get(name, [])
            if line.error is not None:
                line = replace(line, matches=line.error <= (allowed if line.kind == "ours" else LOOSE))
            lines.append(replace(line, seconds=tuple(seconds[1:] or seconds)))
        return Result(self._case.name, self._device.type, task.work, task.unit, task.cold, tuple(lines))

    def _enter(self, contender: Contender) -> None:
        name, kind = contender.name, contender.kind
        if contender.skip:
            self._lines[name] = Line(name, kind, note=contender.skip)
            return
        try:
            self._lines[name] = self._checked(contender)
        except Exception as error:  # whatever goes wrong in a peer is its line's business
            if kind == "ours":
                raise
            self._runs.pop(name, None)
            self._seconds.pop(name, None)
            self._lines[name] = Line(name, kind, note=_why_not(error))

    def _checked(self, contender: Contender) -> Line:
        """Runs it once; what takes long is not run again."""
        name, kind, parts = contender.name, contender.kind, contender.parts
        run = contender.build()
        if self._task.reset:
            self._task.reset()
        self._runs[name], self._seconds[name] = (run, parts), []
        output, memory = _peak_extra_memory(lambda: self._time(name), self._device)
        line = Line(
            name,
            kind,
            error=None if kind == "limit" else self._task.error(contender.read(output)),
            memory=memory,
            note=f"1/{parts} of the work and its memory, time x {parts}" if parts > 1 else "",
        )
        if kind != "ours" and self._seconds[name][0] / parts > SLOW:
            del self._runs[name]
        return line

    def _time(self, name: str, *, evict: bool = True) -> Any:
        run, parts = self._runs[name]
        if self._device.type == "cuda":
            # While the device is busy with this and with evicting, the host queues what is timed: none of its time counts.
            torch.cuda._sleep(_COVER)
        if evict and self._evict:
            self._evict()
        if self._device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            output = run()
            end.record()
            end.synchronize()
            seconds = start.elapsed_time(end) / 1000
        else:
            began = time.perf_counter()
            output = run()
            seconds = time.perf_counter() - began
        self._seconds[name].append(seconds * parts)
        return output


def measure(case: Case, device: torch.device) -> Result:
    """Checks and times all contenders of one case."""
    race = Race(case, device)
    for _ in range(race.rounds):
        race.others()
        race.ours()
    return race.result()


def _why_not(error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"not installed: {error.name or error}"
    return f"failed: {type(error).__name__}: {next(iter(str(error).splitlines()), '')[:90]}"


def _evictor(device: torch.device) -> Callable[[], None]:
    """A call that fills the last cache with something else: it writes twice as many bytes as fit."""
    cache = 64 << 20  # where the processor does not say
    if device.type == "cuda":
        cache = torch.cuda.get_device_properties(device).L2_cache_size
    else:
        with suppress(OSError, ValueError):
            found = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text().strip()
            cache = int(found.removesuffix("K")) << 10
    buffer = torch.ones(max(64 << 20, 2 * cache) // 4, device=device)

    def evict() -> None:
        buffer.add_(1)

    return evict


def _peak_extra_memory(run: Run, device: torch.device) -> tuple[Any, int | None]:
    """What ``run`` returns, and the bytes it had in use at most beyond those before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        output = run()
        return output, torch.cuda.max_memory_allocated(device) - before
    gc.collect()
    try:
        # Freed memory that the allocator keeps would hide what the call needs.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is in use
        before_kib = _kib("VmRSS")
    except (OSError, AttributeError):
        return run(), None
    output = run()
    return output, max(0, _kib("VmHWM") - before_kib) << 10


def _kib(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(f"{field}:")))


def largest(deviations: torch.Tensor) -> float:
    """The largest of them in absolute value; infinite where one is not a number."""
    return float(deviations.abs().nan_to_num(nan=math.inf).max()) if deviations.numel() else 0.0
