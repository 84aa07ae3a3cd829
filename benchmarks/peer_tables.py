"""The comparison with torch-pruning as Markdown."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.peer import CONTENDERS, GOALS, NOT_INSTALLED


def tables(content: dict[str, Any]) -> str:
    """What was found, as the Markdown of the README."""
    coverage, networks = content["coverage"], content["networks"]
    version = content["versions"]["torch-pruning"]
    lines = [f"| | prunefuse | torch-pruning {version} |", "|---|--:|--:|"]
    for source, names in (
        ("torchvision", [name for name in coverage if ":" not in name]),
        ("timm", [name for name in coverage if ":" in name]),
    ):
        if names:
            cells = [_worked([coverage[name][contender] for name in names]) for contender in CONTENDERS]
            lines.append(f"| {len(names)} of {source}, half of all channels | {' | '.join(cells)} |")
    for title, outcomes in (
        ("half of all channels", list(coverage.values())),
        ("half of the FLOPs", [{c: x[c]["flops"] for c in CONTENDERS} for x in networks.values()]),
    ):
        both = [x for x in outcomes if not any(x[contender]["error"] for contender in CONTENDERS)]
        if both:
            seconds = ([x[contender]["cpu_seconds"] for x in both] for contender in CONTENDERS)
            cells = [f"{statistics.median(s):.1f}, {max(s):.1f}" for s in seconds]
            lines.append(
                f"| CPU seconds to {title}, {len(both)} that both prune: median, most | {' | '.join(cells)} |"
            )
    lines += [
        "",
        "| half of the FLOPs or parameters | prunefuse: reached | time | torch-pruning: reached | time | dense |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, x in networks.items():
        cells = [cell for contender in CONTENDERS for cell in _reached(x[contender], x["latency"], contender)]
        dense = f"{1000 * x['latency']['dense'][1]:.0f} ms" if "dense" in x["latency"] else ""
        lines.append(f"| {' | '.join((name, *cells, dense))} |".replace("|  |", "| |"))
    return "\n".join(lines)


def _worked(outcomes: list[dict[str, Any]]) -> str:
    worked = [x for x in outcomes if not x["error"]]
    if all(x["error"] == NOT_INSTALLED for x in outcomes):
        return NOT_INSTALLED
    helped = sum(bool(x["way"]) for x in worked)
    return f"{len(worked)}, {helped} of them repaired by hand" if helped else f"{len(worked)}"


def _reached(outcomes: dict[str, Any], times: dict[str, Any], contender: str) -> tuple[str, str]:
    """The two sizes; and the time of the network with half of the FLOPs, in parts of the dense one's."""
    half, other = outcomes["flops"], outcomes["parameters"]
    if why := outcomes["ratio"]["error"] or half["error"]:
        return _line(why), ""
    sizes = f"{half['flops']:.2f}, {other['params']:.2f}" if not other["error"] else f"{half['flops']:.2f}, –"
    if "error" in times:
        return sizes, _line(times["error"])
    low, median, high = (t / times["dense"][1] for t in times[f"{contender} flops"])
    return sizes, f"{median:.2f} ({low:.2f}–{high:.2f})"


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")


def failures(content: dict[str, Any]) -> str:
    """A line for every attempt that failed."""
    tried = {
        **{
            f"{contender}: {name}": o for name, x in content["coverage"].items() for contender, o in x.items()
        },
        **{
            f"{contender}: {name}, {goal}": x[contender][goal]
            for name, x in content["networks"].items()
            for contender in CONTENDERS
            for goal in GOALS
        },
    }
    return "\n".join(f"{which}: {_line(x['error'])}" for which, x in tried.items() if x["error"])
