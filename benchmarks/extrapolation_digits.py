"""What extrapolated scores are worth on the digits: agreement, accuracy after pruning, and the whole cost.

``python -m benchmarks.extrapolation_digits RUN`` reads the folder of a finished run and writes
``results/extrapolation-digits.json`` and the tables of ``docs/extrapolation.md``; if RUN does not exist yet, it is run first
(a quarter of an hour on one core)::

    prunefuse extrapolate --model resnet8 --by knn,gnn,mlp,direct,random --compare full,random --keep 20%,50%,80% --seeds 3
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from prunefuse import _files as files
from prunefuse.experiment.extrapolate import ExtrapolateConfig, run
from prunefuse.experiment.extrapolate.ledger import spent
from prunefuse.experiment.extrapolate.record import ExtrapolateRecord, read

RESULTS = Path(__file__).parent / "results" / "extrapolation-digits.json"
PAGE = Path(__file__).parents[1] / "docs" / "extrapolation.md"
CONFIG = ExtrapolateConfig(
    model="resnet8",
    by=("knn", "gnn", "mlp", "direct", "random"),
    compare=("full", "random"),
    keep=("20%", "50%", "80%"),
    seeds=(0, 1, 2),
)
MARK = "<!-- tables: written by benchmarks/extrapolation_digits.py -->\n"


def results(record: ExtrapolateRecord) -> dict[str, Any]:
    """All that the tables say, and what it was measured on."""
    arms = {
        arm.name: {
            "label": arm.label,
            "keep": {
                str(keep): [
                    {
                        "accuracy": found["accuracy"],
                        "fewest_of_a_class": found["fewest_of_a_class"],
                        "flops": sum(flops for flops, _ in cost.values()),
                        "seconds": sum(seconds for _, seconds in cost.values()),
                        "phases": cost,
                    }
                    for seed, found in record.finals(arm, keep).items()
                    for cost in [spent(record.lines(seed), arm, keep)]
                ]
                for keep in record.config["keeps"]
            },
            "agreement": [
                {name: steps[arm.name].get(name) for name in ("options", "held_out", "unscored")}
                for steps in record.done.values()
                if "held_out" in steps.get(arm.name, {})
            ],
        }
        for arm in record.arms
    }
    facts = {
        name: record.config[name] for name in ("command", "started", "versions", "machine", "recipe", "keeps")
    }
    whole = {name: [steps[name]["accuracy"] for steps in record.done.values()] for name in ("full", "subset")}
    return {**facts, "pool": record.config["data"]["pool"], "accuracy": whole, "arms": arms}


def tables(found: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    keeps = [str(keep) for keep in found["keeps"]]
    head = [f"keep {int(keep) / found['pool']:.0%}" for keep in keeps]
    arms = found["arms"].values()

    def by_keep(cell: Callable[[list[dict[str, Any]]], str]) -> list[list[str]]:
        return [[arm["label"], *(cell(arm["keep"][keep]) for keep in keeps)] for arm in arms]

    accuracy = by_keep(lambda seeds: ", ".join(f"{100 * one['accuracy']:.1f}" for one in seeds))
    mean = by_keep(lambda seeds: f"{100 * statistics.mean(one['accuracy'] for one in seeds):.1f}")
    rarest = by_keep(lambda seeds: ", ".join(str(one["fewest_of_a_class"]) for one in seeds))
    flops = by_keep(lambda seeds: f"{statistics.mean(one['flops'] for one in seeds) / 1e9:.0f}")
    seconds = by_keep(lambda seeds: f"{statistics.mean(one['seconds'] for one in seeds):.0f}")
    agreement = []
    for arm in arms:
        if not arm["agreement"]:
            continue
        unscored = [one["unscored"] for one in arm["agreement"]]
        overlaps = [_each(one[keep]["overlap"] for one in unscored) for keep in keeps]
        measures = [_each(one[keeps[0]][name] for one in unscored) for name in ("pearson", "spearman")]
        held = _each(one["held_out"]["pearson"] for one in arm["agreement"])
        agreement.append([arm["label"], held, *measures, *overlaps])
    whole = {name: ", ".join(f"{100 * x:.1f}" for x in values) for name, values in found["accuracy"].items()}
    return "\n\n".join(
        (
            f"Accuracy on the test images in per cent, seed by seed (trained on all {found['pool']:,} samples: "
            f"{whole['full']}; F_s on its fifth: {whole['subset']}):",
            _markdown(["", *head], accuracy),
            "Means of these:",
            _markdown(["", *head], mean),
            "Agreement with full scores, seed by seed: Pearson's correlation on the held-out part of the subset, and on the "
            "unscored samples Pearson's, Spearman's, and how many of the kept are the same:",
            _markdown(
                ["", "held out", "unscored", "Spearman", *(f"overlap, {name}" for name in head)], agreement
            ),
            "What it cost altogether, in GFLOPs (means of seeds; the formula is in the report of every run):",
            _markdown(["", *head], flops),
            "In seconds (one thread of a machine that was busy with other work):",
            _markdown(["", *head], seconds),
            "Samples kept of the class that has fewest left, seed by seed:",
            _markdown(["", *head], rarest),
            f"`{found['command']}` ({found['started'][:10]}, {found['versions']['prunefuse']}, torch "
            f"{found['versions']['torch']}).",
        )
    )


def _each(values: Iterable[float | None]) -> str:
    return ", ".join("–" if value is None else f"{value:.2f}" for value in values)


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    """Run what is missing, and write results and tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of the run")
    folder: Path = parser.parse_args().run
    if not folder.exists():
        run(dataclasses.replace(CONFIG, out=str(folder)))
    found = results(read(folder))
    files.write_text(RESULTS, json.dumps(found, indent=1) + "\n")
    text = PAGE.read_text(encoding="utf-8")
    files.write_text(PAGE, text[: text.index(MARK)] + MARK + "\n" + tables(found) + "\n")


if __name__ == "__main__":
    main()
