"""``prunefuse bench``: how fast this machine is, beside peers and physical limits."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from prunefuse.cli.errors import reported


def bench(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="Only cases with one of these in their name, such as score, float32 or k-center.",
            metavar="[WORD]...",
            show_default=False,
        ),
    ] = None,
    listed: Annotated[
        bool, typer.Option("--list", metavar=" ", help="Print the names of the cases and stop.")
    ] = False,
    device: Annotated[str, typer.Option(help="What to measure: cpu or cuda.", metavar="NAME")] = "cpu",
    json: Annotated[
        Path | None, typer.Option(help="Also write the results to this new file.", metavar="PATH")
    ] = None,
) -> None:
    """Measure the operators on this machine, beside the packages that are installed, plain torch and physical limits.

    All cases take about five minutes on two cores. Every result is checked first; exit code 1 if one of ours is wrong.
    """
    with reported():
        from prunefuse.bench import record, table
        from prunefuse.bench.cases import cases
        from prunefuse.bench.race import measure
        from prunefuse.errors import ConfigError
        from prunefuse.experiment.machine import resolve_device

        if device not in ("cpu", "cuda"):
            raise ConfigError(f"device must be cpu or cuda, got {device!r}")
        found = [
            case
            for case in cases(device)
            if not words or any(word.lower() in case.name.lower() for word in words)
        ]
        if not found:
            raise ConfigError(f"no case has {' or '.join(words or ())} in its name; --list prints them")
        if listed:
            typer.echo("\n".join(case.name for case in found))
            return
        target = resolve_device(device)
        if json is not None:
            record.require_new(json)
        results = []
        for case in found:
            results.append(measure(case, target))
            typer.echo(table.block(results[-1]) + "\n")
        typer.echo(table.summary(results))
        if json is not None:
            record.save(json, results, shlex.join(["prunefuse", *sys.argv[1:]]), target)
            typer.echo(f"\nResults: {json}")
        if not all(result.ours.matches for result in results):
            raise typer.Exit(1)
