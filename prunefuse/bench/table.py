"""Results for people: one block of lines per case, and a summary with one line per case."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from prunefuse._table import Table
from prunefuse.bench.race import Line, Result

_MARK = {True: "✓", False: "✗", None: ""}


def block(result: Result) -> str:
    """A case: what every contender took, and that beside the limits and the best peer (below 1 is faster)."""
    limits, best = result.limits, result.best_peer
    cache = "cold cache" if result.cold else "cache as it is"
    title = f"{result.case}  ({result.device}, {cache}; best peer: {best.name if best else 'none'})"
    head = ["", "time", "quartiles", result.unit, *(f"/ {limit.name}" for limit in limits)]
    rows = []
    notes = []
    for line in result.lines:
        if line.note:
            notes.append(f"  {line.name}: {line.note}")
        if line.seconds:
            ratios = [_ratio(line, other) for other in (*limits, best)]
            cells = [_MARK[line.matches], _error(line.error), _bytes(line.memory)]
            rate = f"{result.work / line.median / 1e9:.3g}"
            rows.append([line.name, duration(line.median), _quartiles(line), rate, *ratios, *cells])
    lines = Table([*head, "/ best peer", "match", "error", "memory"], rows).text(indent="  ")
    return "\n".join([title, lines, *notes])


def summary(results: Sequence[Result]) -> str:
    """A Markdown table of how we did in every case."""
    rows = [["case", "time", "rate", "/ limit", "/ best peer", "best peer", "match", "memory"]]
    for result in results:
        ours, best = result.ours, result.best_peer
        rate = f"{result.work / ours.median / 1e9:.3g} {result.unit}"
        limits = ", ".join(f"{_ratio(ours, limit)} {limit.name}" for limit in result.limits)
        ratio, name = _ratio(ours, best), best.name if best else ""
        case = result.case if result.device == "cpu" else f"{result.case} ({result.device})"
        match, memory = _MARK[ours.matches], _bytes(ours.memory)
        rows.append([case, duration(ours.median), rate, limits, ratio, name, match, memory])
    head, *lines = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in chain((head, ["---"] * len(head)), lines))


def _ratio(line: Line, other: Line | None) -> str:
    return f"{line.median / other.median:.2f}" if other else ""


def duration(seconds: float) -> str:
    """In three digits, with its unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}" if seconds < 1000 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _quartiles(line: Line) -> str:
    low, _, high = line.quartiles
    return f"{duration(low)} – {duration(high)}" if len(line.seconds) > 1 else "once"


def _error(error: float | None) -> str:
    return "" if error is None else "0" if error == 0 else f"{error:.1e}"


def _bytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.3g} MB" if count < 1e9 else f"{count / 1e9:.3g} GB"
