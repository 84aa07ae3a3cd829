"""``prunefuse run``: the options of `RunConfig`, and the one call they lead to."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from prunefuse._options import require
from prunefuse.cli._options import ConfigFile, Given, Quiet, Resume, configure, configured, going_on
from prunefuse.cli.errors import reported
from prunefuse.experiment.config import PRESETS, WHAT, RunConfig, check_sizes_given


@configured(RunConfig)
def run(
    *,
    preset: Annotated[
        str,
        typer.Option(
            help="Where options that are left out get their values: `digits` is bundled and takes minutes, "
            "`cifar10-resnet56` is the paper's set-up. Left out: `digits`, whose values are in parentheses below.",
            metavar="NAME",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ] = "digits",
    config: ConfigFile = None,
    given: Given,
    resume: Resume = None,
    quiet: Quiet = False,
) -> None:
    """Run an experiment and write its folder: PruneFuse, classic active learning and random picks, with a report.

    Without options this is the preset `digits`. A SIZE is a number of samples (1000) or per cent of the pool (2%).
    """
    with reported():
        from prunefuse._table import show
        from prunefuse.experiment.report import overview_blocks
        from prunefuse.experiment.run import resume as go_on
        from prunefuse.experiment.run import run as run_experiment

        if resume is not None:
            others = {"preset": preset != "digits", "config": config is not None}
            folder: Path = go_on(resume, quiet=quiet, **going_on(given, others))
        else:
            require(preset in PRESETS, "preset", f"one of {', '.join(PRESETS)}", preset)
            check_sizes_given(given)
            wanted = configure(PRESETS[preset], given, config, "run")
            folder = run_experiment(wanted, command=shlex.join(["prunefuse", *sys.argv[1:]]), quiet=quiet)
        if quiet:
            typer.echo(folder)
        else:
            show("", *overview_blocks(folder), "", f"Report: {folder / 'report.html'}")
