"""``prunefuse extrapolate``: its options, and the one call they lead to."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from prunefuse.cli.errors import reported
from prunefuse.experiment.budgets import ConfigError
from prunefuse.experiment.extrapolate.config import BY, CHOICES, COMPARED, ExtrapolateConfig, with_recipe
from prunefuse.training import RECIPES, Recipe

_DEFAULTS = ExtrapolateConfig()
_WHAT, _SCORES, _PRUNED, _FINAL = "What to prune", "Scores", "A pruned F_s", "What is kept"
_TRAIN, _RUN = "Training", "The run"


def _field(panel: str, name: str, help: str, *more: str, metavar: str = "N") -> Any:
    """An option for one field of the configuration; the help ends with its default."""
    value = getattr(_DEFAULTS, name)
    if name in CHOICES:
        help, metavar = f"{help}: {', '.join(CHOICES[name])}.", "NAME"
    if isinstance(value, bool):
        metavar = " "
    elif value not in (None, ()):
        help += f" ({','.join(map(str, value)) if isinstance(value, tuple) else value})"
    flag = f"--{name.replace('_', '-')}"
    return typer.Option(flag, *more, help=help, rich_help_panel=panel, metavar=metavar, show_default=False)


def _trained(flag: str, help: str, metavar: str = "N") -> Any:
    return typer.Option(flag, help=help, rich_help_panel=_TRAIN, metavar=metavar, show_default=False)


def extrapolate(
    data: Annotated[
        str | None,
        _field(
            _WHAT,
            "data",
            "Data set: digits, cifar10, cifar100, places365, imagenet; folder:PATH with train/CLASS/IMAGE, test/CLASS/IMAGE.",
            metavar="NAME",
        ),
    ] = None,
    root: Annotated[
        str | None, _field(_WHAT, "root", "Folder of the data sets that are not bundled.", metavar="PATH")
    ] = None,
    download: Annotated[
        bool | None, _field(_WHAT, "download", "Fetch the data set if it is not there.")
    ] = None,
    model: Annotated[
        str | None,
        _field(
            _WHAT,
            "model",
            "Network, such as resnet20, or resnet18 and others of torchvision.",
            metavar="NAME",
        ),
    ] = None,
    subset: Annotated[
        str | None,
        _field(_SCORES, "subset", "How much is scored, by training F_s on it alone.", metavar="SIZE"),
    ] = None,
    subset_balanced: Annotated[
        bool | None, _field(_SCORES, "subset_balanced", "As many samples of every class in it as there are.")
    ] = None,
    score: Annotated[str | None, _field(_SCORES, "score", "What is scored; the highest are kept")] = None,
    recorded: Annotated[
        str | None, _field(_SCORES, "recorded", "Forward passes whose outputs are scored")
    ] = None,
    by: Annotated[
        str | None,
        _field(
            _SCORES,
            "by",
            f"How the others get scores, one or several, with commas: {', '.join(BY)}.",
            metavar="NAMES",
        ),
    ] = None,
    compare: Annotated[
        str | None,
        _field(
            _SCORES,
            "compare",
            f"What to run beside it, with commas: {', '.join(COMPARED)} (scores from training on everything, random "
            "pruning).",
            metavar="NAMES",
        ),
    ] = None,
    prune_ratio: Annotated[
        float | None, _field(_PRUNED, "prune_ratio", "Part of the channels removed from F_s.", metavar="X")
    ] = None,
    criterion: Annotated[str | None, _field(_PRUNED, "criterion", "What ranks the channels")] = None,
    fuse: Annotated[
        bool | None,
        _field(_PRUNED, "fuse", "Start the final training from F_s, fused into the dense network."),
    ] = None,
    complement: Annotated[
        str | None, _field(_PRUNED, "complement", "Weights outside F_s when it is fused")
    ] = None,
    keep: Annotated[
        str | None,
        _field(_FINAL, "keep", "Size of the pruned data set, or several, with commas.", metavar="SIZES"),
    ] = None,
    keep_balanced: Annotated[
        bool | None, _field(_FINAL, "keep_balanced", "As many samples of every class as there are.")
    ] = None,
    recipe: Annotated[
        str | None,
        _trained("--recipe", f"{', '.join(RECIPES)}; left out, that of the data set.", metavar="NAME"),
    ] = None,
    epochs: Annotated[int | None, _trained("--epochs", "Passes over the samples.")] = None,
    min_steps: Annotated[
        int | None, _trained("--min-steps", "Steps at least: few samples get more passes.")
    ] = None,
    batch_size: Annotated[int | None, _trained("--batch-size", "Samples per step.")] = None,
    lr: Annotated[float | None, _trained("--lr", "Largest learning rate.", metavar="X")] = None,
    weight_decay: Annotated[
        float | None, _trained("--weight-decay", "L2 penalty on the weights.", metavar="X")
    ] = None,
    autocast: Annotated[
        bool | None, _trained("--autocast", "Compute in bfloat16 where it is safe.", metavar=" ")
    ] = None,
    channels_last: Annotated[
        bool | None, _trained("--channels-last", "Memory format of images and weights.", metavar=" ")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="First seed. (0)", rich_help_panel=_RUN, metavar="N", show_default=False),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            help="Number of seeds, counted up from the first. (1)",
            rich_help_panel=_RUN,
            metavar="N",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str | None, _field(_RUN, "device", "Where to compute, auto being the GPU if there is one")
    ] = None,
    threads: Annotated[int | None, _field(_RUN, "threads", "CPU threads.")] = None,
    workers: Annotated[int | None, _field(_RUN, "workers", "Processes that read images from disk.")] = None,
    out: Annotated[
        str | None,
        _field(_RUN, "out", "Run folder to make. Left out, a new one under runs/.", "-o", metavar="PATH"),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on with the run in this folder, with its options.",
            rich_help_panel=_RUN,
            metavar="PATH",
            show_default=False,
        ),
    ] = None,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", "-q", metavar=" ", help="Print nothing but the run folder.", rich_help_panel=_RUN
        ),
    ] = False,
) -> None:
    """Prune a data set: score a fraction by training on it, extrapolate to the rest, keep the best, train on those.

    Without options it runs on the bundled digits. A SIZE is a number of samples (1000) or per cent of all (20%).
    """
    given = {name: value for name, value in locals().items() if value is not None}
    del given["quiet"]
    with reported():
        from prunefuse._table import show
        from prunefuse.experiment.extrapolate import resume as go_on
        from prunefuse.experiment.extrapolate import run
        from prunefuse.experiment.report import overview_blocks

        if resume is not None:
            if len(given) > 1:
                more = next(name for name in given if name != "resume").replace("_", "-")
                raise ConfigError(f"resume goes on with the options of the run: leave out {more}")
            folder = go_on(resume, quiet=quiet)
        else:
            folder = run(_configure(given), command=shlex.join(["prunefuse", *sys.argv[1:]]), quiet=quiet)
        if quiet:
            typer.echo(folder)
            return
        kept = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("by-*/keep-*/kept.csv"))
        places = f"Kept samples: {folder / kept[0]}", f"Report: {folder / 'report.html'}"
        show("", *overview_blocks(folder), "", *places)


def _configure(given: dict[str, Any]) -> ExtrapolateConfig:
    """The configuration that the options given stand for."""
    for name in ("by", "keep", "compare"):
        if name in given:
            given[name] = tuple(part.strip() for part in given[name].split(",") if part.strip())
    first = given.pop("seed", 0)
    count = given.get("seeds", 1)
    given["seeds"] = tuple(range(first, first + count))
    if "recipe" in given:
        if given["recipe"] not in RECIPES:
            raise ConfigError(f"recipe must be one of {', '.join(RECIPES)}; got {given['recipe']!r}")
        given["recipe"] = RECIPES[given["recipe"]]
    trained = {f.name: given.pop(f.name) for f in dataclasses.fields(Recipe) if f.name in given}
    return with_recipe(given, trained)
