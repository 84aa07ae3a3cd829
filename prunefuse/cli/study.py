"""``prunefuse study``: runs by a grid of options, and one report of all of them."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from prunefuse.cli.errors import reported

study = typer.Typer(
    name="study",
    help="Run a grid of configurations that share what they can, and report on all of them together.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
_Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Change an option of the study, as in its file; a list is a part of the grid, none leaves an option out. "
        "on=digits takes data, network and training from the settings of that data set. May be given several times.",
        metavar="KEY=VALUE",
        show_default=False,
    ),
]


@study.command("list")
def list_(
    name: Annotated[
        str | None, typer.Argument(help="Print the file of this study.", metavar="[NAME]", show_default=False)
    ] = None,
    copy: Annotated[
        Path | None,
        typer.Option("--copy", help="Write it to this new file instead.", metavar="FILE", show_default=False),
    ] = None,
) -> None:
    """Print the studies that come with the package; or the file of one, to copy and change."""
    with reported():
        from prunefuse._files import write_text
        from prunefuse._table import Table, show
        from prunefuse.errors import ConfigError
        from prunefuse.experiment.study.config import built_in, read_study, text_of

        if name is None:
            if copy is not None:
                raise ConfigError("copy must go with the name of a study, got none")
            show(Table((), [[one, read_study(one).about] for one in built_in()], left=2))
            return
        text = text_of(name)
        if copy is None:
            typer.echo(text, nl=False)
            return
        if copy.exists():
            raise ConfigError(f"copy must be a new file, got {copy}")
        write_text(copy, text)
        typer.echo(f"Study: {copy}")


@study.command("run")
def run_(
    name: Annotated[str, typer.Argument(help="A study by name, or a file.", metavar="STUDY")],
    set_: _Set = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder of the study. In one that is there, what is done is kept, and the rest is done.",
            metavar="PATH",
            show_default="studies/NAME",
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes side by side. Results do not depend on it.",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of seeds, from 0 on.", metavar="N", show_default="those of the study"
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", metavar=" ", help="Print what is to be done, its FLOPs and about how long it takes."
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", metavar=" ", help="Print nothing but the folder.")
    ] = False,
) -> None:
    """Carry out a study, or the rest of it, and draw its report."""
    with reported():
        from prunefuse._table import show
        from prunefuse.experiment.study._run import forecast, run
        from prunefuse.experiment.study.config import read_study
        from prunefuse.experiment.study.report import overview

        given = [*(set_ or ()), *([f"seeds={[*range(seeds)]}"] if seeds is not None else [])]
        wanted = read_study(name, given)
        if dry_run:
            show(*forecast(wanted, out, jobs=jobs).blocks())
            return
        folder = run(wanted, out, jobs=jobs, command=shlex.join(["prunefuse", *sys.argv[1:]]), quiet=quiet)
        if quiet:
            typer.echo(folder)
        else:
            show("", *overview(folder), "", f"Report: {folder / 'report.html'}")


@study.command("report")
def report_(
    folder: Annotated[Path, typer.Argument(help="Folder of a study, finished or not.", metavar="FOLDER")],
) -> None:
    """Draw the report again: report.html, report.md and results.csv, of what is done so far."""
    with reported():
        from prunefuse.experiment.study.report import report

        typer.echo(f"Report: {report(folder)}")
