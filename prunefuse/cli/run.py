"""``prunefuse run``: its options, and the one call they lead to."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from typing import Annotated, Any

import typer

from prunefuse.cli.errors import reported
from prunefuse.experiment.budgets import ConfigError
from prunefuse.experiment.config import CHOICES, PRESETS, RunConfig, override
from prunefuse.training import RECIPES, Recipe

_DIGITS = PRESETS["digits"]
# Told by two options, and kept as the list of them.
_SEEDS = {"seed": _DIGITS.seeds[0], "seeds": len(_DIGITS.seeds)}
_WHAT, _LABELS, _SELECT = "What to run", "How much to label", "How to select"
_FINAL, _TRAIN, _RUN = "The final network", "Training", "The run"


def _field(panel: str, name: str, help: str, *more: str, metavar: str | None = None) -> Any:
    """An option for one field. Left out, the preset decides; the help ends with what the preset ``digits`` has."""
    if name in _SEEDS:
        value: object = _SEEDS[name]
    else:
        value = getattr(_DIGITS if hasattr(_DIGITS, name) else _DIGITS.recipe, name)
    flag = f"--{name.replace('_', '-')}"
    if value is True:
        flag += f"/--no-{name.replace('_', '-')}"
    if name in CHOICES:
        help, metavar = f"{help}: {', '.join(CHOICES[name])}.", "NAME"
    elif isinstance(value, bool):
        metavar = " "
    shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    if value is not None and not isinstance(value, bool):
        help += f" ({shown})"
    return typer.Option(
        flag, *more, help=help, rich_help_panel=panel, metavar=metavar or "N", show_default=False
    )


def _split(text: str | None) -> tuple[str, ...] | None:
    """``"2%,10%"`` -> two sizes; ``none`` -> nothing."""
    if text is None:
        return None
    return () if text.strip() == "none" else tuple(part.strip() for part in text.split(","))


def run(
    preset: Annotated[
        str,
        typer.Option(
            help="Where options that are left out get their values: `digits` is bundled and takes minutes, "
            "`cifar10-resnet56` is the paper's set-up. Left out: `digits`, whose values are in parentheses below.",
            rich_help_panel=_WHAT,
            metavar="NAME",
            show_default=False,
        ),
    ] = "digits",
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
            "Dense network to train in the end, such as resnet20, wide_resnet16_4, vgg16_bn, mlp or torchvision:resnet18.",
            metavar="NAME",
        ),
    ] = None,
    shortcut: Annotated[
        str | None,
        _field(
            _WHAT,
            "shortcut",
            "Shortcut of the CIFAR ResNets: zero padding (A, their default) or 1x1 convolution (B).",
            metavar="A|B",
        ),
    ] = None,
    dropout: Annotated[
        float | None,
        _field(
            _WHAT,
            "dropout",
            "Rate of dropout before the last layer, which the strategy bald needs.",
            metavar="X",
        ),
    ] = None,
    baselines: Annotated[
        str | None,
        _field(
            _WHAT,
            "baselines",
            "What to compare with: dense, the dense network selecting by the same strategy; random picks; or none.",
            metavar="NAMES",
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        _field(
            _LABELS,
            "schedule",
            "Sizes of the labeled set, in samples or per cent of the pool, with commas; the first is drawn at random.",
            metavar="SIZES",
        ),
    ] = None,
    budget: Annotated[
        str | None,
        _field(
            _LABELS,
            "budget",
            "Where to stop. It cuts the schedule, or is added at its end.",
            "-b",
            metavar="SIZE",
        ),
    ] = None,
    initial: Annotated[
        str | None,
        _field(_LABELS, "initial", "First size; from there to the last in even steps.", metavar="SIZE"),
    ] = None,
    rounds: Annotated[
        int | None, _field(_LABELS, "rounds", "Number of even steps from the first size to the last.")
    ] = None,
    selector: Annotated[
        str | None,
        _field(
            _SELECT,
            "selector",
            "Network that selects: prunefuse, the dense one pruned; dense, that one itself; or any other model.",
            metavar="NAME",
        ),
    ] = None,
    prune_ratio: Annotated[
        float | None,
        _field(
            _SELECT,
            "prune_ratio",
            "Part of the channels removed from the selector, from 0 to below 1.",
            "-p",
            metavar="X",
        ),
    ] = None,
    strategy: Annotated[
        str | None,
        _field(
            _SELECT,
            "strategy",
            "What to label first, FILE.py:FUNCTION or MODULE:FUNCTION being your own utility of the logits",
            "-s",
        ),
    ] = None,
    passes: Annotated[
        int | None, _field(_SELECT, "passes", "Forward passes with dropout, for the strategy bald.")
    ] = None,
    stochastic: Annotated[
        str | None,
        _field(_SELECT, "stochastic", "Random batches that prefer a high utility, instead of the highest"),
    ] = None,
    beta: Annotated[
        float | None,
        _field(_SELECT, "beta", "How near random batches stay to the best one.", metavar="X"),
    ] = None,
    class_balanced: Annotated[
        bool | None,
        _field(_SELECT, "class_balanced", "As many of every predicted class as there are, the best of each."),
    ] = None,
    t_sync: Annotated[
        int | None,
        _field(
            _SELECT,
            "t_sync",
            "Prune the selector anew from the fused network every so many rounds; 0 is never.",
        ),
    ] = None,
    criterion: Annotated[
        str | None, _field(_SELECT, "criterion", "Score of a channel, of which the lowest are pruned")
    ] = None,
    rounding: Annotated[
        str | None, _field(_SELECT, "rounding", "Rounding of the number of channels kept")
    ] = None,
    fuse: Annotated[
        bool | None, _field(_FINAL, "fuse", "Start the final network from the selector's weights.")
    ] = None,
    complement: Annotated[
        str | None,
        _field(
            _FINAL,
            "complement",
            "Weights the selector does not have: the dense network's, drawn again, or zero",
        ),
    ] = None,
    distill: Annotated[
        bool | None, _field(_FINAL, "distill", "Train the final network with the selector as teacher.")
    ] = None,
    kd_lambda: Annotated[
        float | None,
        _field(_FINAL, "kd_lambda", "Weight of the labels' loss; the teacher's has the rest.", metavar="X"),
    ] = None,
    kd_temperature: Annotated[
        float | None, _field(_FINAL, "kd_temperature", "Temperature of the teacher.", metavar="X")
    ] = None,
    finals: Annotated[
        str | None, _field(_FINAL, "finals", "Sizes at which the final network is trained")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help=f"Training that the options below change: {', '.join(RECIPES)}. (digits)",
            rich_help_panel=_TRAIN,
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[int | None, _field(_TRAIN, "epochs", "Passes over the labeled set.")] = None,
    min_steps: Annotated[
        int | None, _field(_TRAIN, "min_steps", "Steps of training at least; small sets get more epochs.")
    ] = None,
    batch_size: Annotated[int | None, _field(_TRAIN, "batch_size", "Samples per step.")] = None,
    lr: Annotated[float | None, _field(_TRAIN, "lr", "Largest learning rate.", metavar="X")] = None,
    lr_schedule: Annotated[
        str | None,
        typer.Option(
            help=f"Learning rate over time: step, one-cycle. ({_DIGITS.recipe.schedule})",
            rich_help_panel=_TRAIN,
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    momentum: Annotated[float | None, _field(_TRAIN, "momentum", "Momentum of SGD.", metavar="X")] = None,
    nesterov: Annotated[bool | None, _field(_TRAIN, "nesterov", "Nesterov's momentum.")] = None,
    weight_decay: Annotated[
        float | None, _field(_TRAIN, "weight_decay", "L2 penalty on the weights.", metavar="X")
    ] = None,
    autocast: Annotated[
        bool | None, _field(_TRAIN, "autocast", "Compute in bfloat16 where it is safe.")
    ] = None,
    channels_last: Annotated[
        bool | None, _field(_TRAIN, "channels_last", "Memory format of images and weights.")
    ] = None,
    test_every_epoch: Annotated[
        bool | None,
        _field(
            _TRAIN, "test_every_epoch", "Test after every epoch, for the curves of the report; takes longer."
        ),
    ] = None,
    seed: Annotated[int | None, _field(_RUN, "seed", "First seed.")] = None,
    seeds: Annotated[
        int | None,
        _field(_RUN, "seeds", "Number of seeds, counted up from the first; every arm is run with each."),
    ] = None,
    device: Annotated[
        str | None, _field(_RUN, "device", "Where to compute, auto being the GPU if there is one")
    ] = None,
    threads: Annotated[
        int | None,
        _field(
            _RUN,
            "threads",
            "CPU threads. Left out: 1 for images as small as the digits, else as many as there are cores.",
        ),
    ] = None,
    workers: Annotated[int | None, _field(_RUN, "workers", "Processes that read images from disk.")] = None,
    out: Annotated[
        str | None,
        _field(_RUN, "out", "Run folder to make. Left out, a new one under runs/.", "-o", metavar="PATH"),
    ] = None,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", "-q", metavar=" ", help="Print nothing but the run folder.", rich_help_panel=_RUN
        ),
    ] = False,
) -> None:
    """Run an experiment and write its folder: PruneFuse, classic active learning and random picks, with a report.

    Without options this is the preset `digits`. A SIZE is a number of samples (1000) or per cent of the pool (2%).
    """
    given = {name: value for name, value in locals().items() if value is not None}
    with reported():
        from prunefuse._table import show
        from prunefuse.experiment.report import overview_blocks
        from prunefuse.experiment.run import run as run_experiment

        config = _configure(given)
        folder = run_experiment(config, command=shlex.join(["prunefuse", *sys.argv[1:]]), quiet=quiet)
        if quiet:
            typer.echo(folder)
        else:
            show("", *overview_blocks(folder), "", f"Report: {folder / 'report.html'}")


def _configure(given: dict[str, Any]) -> RunConfig:
    """The configuration that the options given stand for."""
    for name in ("schedule", "baselines"):
        if name in given:
            given[name] = _split(given[name])
    if "recipe" in given and given["recipe"] not in RECIPES:
        raise ConfigError(f"recipe must be one of {', '.join(RECIPES)}; got {given['recipe']!r}")
    if "recipe" in given:
        given["recipe"] = RECIPES[given["recipe"]]
    usual = PRESETS[given["preset"]].seeds if given["preset"] in PRESETS else (0,)
    first = given.pop("seed", usual[0])
    given["seeds"] = tuple(range(first, first + given.get("seeds", len(usual))))
    trained = {
        field.name: given.pop(option)
        for field in dataclasses.fields(Recipe)
        if (option := "lr_schedule" if field.name == "schedule" else field.name) in given
    }
    preset = given.pop("preset")
    del given["quiet"]
    return override(preset, given, trained)
