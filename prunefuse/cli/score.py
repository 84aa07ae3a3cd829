"""``prunefuse score``: its options, and the one call they lead to."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from prunefuse._names import LOGIT_STRATEGIES
from prunefuse.cli.errors import reported


def score(
    logits: Annotated[
        list[Path],
        typer.Argument(
            help="Files of logits, .npy or .safetensors, a row for each sample; folders of them, in natural order; "
            "or -, to read a list of files from standard input, one on each line.",
            metavar="LOGITS...",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="CSV file to write: index, utility, file, row. It must not exist. - is standard output.",
            metavar="PATH",
            show_default=False,
        ),
    ],
    strategy: Annotated[
        str,
        typer.Option("--strategy", "-s", help=f"Utility: {', '.join(LOGIT_STRATEGIES)}.", metavar="NAME"),
    ] = "entropy",
    top: Annotated[
        int | None,
        typer.Option(
            help="Write so many rows, best first. Left out, every row in order.",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="The files hold probabilities, not logits.", metavar=" ")
    ] = False,
    temperature: Annotated[float, typer.Option(help="Divides the logits.", metavar="X")] = 1.0,
    tensor: Annotated[
        str | None,
        typer.Option(
            help="Name of the logits in safetensors files that hold more than one tensor.",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print nothing but errors.", metavar=" ")
    ] = False,
) -> None:
    """Score the rows of files larger than memory, and write the most useful ones, or all, to a CSV file."""
    with reported():
        from prunefuse.cli.progress import RowsProgress
        from prunefuse.errors import ConfigError
        from prunefuse.selection._pool import score_pool

        paths = [file for path in logits for file in (_listed() if path == Path("-") else [path])]
        with RowsProgress(quiet=quiet) as progress:
            try:
                done = score_pool(
                    paths,
                    out,
                    strategy,
                    top=top,
                    probabilities=probabilities,
                    temperature=temperature,
                    tensor=tensor,
                    progress=progress,
                )
            except ValueError as error:  # of an option: the library says which, and what it can be
                raise ConfigError(str(error)) from error
        for file, rows in done.unselectable.items():
            progress.note(f"{file}: {rows:,} of its rows cannot be picked (NaN)")
        if not quiet:
            to = "standard output" if str(out) == "-" else out
            typer.echo(f"{done.written:,} of {done.rows:,} rows: {to}", err=str(out) == "-")


def _listed() -> list[Path]:
    return [Path(line) for line in sys.stdin.read().splitlines() if line.strip()]
