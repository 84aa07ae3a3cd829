"""``prunefuse extrapolate``: the options of `ExtrapolateConfig`, and the one call they lead to."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from prunefuse.cli._options import ConfigFile, Given, Quiet, configure, configured
from prunefuse.cli.errors import reported
from prunefuse.errors import ConfigError
from prunefuse.experiment.extrapolate.config import ExtrapolateConfig
from prunefuse.experiment.loop_config import RUN


@configured(ExtrapolateConfig)
def extrapolate(
    *,
    config: ConfigFile = None,
    given: Given,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on with the run in this folder, with its options.",
            metavar="PATH",
            rich_help_panel=RUN,
            show_default=False,
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Prune a data set: score a fraction by training on it, extrapolate to the rest, keep the best, train on those.

    Without options it runs on the bundled digits. A SIZE is a number of samples (1000) or per cent of all (20%).
    """
    with reported():
        from prunefuse._table import show
        from prunefuse.experiment.extrapolate import resume as go_on
        from prunefuse.experiment.extrapolate import run
        from prunefuse.experiment.report import overview_blocks

        if resume is not None:
            if more := [*given, *(["config"] if config else [])]:
                raise ConfigError(
                    f"resume goes on with the options of the run: leave out {more[0].replace('_', '-')}"
                )
            folder = go_on(resume, quiet=quiet)
        else:
            wanted = configure(ExtrapolateConfig(), given, config, "extrapolate")
            folder = run(wanted, command=shlex.join(["prunefuse", *sys.argv[1:]]), quiet=quiet)
        if quiet:
            typer.echo(folder)
            return
        kept = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("by-*/keep-*/kept.csv"))
        places = f"Kept samples: {folder / kept[0]}", f"Report: {folder / 'report.html'}"
        show("", *overview_blocks(folder), "", *places)
