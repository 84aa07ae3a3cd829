"""``prunefuse extrapolate``: the options of `ExtrapolateConfig`, and the one call they lead to."""

from __future__ import annotations

import shlex
import sys

import typer

from prunefuse.cli._options import ConfigFile, Given, Quiet, Resume, configure, configured, going_on
from prunefuse.cli.errors import reported
from prunefuse.experiment.extrapolate.config import ExtrapolateConfig


@configured(ExtrapolateConfig)
def extrapolate(
    *,
    config: ConfigFile = None,
    given: Given,
    resume: Resume = None,
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
            folder = go_on(resume, quiet=quiet, **going_on(given, {"config": config is not None}))
        else:
            wanted = configure(ExtrapolateConfig(), given, config, "extrapolate")
            folder = run(wanted, command=shlex.join(["prunefuse", *sys.argv[1:]]), quiet=quiet)
        if quiet:
            typer.echo(folder)
            return
        kept = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("by-*/keep-*/kept.csv"))
        places = f"Kept samples: {folder / kept[0]}", f"Report: {folder / 'report.html'}"
        show("", *overview_blocks(folder), "", *places)
