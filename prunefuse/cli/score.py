"""``prunefuse score``: its options, and the one call they lead to."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunefuse._names import ENSEMBLE_STRATEGIES, LOGIT_STRATEGIES
from prunefuse.cli.errors import reported

if TYPE_CHECKING:
    from prunefuse.selection._pool import Members

_MEMBERS: dict[str, Members] = {"files": "files", "0": 0, "1": 1}


def score(
    logits: Annotated[
        list[Path],
        typer.Argument(
            help="Files of logits, a row for each sample: .npy, .npz, .safetensors, HDF5, Zarr, CSV or Parquet; folders of "
            "them, in natural order; or -, to read a list of files from standard input, one on each line.",
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
        str | None,
        typer.Option(
            "--strategy",
            "-s",
            help=f"Utility: {', '.join(LOGIT_STRATEGIES)}; of an ensemble {', '.join(ENSEMBLE_STRATEGIES)}; or k_center, "
            "where the files hold features. (entropy; of an ensemble bald)",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
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
    members: Annotated[
        str | None,
        typer.Option(
            help="The files are of an ensemble: `files`, each of LOGITS is a member; 0, arrays are (members, rows, classes); "
            "1, they are (rows, members, classes).",
            metavar="files|0|1",
            show_default=False,
        ),
    ] = None,
    labeled: Annotated[
        Path | None,
        typer.Option(
            help="Rows that have a label: never written, and centers of k_center. Text with an index on each line, CSV with "
            "a column index, or .npy with indices or a mask.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    exclude: Annotated[
        Path | None,
        typer.Option(
            help="Rows that are never written, in a file as for --labeled.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    sample: Annotated[
        str | None,
        typer.Option(
            help="Score only so many of the other rows, or a per cent of them, drawn at random by --seed.",
            metavar="N|P%",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="What --sample draws.", metavar="N", min=0)] = 0,
    tensor: Annotated[
        str | None,
        typer.Option(
            help="Name of the logits in files that hold more than one array.",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            help="Columns of CSV and Parquet to read, with commas. Left out, all but --id.",
            metavar="NAMES",
            show_default=False,
        ),
    ] = None,
    id: Annotated[
        str | None,
        typer.Option(
            "--id",
            help="Column of CSV and Parquet with the names of rows, written as a column id. Left out: the only column "
            "that looks so by its name, such as path.",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    header: Annotated[
        bool | None,
        typer.Option(
            "--header/--no-header",
            help="CSV begins with the names of columns. Left out: by what it looks like. Without names, columns are 0, 1, ...",
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
        from prunefuse.experiment.budgets import parse_size
        from prunefuse.selection._pool import score_pool

        paths = [file for path in logits for file in (_listed() if path == Path("-") else [path])]
        if members is not None and members not in _MEMBERS:
            raise ConfigError(f"members must be files, 0 or 1, got {members}")
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
                    columns=[name.strip() for name in columns.split(",")] if columns else (),
                    id=id,
                    header=header,
                    members=_MEMBERS[members] if members else None,
                    labeled=labeled,
                    exclude=exclude,
                    sample=None if sample is None else parse_size(sample, "sample"),
                    seed=seed,
                    progress=progress,
                )
            except ValueError as error:  # of an option: the library says which, and what it can be
                raise ConfigError(str(error)) from error
        for file, rows in done.unselectable.items():
            progress.note(f"{file}: {rows:,} of its rows cannot be picked (NaN)")
        if not quiet:
            to = "standard output" if str(out) == "-" else out
            of = f"{done.rows:,} rows" + (f", {done.scored:,} scored" if done.scored < done.rows else "")
            typer.echo(f"{done.written:,} of {of}: {to}", err=str(out) == "-")


def _listed() -> list[Path]:
    return [Path(line) for line in sys.stdin.read().splitlines() if line.strip()]
