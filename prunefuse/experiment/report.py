"""report.html: what one or several runs found and what it cost, in one file that opens offline.

Only the files of the run folders are read, so a report can be drawn again, or for several runs together.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from html import escape
from os import PathLike
from pathlib import Path

from prunefuse import _files as files
from prunefuse.experiment import folder, markup, plots, sections
from prunefuse.experiment.extrapolate.record import is_extrapolation
from prunefuse.experiment.extrapolate.report import report as extrapolation
from prunefuse.experiment.format import duration, engineering, percent
from prunefuse.experiment.summary import Summary, summarize


def report(runs: Sequence[str | PathLike[str]], out: str | PathLike[str] | None = None) -> Path:
    """Draw the report of one run, or of several on the same data with their seeds pooled; of one of score extrapolation.

    Args:
        runs: Run folders.
        out: The file to write; None = ``report.html`` in the run folder, which takes a single run.

    Returns:
        The file written.

    Raises:
        RunFolderError: a folder cannot be read, or runs do not belong together.
        ValueError: no run, or several without ``out``.
    """
    if not runs or (out is None and len(runs) > 1):
        raise ValueError(f"out must be given for a report of several runs (there are {len(runs)})")
    if is_extrapolation(Path(runs[0])):
        if len(runs) > 1:
            raise folder.RunFolderError(
                f"{runs[0]} is of prunefuse extrapolate, whose reports are of one run"
            )
        return extrapolation(runs[0], out)
    path = Path(runs[0]) / "report.html" if out is None else Path(out)
    files.write_text(path, render(summarize([folder.read(Path(run)) for run in runs])))
    return path


def overview(run: str | PathLike[str]) -> str:
    """Accuracy and cost of selection of one run, as a table for a terminal."""
    return text_table(summarize([folder.read(Path(run))]))


def render(summary: Summary) -> str:
    """The report as HTML."""
    config = summary.runs[0].config
    title = f"{config['config']['model']} on {config['data']['name']}"
    body = [
        f"<h1>{escape(title)}</h1>",
        *_subtitle(summary),
        *_alerts(summary),
        *_tiles(summary),
        *sections.accuracy(summary),
        *sections.cost(summary),
        *sections.training(summary),
        *sections.widths(summary),
        *sections.settings(summary),
        *sections.reading(summary),
    ]
    return markup.page(f"prunefuse: {title}", body)


def text_table(summary: Summary) -> str:
    """Accuracy and cost of selection per arm and size, for a terminal."""
    rows = [["arm", "labels", "accuracy", "range", "seeds", "selection FLOPs", "seconds"]]
    for arm in summary.arms:
        for labels in arm.labels:
            found = arm.accuracy(labels, "final")
            spent = arm.selection(labels)
            if found is None or spent is None:
                continue
            seeds = len(found.values)
            span = f"{100 * found.low:.1f}-{100 * found.high:.1f}" if seeds > 1 else ""
            cost = engineering(spent[0].mean), f"{spent[1].mean:.1f}"
            rows.append([arm.label, str(labels), f"{100 * found.mean:.1f} %", span, str(seeds), *cost])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _subtitle(summary: Summary) -> list[str]:
    """What was compared on what, and when and where."""
    run = summary.runs[0].config
    config, data = run["config"], run["data"]
    selector = {
        "prunefuse": f"A network with {percent(config['prune_ratio'])} of its channels pruned",
        "dense": "The dense network itself",
    }.get(config["selector"], f"A {config['selector']}")
    others = {
        "dense": "the dense network selecting for itself (classic active learning)",
        "random": "random picks",
    }
    against = " and ".join(others[arm.role] for arm in summary.arms[1:] if arm.role in others)
    compared = f" Compared with {against}." if against else ""
    shape = "×".join(map(str, data["input_shape"]))
    seeds = sorted({seed for arm in summary.arms for seed in arm.seeds})
    several = f"{len(summary.runs)} runs, the first of " if len(summary.runs) > 1 else ""
    threads = run["machine"]["threads"]
    where = (
        f"{data['pool']:,} samples in the pool, {data['test']:,} for testing, {data['classes']} classes, {shape} · "
        f"{len(seeds)} seed{'s' if len(seeds) != 1 else ''} ({', '.join(map(str, seeds))}) · "
        f"{several}{datetime.fromisoformat(run['started']):%d %B %Y, %H:%M} · "
        f"{run['machine']['device_name']}, {threads} thread{'s' if threads != 1 else ''}"
    )
    strategy = config["strategy"].replace("_", " ")
    lead = f"{selector} selects what to label, by {strategy}.{compared}"
    return [f'<p class="lead">{escape(lead)}</p>', f'<p class="sub">{escape(where)}</p>']


def _alerts(summary: Summary) -> list[str]:
    found = []
    for run in summary.runs:
        if run.config["finished"] is None:
            found.append(f"{run.path.name} is not finished: these are its complete rounds so far.")
    for arm in summary.arms:
        if arm.unselectable():
            found.append(
                f"{arm.label}: up to {arm.unselectable():,} pool samples in one round had no utility (NaN) and "
                "could not be selected. Look for diverged training or broken samples."
            )
    if summary.repeated:
        found.append(f"Counted once although given twice: {', '.join(summary.repeated)}.")
    return [f'<p class="alert">{escape(text)}</p>' for text in found]


def _tiles(summary: Summary) -> list[str]:
    """Accuracy of every arm at the largest size all have, and what the first arm's selection saves."""
    labels = sections.last_common(summary)
    if labels is None:
        return []
    colors = plots.colors(summary.arms)
    main = summary.arms[0]
    tiles = []
    for arm in summary.arms:
        found = arm.accuracy(labels, "final")
        if found is not None:
            more = f"{sections.points(found.low)} to {sections.points(found.high)}, {len(found.values)} seeds"
            tiles.append(
                markup.tile(
                    arm.label,
                    f"{sections.points(found.mean)} %",
                    more if len(found.values) > 1 else "one seed",
                    colors[arm.label],
                )
            )
    dense = next((arm for arm in summary.arms if arm.role == "dense" and arm is not main), None)
    ours, theirs = main.selection(labels), dense.selection(labels) if dense else None
    if ours and theirs and ours[0].mean > 0:
        for index, what, name in ((0, "selection FLOPs", engineering), (1, "selection time", duration)):
            ratio = theirs[index].mean / ours[index].mean
            tiles.append(
                markup.tile(
                    what,
                    _compare(ratio),
                    f"{name(ours[index].mean)} against dense {name(theirs[index].mean)}",
                    colors[main.label],
                )
            )
    where = f"Test accuracy and cost of selection with {sections.size(labels, summary)} labeled."
    return [f'<div class="tiles">{"".join(tiles)}</div>', f'<p class="note">{escape(where)}</p>']


def _compare(ratio: float) -> str:
    """How much less the first arm takes than the dense one, which takes ``ratio`` times as much."""
    if 0.95 < ratio < 1.05:
        return "equal"
    return f"{ratio:.1f}× less" if ratio > 1 else f"{1 / ratio:.1f}× more"
