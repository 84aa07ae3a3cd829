"""What selecting costs, computed and not run: FLOPs up to some budgets with selectors of several widths.

The lines are those of the ledger: the same function says what a run will cost and what it has cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prunefuse import _files as files
from prunefuse import _lock, models
from prunefuse._extras import needed_for
from prunefuse._options import changed
from prunefuse._table import Table
from prunefuse.errors import ConfigError, RunFolderError
from prunefuse.experiment import folder, machine, rounds
from prunefuse.experiment.budgets import to_samples
from prunefuse.experiment.cost import FORMULA, Sizes, selection_cost
from prunefuse.experiment.format import engineering, percent
from prunefuse.experiment.loop_config import LoopConfig
from prunefuse.pruning import plan_pruning

if TYPE_CHECKING:
    from prunefuse.experiment.study.config import Study

with needed_for("a study"):
    from prunefuse.experiment.report import figures, page
    from prunefuse.experiment.study.markdown import markdown

_OWN = ("model", "image", "classes", "pool", "budgets")
_LOOP = ("schedule", "recipe", "strategy", "rounding", "prune_ratio")
COLUMNS = (
    "network",
    "selector",
    "prune_ratio",
    "flops_per_image",
    "budget",
    "labels",
    "selection_flops",
    "against_dense",
)


@dataclass(frozen=True)
class Cell:
    """FLOPs to select ``labels`` of the pool, with a selector of ``per_image`` FLOPs; without ``ratio`` the dense one."""

    network: str
    ratio: float | None
    per_image: float
    budget: str
    labels: int
    flops: float


def check(study: Study) -> None:
    """Raise ``ConfigError`` for a study whose options are not those of this kind."""
    if not study.variants:
        raise ConfigError("variant must be tables [[variant]], each a network, got none")
    for point in study.points():
        known = (*_OWN, *_LOOP)
        for name in point.options:
            if name.partition(".")[0] not in known:
                raise ConfigError(f"option must be one of {', '.join(known)}, got {name!r}")
        if missing := [
            name for name in ("model", "image", "classes", "pool", "budgets") if name not in point.options
        ]:
            raise ConfigError(f"variant {point.variant!r} must have {', '.join(missing)}, got none")
        _loop(point.options)


def _loop(options: Mapping[str, Any]) -> LoopConfig:
    plain = {name: value for name, value in options.items() if name in _LOOP}
    recipe = {name.partition(".")[2]: value for name, value in options.items() if name.startswith("recipe.")}
    config = changed(LoopConfig(("1",)), plain)
    return changed(config, {"recipe": recipe}) if recipe else config


@cache
def selector_flops(
    model: str, image: tuple[int, ...], classes: int, ratio: float, rounding: str
) -> tuple[float, float]:
    """FLOPs of an image in the dense network and in the selector, by the plan."""
    network = models.build(model, classes, image[0], image_size=(image[1], image[2]))
    wanted: dict[str, Any] = {"rounding": rounding}
    plan = plan_pruning(network.eval(), torch.zeros(1, *image), ratio=ratio, **wanted)
    return float(plan.flops[0]), float(plan.flops[1])


def cells(study: Study) -> Iterator[Cell]:
    """What every selector costs up to every budget, each network's dense one first."""
    seen: set[tuple[str, float | None]] = set()
    for point in study.points():
        options = point.options
        loop = _loop(options).for_pool(int(options["pool"]))
        image = tuple(options["image"])
        dense, small = selector_flops(
            options["model"], image, options["classes"], loop.prune_ratio, loop.rounding
        )
        name = point.variant or options["model"]
        for ratio, per_image in ((None, dense), (loop.prune_ratio, small)):
            if (name, ratio) in seen:
                continue
            seen.add((name, ratio))
            kind = changed(loop, {"selector": "dense"}) if ratio is None else loop
            sizes = Sizes(per_image, dense, 0, int(options["pool"]), 0)
            lines = list(rounds.planned_costs(kind, sizes))
            for budget in options["budgets"]:
                labels = to_samples(str(budget), int(options["pool"]), "budgets")
                yield Cell(name, ratio, per_image, str(budget), labels, selection_cost(lines, labels).flops)


def compute(study: Study, path: Path, command: str | None) -> Path:
    """Compute a study and write its folder; returns it.

    Raises:
        RunFolderError: ``path`` is a folder of something else.
    """
    new = not path.exists() or (path.is_dir() and not any(path.iterdir()))
    if not new and not is_computed(path):
        raise RunFolderError(f"out must be a new folder or that of such a study, got {path}")
    path.mkdir(parents=True, exist_ok=True)
    with _lock.locked(path):
        facts = {
            "format": folder.FORMAT,
            "kind": "study",
            "name": path.name,
            "command": command,
            "started": machine.now(),
            "finished": None,
            "config": study.plain(),
            "data": {},
            "versions": machine.describe_versions(),
            "machine": machine.describe_machine(torch.device("cpu")),
        }
        found = list(cells(study))
        folder.begin(path, facts)
        files.write_text(path / "results.csv", files.csv_text(COLUMNS, _rows(found)))
        folder.finish(path)
        _write(path, found)
    return path


def is_computed(path: Path) -> bool:
    """Whether a folder is of a study that is computed."""
    try:
        facts = folder.read_facts(path)
    except RunFolderError:
        return False
    return facts.get("kind") == "study" and facts["config"]["kind"] == "flops"


def report(path: Path) -> Path:
    """Draw the report again."""
    _write(path, _read(path))
    return path / "report.html"


def overview(path: Path) -> list[Table | str]:
    """What is in the report, for a terminal."""
    return [table(_read(path))]


def _rows(found: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    dense = {(one.network, one.budget): one.flops for one in found if one.ratio is None}
    for one in found:
        kind = "dense" if one.ratio is None else "pruned"
        ratio = "" if one.ratio is None else one.ratio
        cells = (one.network, kind, ratio, one.per_image, one.budget, one.labels, one.flops)
        yield dict(zip(COLUMNS, (*cells, one.flops / dense[one.network, one.budget]), strict=True))


def _read(path: Path) -> list[Cell]:
    return [
        Cell(
            row["network"],
            float(row["prune_ratio"]) if row["prune_ratio"] else None,
            float(row["flops_per_image"]),
            row["budget"],
            int(row["labels"]),
            float(row["selection_flops"]),
        )
        for row in files.read_csv(path / "results.csv")
    ]


def table(found: Sequence[Cell]) -> Table:
    """A row for every network and selector, a column for every budget, with the part of what the dense network takes."""
    budgets = list(dict.fromkeys(one.budget for one in found))
    flops = {(one.network, one.ratio, one.budget): one.flops for one in found}
    rows = []
    for network, ratio in dict.fromkeys((one.network, one.ratio) for one in found):
        per_image = next(one.per_image for one in found if (one.network, one.ratio) == (network, ratio))
        row = [network, "dense" if ratio is None else f"p = {ratio:g}", engineering(per_image)]
        for budget in budgets:
            own, dense = flops.get((network, ratio, budget)), flops.get((network, None, budget))
            part = "" if own is None or not dense or ratio is None else f" ({percent(own / dense)})"
            row.append("" if own is None else engineering(own) + part)
        rows.append(row)
    return Table(
        ["network", "selector", "FLOPs per image", *(f"to select {one}" for one in budgets)], rows, left=2
    )


def _write(path: Path, found: Sequence[Cell]) -> None:
    facts = folder.read_facts(path)
    title = facts["config"]["title"]
    top: list[page.Block] = [page.Text(facts["config"]["about"], "lead")]
    panels = []
    for network in dict.fromkeys(one.network for one in found):
        lines: dict[str, dict[float, float]] = {}
        for one in found:
            if one.network == network:
                label = "dense" if one.ratio is None else f"p = {one.ratio:g}"
                lines.setdefault(label, {})[one.labels] = one.flops
        panels += figures.flops_to_select(network, lines)
    sections = [
        page.Section(
            "FLOPs to select",
            [
                page.Figure(
                    panels,
                    "FLOPs of selection against labels, a line for each selector",
                    "Axes are logarithmic.",
                ),
                page.Data(table(found)),
                page.Verbatim(FORMULA),
            ],
        ),
        page.Section("How it was made", [page.Verbatim(facts["command"] or "(started from Python)")]),
    ]
    files.write_text(path / "report.md", markdown(title, top, sections))
    files.write_text(path / "report.html", page.document(title, top, sections))
