"""report.html: what one or several runs found and what it cost, in one file that opens offline.

Only the files of the run folders are read, so a report can be drawn again, or for several runs together.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from prunefuse import _files as files
from prunefuse._extras import needed_for
from prunefuse._table import Table
from prunefuse.experiment import folder
from prunefuse.experiment.extrapolate.record import is_extrapolation
from prunefuse.experiment.extrapolate.record import read as read_extrapolation
from prunefuse.experiment.study.kind import is_study
from prunefuse.experiment.summary import summarize

with needed_for("a report"):
    from prunefuse.experiment.report import extrapolation, loop
    from prunefuse.experiment.report.loop import render, text_table

__all__ = ["overview", "overview_blocks", "render", "report", "text_table"]


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
    if len(runs) == 1 and out is None and is_study(Path(runs[0])):
        from prunefuse.experiment.study.report import report as report_study

        return report_study(Path(runs[0]))
    if is_extrapolation(Path(runs[0])):
        if len(runs) > 1:
            raise folder.RunFolderError(
                f"{runs[0]} is of prunefuse extrapolate, whose reports are of one run"
            )
        return extrapolation.report(runs[0], out)
    path = Path(runs[0]) / "report.html" if out is None else Path(out)
    files.write_text(path, render(summarize([folder.read(Path(run)) for run in runs])))
    return path


def overview_blocks(run: str | PathLike[str]) -> list[Table | str]:
    """Accuracy and cost of one run of either kind, as tables and lines between them; `prunefuse._table.show` prints them.

    Raises:
        RunFolderError: the folder cannot be read.
    """
    path = Path(run)
    if is_extrapolation(path):
        return extrapolation.overview(read_extrapolation(path))
    summary = summarize([folder.read(path)])
    return [loop.overview(summary), *loop.overview_of_metrics(summary)]


def overview(run: str | PathLike[str]) -> str:
    """The same as text."""
    return "\n".join(block if isinstance(block, str) else block.text() for block in overview_blocks(run))
