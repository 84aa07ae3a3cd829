"""The results of a study of pruning, and its report: a network before pruning, as pruned, and after fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunefuse import _files as files
from prunefuse._extras import needed_for
from prunefuse._table import Table
from prunefuse.errors import RunFolderError
from prunefuse.experiment import folder
from prunefuse.experiment.format import percent
from prunefuse.experiment.steps import read_done
from prunefuse.experiment.study.config import Study
from prunefuse.experiment.study.markdown import markdown
from prunefuse.experiment.study.statistics import mean_of
from prunefuse.experiment.study.units import named_by_folders, units_of

with needed_for("a report"):
    from prunefuse.experiment.report import figures, page

COLUMNS = (
    *("run", "method", "criterion", "flops_asked", "seed", "flops_kept"),
    *("dense_accuracy", "pruned_accuracy", "tuned_accuracy", "pruning_seconds"),
)


@dataclass(frozen=True)
class Pruned:
    """One method with one seed: accuracies before pruning, as pruned and after fine-tuning."""

    run: str
    method: str
    criterion: str
    flops_asked: float
    seed: int
    flops_kept: float
    dense_accuracy: float
    pruned_accuracy: float
    tuned_accuracy: float
    pruning_seconds: float


def read(path: Path, study: Study) -> list[Pruned]:
    """What the folder of a study has.

    Raises:
        RunFolderError: it has nothing yet.
    """
    found = []
    for unit in named_by_folders(path, units_of(study)):
        for seed in study.seeds:
            done = read_done(path / "trials" / unit.name / f"seed{seed}" / "prune")
            if done is not None:
                config = unit.config
                asked = (unit.label, config.method, config.criterion, config.flops, seed)
                values = (done[name] for name in ("flops", "dense", "pruned", "tuned", "seconds"))
                found.append(Pruned(*asked, *values))
    if not found:
        raise RunFolderError(f"{path} has no pruned network yet: there is nothing to report")
    return found


def table(found: Sequence[Pruned]) -> Table:
    """A row for each run: means over seeds, and the standard deviation after fine-tuning."""
    rows = []
    for run in dict.fromkeys(one.run for one in found):
        own = [one for one in found if one.run == run]
        tuned = mean_of([one.tuned_accuracy for one in own])
        spread = "" if tuned.deviation is None else f" ± {100 * tuned.deviation:.2f}"
        means = [
            mean_of([getattr(one, name) for one in own]).mean
            for name in ("dense_accuracy", "pruned_accuracy")
        ]
        seconds = mean_of([one.pruning_seconds for one in own]).mean
        rows.append(
            [
                run,
                percent(mean_of([one.flops_kept for one in own]).mean),
                *(f"{100 * mean:.2f}" for mean in means),
                f"{100 * tuned.mean:.2f}{spread}",
                str(tuned.n),
                f"{seconds:.2f}",
            ]
        )
    return Table(["run", "FLOPs kept", "before, %", "as pruned, %", "fine-tuned, %", "n", "s to prune"], rows)


def report(path: Path) -> Path:
    """Write report.html, report.md and results.csv from what is done, and return the first."""
    facts = folder.read_facts(path)
    study = Study.from_plain(facts["config"])
    found = read(path, study)
    rows = [{name: getattr(one, name) for name in COLUMNS} for one in found]
    files.write_text(path / "results.csv", files.csv_text(COLUMNS, rows))
    top: list[page.Block] = [page.Text(study.about, "lead")]
    if facts["finished"] is None:
        top.append(page.Text("The study is not finished: this is what it has found so far.", "alert"))
    panels = []
    for title, name in (("fine-tuned", "tuned_accuracy"), ("as pruned", "pruned_accuracy")):
        panels += figures.against(_lines(found, name), {}, f"FLOPs kept, {title}")
    note = "All methods start from the same trained networks. Accuracy is that of the last epoch on the test set."
    made = page.Verbatim(facts["command"] or "(started from Python)")
    sections = [
        page.Section(
            "Accuracy against FLOPs",
            [page.Figure(panels, "Accuracy against the FLOPs that stay", note), page.Data(table(found))],
        ),
        page.Section("How it was made", [made, page.Facts(sorted(facts["versions"].items()))]),
    ]
    files.write_text(path / "report.md", markdown(study.title, top, sections))
    files.write_text(path / "report.html", page.document(study.title, top, sections))
    return path / "report.html"


def _lines(found: Sequence[Pruned], name: str) -> Mapping[str, Mapping[float, list[float]]]:
    """Values by part of the FLOPs, of every method."""
    lines: dict[str, dict[float, list[float]]] = {}
    for one in found:
        label = one.run.partition(", flops")[0]
        lines.setdefault(label, {}).setdefault(one.flops_asked, []).append(getattr(one, name))
    return lines
