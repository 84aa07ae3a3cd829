"""The command ``prunefuse``.

Exit codes: 0 done, 1 the run failed, 2 a wrong option or argument, 130 interrupted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunefuse._table import Table, show
from prunefuse.cli.bench import bench
from prunefuse.cli.errors import reported
from prunefuse.cli.extrapolate import extrapolate
from prunefuse.cli.label import label
from prunefuse.cli.prune import prune
from prunefuse.cli.run import run
from prunefuse.cli.score import score
from prunefuse.cli.study import study
from prunefuse.version import __version__

app = typer.Typer(
    name="prunefuse",
    help="Prune a network at initialization, let the small one select what to label, fuse it back and train it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(run)
app.command()(bench)
app.command()(score)
app.command()(prune)
app.command()(extrapolate)
app.add_typer(label)
app.add_typer(study)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"prunefuse {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Options before the command."""


@app.command()
def info() -> None:
    """Print what a bug report needs: versions, the build, the instruction set, and the state of CUDA."""
    from prunefuse.ops.loader import facts

    show(Table((), list(facts().items()), left=2))


@app.command()
def status(
    run: Annotated[Path, typer.Argument(help="Run folder, of a run that goes on or not.", metavar="RUN")],
) -> None:
    """Print where a run is: phase, round, time left, where the time went; also while it runs."""
    with reported():
        from prunefuse.experiment.status import status as found

        show(*found(run))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; several are pooled.", metavar="RUN...")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="File to write.",
            metavar="PATH",
            show_default="report.html in the run folder; for several runs, in the current folder",
        ),
    ] = None,
) -> None:
    """Draw the report again, or one report of several runs, whose seeds are pooled."""
    with reported():
        from prunefuse.experiment.report import report as draw

        if out is None and len(runs) > 1:
            out = Path("report.html")
        typer.echo(f"Report: {draw(runs, out)}")


def main() -> None:
    """Entry point."""
    app()
