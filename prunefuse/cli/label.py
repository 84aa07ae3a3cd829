"""``prunefuse label``: start, next, import, status, export and predict; each is one call of the library."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from prunefuse._names import LABEL_FORMATS
from prunefuse.cli._options import ConfigFile, Given, configure, configured
from prunefuse.cli.errors import reported
from prunefuse.experiment.config import WHAT
from prunefuse.experiment.labeling.config import FOR_TEXTS, LabelConfig
from prunefuse.experiment.loop_config import RUN

label = typer.Typer(
    name="label",
    help="Label images or texts with people: a network asks for those that it learns most from, and labels the rest.\n\n"
    "The cycle: `start` a project, then `next` writes a batch with a page for the browser, and `import` takes its labels. "
    "Again from `next`; `status`, `export` and `predict` at any time.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
Folder: TypeAlias = Annotated[Path, typer.Argument(help="Folder of the project.", metavar="DIR")]
Out: TypeAlias = Annotated[
    Path,
    typer.Option(
        "--out", "-o", help="File to write, which must not exist; - is standard output.", metavar="FILE"
    ),
]

Format: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help=f"Format of the file: {', '.join(LABEL_FORMATS)}. Left out: by its ending and content.",
        metavar="NAME",
        show_default=False,
    ),
]


@label.command()
@configured(LabelConfig)
def start(
    folder: Annotated[
        Path,
        typer.Argument(help="Folder to make, not among the images.", metavar="DIR", show_default=False),
    ],
    *,
    data: Annotated[
        Path,
        typer.Option(
            help="Folder of images, at any depth. Beside a folder `unlabeled`, folders named like classes are labels one has. "
            "Or a file of texts: CSV, TSV or JSON lines with a column of texts.",
            metavar="PATH",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ],
    classes: Annotated[
        str | None,
        typer.Option(
            help="Names of the classes, with commas. Left out: the class folders, or the classes of --labels.",
            metavar="NAMES",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Labels one has: CSV or JSON lines with path (from PATH) and label; of texts id and label. Or the file of "
            "texts itself, if it has a column label.",
            metavar="FILE",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            help="Fixes what is drawn, and how networks begin. (0)",
            metavar="N",
            min=0,
            rich_help_panel=RUN,
            show_default=False,
        ),
    ] = 0,
    config: ConfigFile = None,
    given: Given,
) -> None:
    """Make a project for the images of a folder, or the texts of a file. They stay as they are."""
    with reported():
        from prunefuse.experiment.labeling.project import start as make

        usual = FOR_TEXTS if data.expanduser().is_file() else LabelConfig()
        wanted = configure(usual, {**given, "seed": seed}, config, "label")
        names = None if classes is None else classes.split(",")
        made = make(folder, data, classes=names, labels=labels, config=wanted)
        have = len(made.given.keys() | made.told.keys())
        for path in made.skipped:
            typer.echo(f"left out, as it cannot be read: {path}")
        typer.echo(made.source.size(made.paths))
        if made.texts is not None:
            named = f"those of the column {made.texts.id}" if made.texts.id else "the numbers of rows"
            typer.echo(f"texts are those of the column {made.texts.text}; their names are {named}")
            if copies := made.texts.copies(made.paths):
                told = "1 text is" if copies == 1 else f"{copies} texts are"
                typer.echo(f"{told} the same as an earlier one")
        typer.echo(
            f"{len(made.paths)} {made.source.noun}s, {have} of them with a label; classes {', '.join(made.classes)}\n"
            f"Next: prunefuse label next {_quoted(made.folder)} -n 100 --out batch.csv"
        )


@label.command("next")
def next_(
    folder: Folder,
    *,
    count: Annotated[
        int, typer.Option("--count", "-n", help="How many images or texts.", metavar="N", show_default=True)
    ] = 100,
    out: Out = Path("batch.csv"),
    person: Annotated[
        str,
        typer.Option(
            "--for",
            help="Who is to label them: not what another was asked for and has not labeled yet.",
            metavar="NAME",
            show_default=False,
        ),
    ] = "",
    format: Format = None,
) -> None:
    """Write the images or texts to label next as CSV, and a page beside it that shows them and takes labels by keys.

    Those that have come into the folder or file are taken in. Where labels or samples are new, the network is trained first;
    after a kill the same command goes on. Or write the file of a tool, by the ending of --out or by --format.
    """
    with reported():
        from prunefuse.cli.progress import TrainingProgress
        from prunefuse.experiment.labeling.work import next_batch

        with TrainingProgress() as progress:
            batch = next_batch(
                folder, count, out, person=person, format=format, say=progress.note, listener=progress
            )
        if not batch.picks and batch.left:
            with_others = f"{batch.others} with others, who were asked for them (--for)"
            _say(f"Nothing is left to ask: {batch.left} {batch.noun}s are without a label, {with_others}")
        elif not batch.picks:
            _say(f"Nothing is left to label: every {batch.noun} has a label, or nobody can tell")
        elif batch.page is None:
            _say(f"{len(batch.picks)} {batch.noun}s to label: {batch.out}")
        else:
            typer.echo(
                f"{len(batch.picks)} {batch.noun}s to label; {batch.left} more are without a label\n"
                f'{batch.out}: fill the column label, ? being "cannot tell"; or open {batch.page}\n'
                f"Then: prunefuse label import {_quoted(folder)} {_quoted(batch.out)}"
            )


@label.command("import")
def import_(
    folder: Folder,
    file: Annotated[
        Path,
        typer.Argument(
            help="CSV with the columns path (or id, of texts) and label; or the file of a tool, by its ending or --format.",
            metavar="FILE",
        ),
    ],
    *,
    annotator: Annotated[
        str, typer.Option(help="Who labeled, where a line does not say.", metavar="NAME", show_default=False)
    ] = "",
    again: Annotated[
        bool,
        typer.Option(
            "--again",
            help="Take a file that was imported before as the last word on what was corrected since.",
        ),
    ] = False,
    format: Format = None,
) -> None:
    """Take the labels of a file: all of them, or none where a line is wrong. Empty is not labeled yet, ? is "cannot tell"."""
    with reported():
        from prunefuse.experiment.labeling.labels import import_labels

        done = import_labels(folder, file, annotator=annotator, again=again, format=format)
        typer.echo(f"{done.new} new, {len(done.changed)} changed, {done.empty} not labeled yet")
        for line in done.changed:
            typer.echo(f"  {line}")
        if done.kept:
            typer.echo(
                f"{file} was imported before: {len(done.kept)} of its labels were corrected since, and stay so "
                "(--again takes the file's)"
            )
            for line in done.kept:
                typer.echo(f"  not {line}")


@label.command()
def status(folder: Folder) -> None:
    """Print labels by class, what is open, what nobody can tell, disagreements, and the last training."""
    with reported():
        from prunefuse._table import Table, show
        from prunefuse.experiment.labeling.labels import status as found

        now = found(folder)
        rows = [
            (f"{now.noun}s", str(now.images)),
            ("labeled", str(now.labeled)),
            *((f"  {name}", str(count)) for name, count in now.labels.items()),
            ("open", str(now.open)),
            *((f"  asked of {name}", str(count)) for name, count in sorted(now.open_for.items()) if name),
            ("cannot tell", str(now.cannot_tell)),
            ("disagreements", str(len(now.disputed))),
            *((f"by {name or 'unnamed'}", str(count)) for name, count in now.annotators.items()),
            ("last training", _trained(now.trained)),
        ]
        if now.added:
            rows.append((f"new {now.noun}s, which `next` takes in", str(now.added)))
        if now.gone:
            rows.append((f"{now.noun}s no longer there", str(now.gone)))
        show(Table((), rows, left=2))
        if now.disputed:
            show("", Table((now.noun, "label", "votes"), now.disputed, left=3))


@label.command()
def export(folder: Folder, *, out: Out = Path("labels.csv"), format: Format = None) -> None:
    """Write the labels so far: path, label, votes, annotators, note. Or the labels alone, as the file of a tool."""
    with reported():
        from prunefuse.experiment.labeling.labels import export as write

        count = write(folder, out, format=format)
        _say(f"{count} labels: {out}")


@label.command()
def predict(folder: Folder, *, out: Out = Path("predictions.csv")) -> None:
    """Label the rest by the network, with probabilities; it is trained first where labels are new."""
    with reported():
        from prunefuse.cli.progress import TrainingProgress
        from prunefuse.experiment.labeling.work import predict as write

        with TrainingProgress() as progress:
            count = write(folder, out, say=progress.note, listener=progress)
        _say(f"{count} predictions: {out}")


def _trained(entry: object) -> str:
    return f"{entry['time']}, on {entry['labels']} labels" if isinstance(entry, dict) else "none"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _say(text: str) -> None:
    typer.echo(text, err=True)
