"""Measures the points of points.py on a GPU that nobody else uses; a rehearsal measures small ones on the CPU.

A call's time is that between two events around many calls, queued while the device still sleeps, in turns on inputs that
together exceed twice the last cache: no launch and no cached input counts. Beside it stands the time that moving its bytes
takes at the speed of a copy (or its FLOPs at that of a product), which was measured just before.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.points import Point, Room, ceilings, points
from prunefuse import _files as files
from prunefuse.bench import record
from prunefuse.bench.race import LOOSE, Line, Result
from prunefuse.version import __version__

BATCHES = 5
CALLS = 20  # of a batch; a quarter of what takes long
LONG = 5e-3  # seconds
CLOCKS = 2e9  # of a GPU in a second, about
LIMITS = {"copy": "copy of as many bytes", "product float32": "product of as many FLOPs"}


def room_of(device: torch.device) -> Room:
    if device.type == "cpu":
        return Room(device, 1 << 15, 0)
    return Room(device, 256 << 20, torch.cuda.get_device_properties(device).L2_cache_size)


def timed(calls: Sequence[Callable[[], Any]], device: torch.device) -> tuple[float, ...]:
    """Seconds of a call, by batches of them."""
    if device.type == "cpu":
        return tuple(_seconds(call, device)[1] for call in calls)
    torch.cuda.synchronize()
    both = [_seconds(call, device) for call in calls[:3]]
    queuing, whole = (statistics.median(column) for column in zip(*both, strict=True))
    count = CALLS if whole < LONG else CALLS // 4
    found = []
    for _ in range(BATCHES):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(int(CLOCKS * min(0.05, 1.5 * count * queuing)))
        start.record()
        for i in range(count):
            calls[i % len(calls)]()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) / 1000 / count)
    return tuple(found)


def wake(call: Callable[[], Any], device: torch.device) -> None:
    """Works for a second: the clocks of a GPU that was idle are low."""
    began = time.perf_counter()
    while device.type == "cuda" and time.perf_counter() < began + 1:
        call()
        torch.cuda.synchronize()


def _seconds(call: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Until the call is queued, and until it has ended."""
    began = time.perf_counter()
    call()
    queued = time.perf_counter() - began
    if device.type == "cuda":
        torch.cuda.synchronize()
    return queued, time.perf_counter() - began


def compiled(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    torch.compiler.reset()
    return torch.compile(function, dynamic=False, backend="inductor" if device.type == "cuda" else "eager")


def measure(point: Point, room: Room, best: dict[str, float]) -> Result:
    """Checks ours and what stands beside it on the first inputs, then times each on all."""
    work = point.make(room)
    runs: list[tuple[str, str, Callable[..., Any]]] = [("prunefuse", "ours", work.ours)]
    if work.eager:
        runs.append(("torch", "peer", work.eager))
    if point.compiled:
        runs.append(("torch.compile", "peer", compiled(point.compiled, room.device)))
    lines = []
    for name, kind, run in runs:
        try:
            error = work.error(run(*work.inputs[0]))
            seconds = timed([partial(run, *one) for one in work.inputs], room.device)
            matches = error <= (work.tolerance if kind == "ours" else max(LOOSE, work.tolerance))
            lines.append(Line(name, kind, seconds, error, matches))
        except Exception as error:  # one of them must not end the others
            first = next(iter(str(error).splitlines()), "")[:120]
            lines.append(Line(name, kind, matches=False, note=f"failed: {type(error).__name__}: {first}"))
    if work.ceiling in best:
        lines.append(Line(LIMITS[work.ceiling], "limit", (work.amount / best[work.ceiling] / 1e9,)))
    return Result(work.title, room.device.type, work.amount, work.unit, True, tuple(lines))


def share(result: Result) -> str:
    """How near ours comes to its limit: that time as a part of ours."""
    ours = result.ours
    if not ours.seconds:
        return "failed"
    near = f"{result.limits[0].median / ours.median:.2f}" if result.limits else f"{ours.median:.1e} s"
    return near if ours.matches else f"{near} WRONG"


def told(table: Sequence[Point], results: Sequence[Result]) -> list[str]:
    """A line for each family: the share of every point, and how many times as fast as the others ours is."""
    families: dict[str, list[tuple[Point, Result]]] = {}
    for point, result in zip(table, results, strict=True):
        families.setdefault(point.family, []).append((point, result))
    lines = []
    for family, members in families.items():
        cells = [", ".join(f"{point.label} {share(result)}" for point, result in members)]
        for name in ("torch", "torch.compile"):
            times = [
                line.median / result.ours.median
                for _, result in members
                for line in result.lines
                if line.name == name and line.seconds and result.ours.seconds
            ]
            if times:
                low, high = (f"{time:.3g}" for time in (min(times), max(times)))
                cells.append(f"{name} takes {low if low == high else f'{low} to {high}'} times as long")
        lines.append(f"{family}: {'; '.join(cells)}")
    return lines


def header(command: str, device: torch.device, commit: str) -> dict[str, Any]:
    """As of every file of results; with the commit, which a copy of the checkout does not know."""
    content = record.header(command, device)
    if commit and "git" not in content["versions"]["prunefuse"]:
        content["versions"]["prunefuse"] = f"{__version__}, git {commit}"
    return content


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("device", choices=("cuda", "cpu"))
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--commit", default="", help="of the sources, where this is no checkout")
    parser.add_argument(
        "--warm-up", action="store_true", help="only compile what torch.compile will be given"
    )
    parser.add_argument(
        "--once", action="store_true", help="only call the points that are counted, once each"
    )
    given = parser.parse_args()
    device = torch.device(given.device)
    room, table = room_of(device), points()
    torch.manual_seed(0)
    if given.warm_up or given.once:
        chosen = [point for point in table if (point.compiled if given.warm_up else point.counted)]
        for point in chosen:
            work = point.make(room)
            run = compiled(point.compiled, device) if given.warm_up and point.compiled else work.ours
            run(*work.inputs[0])
        print(f"{len(chosen)} points")
        return 0
    content = header(
        shlex.join(["python", "-m", "benchmarks.gpu.bench", *sys.argv[1:]]), device, given.commit
    )
    best: dict[str, float] = {}
    limits = ceilings(room)
    wake(limits[-1][1][0], device)
    for name, calls, amount in limits:
        best[name] = amount / statistics.median(timed(calls, device)) / 1e9
    print(
        "> ceilings: " + ", ".join(f"{name} {rate:,.0f}" for name, rate in best.items()) + " GB/s or GFLOP/s"
    )
    results = []
    for point in table:
        results.append(measure(point, room, best))
        if device.type == "cuda":
            torch.cuda.empty_cache()
        line = "; ".join(
            f"{x.name} {x.median:.3e} s" if x.seconds else f"{x.name} {x.note}" for x in results[-1].lines
        )
        print(f"{results[-1].case}: {line}; error {results[-1].ours.error}", flush=True)
        if given.json:  # after every point: what has been measured stays if the time is over
            content |= {"ceilings": best, "results": [dataclasses.asdict(one) for one in results]}
            files.write_json(given.json, content)
    print("> time of a copy of as many bytes (neighbors: of a product of as many FLOPs) as a part of ours:")
    for line in told(table, results):
        print(f"> {line}")
    wrong = [result.case for result in results if not result.ours.matches]
    print(
        f"{len(wrong)} of {len(results)} points are wrong or failed{': ' if wrong else ''}{', '.join(wrong)}"
    )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
