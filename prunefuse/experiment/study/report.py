"""The report of a study: what its runs found, with what certainty, and what they cost; as HTML, Markdown and CSV."""

from __future__ import annotations

from pathlib import Path

from prunefuse import _files as files
from prunefuse._extras import needed_for
from prunefuse._table import Table
from prunefuse.experiment import folder
from prunefuse.experiment.cost import FORMULA
from prunefuse.experiment.extrapolate.ledger import FORMULA as EXTRAPOLATED
from prunefuse.experiment.format import engineering
from prunefuse.experiment.study import pruned
from prunefuse.experiment.study.config import Study
from prunefuse.experiment.study.kind import KIND
from prunefuse.experiment.study.markdown import markdown
from prunefuse.experiment.study.results import Results, csv_of, read
from prunefuse.experiment.study.statistics import LEVEL, Difference, Mean, area, difference, mean_of
from prunefuse.experiment.study.units import told_option
from prunefuse.experiment.summary import Arm, Summary

with needed_for("a report"):
    from prunefuse.experiment.report import figures, page

_NEVER = "Accuracy is that of the last epoch on the test set, never of the best one."


def report(path: Path) -> Path:
    """Write report.html, report.md and results.csv of a study from what is done, and return the first.

    Raises:
        RunFolderError: ``path`` is no folder of a study, or nothing in it is done.
    """
    from prunefuse.experiment.study import flops

    if flops.is_computed(path):
        return flops.report(path)
    if _is_of_pruning(path):
        return pruned.report(path)
    results = read(path)
    files.write_text(path / "results.csv", csv_of(results))
    sections = _sections(results)
    top = _top(results)
    files.write_text(path / "report.md", markdown(results.study.title, top, sections))
    files.write_text(path / "report.html", page.document(results.study.title, top, sections))
    return path / "report.html"


def overview(path: Path) -> list[Table | str]:
    """Accuracy and cost of a study, and the differences, for a terminal.

    Raises:
        RunFolderError: as `report`.
    """
    from prunefuse.experiment.study import flops

    if flops.is_computed(path):
        return flops.overview(path)
    if _is_of_pruning(path):
        return [pruned.table(pruned.read(path, Study.from_plain(folder.read_facts(path)["config"])))]
    results = read(path)
    blocks: list[Table | str] = [accuracies(results)]
    if (paired := differences(results)).rows:
        blocks += ["", paired]
    return blocks


def _is_of_pruning(path: Path) -> bool:
    facts = folder.read_facts(path)
    return facts.get("kind") == KIND and facts["config"]["kind"] == "pruning"


def _top(results: Results) -> list[page.Block]:
    study = results.study
    top: list[page.Block] = [page.Text(study.about, "lead")] if study.about else []
    seeds = ", ".join(map(str, study.seeds))
    several = "s" if len(study.seeds) > 1 else ""
    top.append(page.Text(f"{len(results.units)} runs, each with seed{several} {seeds}.", "sub"))
    if results.facts["finished"] is None:
        top.append(page.Text("The study is not finished: this is what it has found so far.", "alert"))
    return top


def _sections(results: Results) -> list[page.Section]:
    sections = [page.Section("Accuracy and cost", [*_drawn(results), page.Data(accuracies(results))])]
    paired = differences(results)
    if paired.rows:
        note = (
            f"Differences are of networks with the same seed, which share their first labels and their order. n is the number "
            f"of seeds. The interval has the mean difference with {LEVEL:.0%} confidence, by Student's t, where seeds are all "
            "that varies: images for test are the same. A star marks one without zero in it; of many comparisons one in "
            "twenty has it by chance."
        )
        sections.append(page.Section("Paired differences", [page.Data(paired), page.Text(note)]))
    areas = area_table(results)
    if areas.rows:
        note = "The area under accuracy over labels, divided by its width: the mean accuracy, linear between sizes."
        sections.append(page.Section("Area under the budget curve", [page.Data(areas), page.Text(note)]))
    formula = EXTRAPOLATED if results.study.kind == "extrapolate" else FORMULA
    command = results.facts["command"] or "(started from Python)"
    facts = {**results.facts["versions"], **results.facts["machine"]}
    made: list[page.Block] = [
        page.Verbatim(command),
        page.Facts([(name.replace("_", " "), str(value)) for name, value in facts.items()]),
        page.Heading("How cost is counted"),
        page.Verbatim(formula),
        page.Text("Steps that several runs share are done once, and charged in full to each of them."),
    ]
    return [*sections, page.Section("How it was made", made)]


def accuracies(results: Results) -> Table:
    """A row for each run and size: mean ± standard deviation over seeds, and cost."""
    rows = []
    for unit in results.units:
        for labels in results.labels:
            found = results.at(unit.name, labels)
            if not found:
                continue
            costs = []
            for name in ("selection", "whole"):
                flops, seconds = (
                    mean_of([*results.at(unit.name, labels, f"{name}_{of}").values()])
                    for of in ("flops", "seconds")
                )
                costs += [engineering(flops.mean), f"{seconds.mean:.1f}"]
            accuracy = mean_of([*found.values()])
            rows.append([unit.label, f"{labels:,}", _told(accuracy), str(accuracy.n), *costs])
    size = "kept" if results.study.kind == "extrapolate" else "labels"
    head = ["run", size, "accuracy, %", "n", "selection FLOPs", "s", "whole FLOPs", "s"]
    return Table(head, rows)


def differences(results: Results) -> Table:
    """A row for each run, size and what it is compared with: the mean of paired differences in points, and its interval."""
    labels = {unit.name: unit.label for unit in results.units}
    rows = []
    shown: set[tuple[str, str]] = set()
    for unit in results.units:
        for other in unit.against:
            if (other, unit.name) in shown:
                continue
            shown.add((unit.name, other))
            for size in results.labels:
                found = difference(results.at(unit.name, size), results.at(other, size))
                if found is None or other not in labels:
                    continue
                ours, theirs = (results.at(name, size, "whole_flops") for name in (unit.name, other))
                ratio = mean_of([*ours.values()]).mean / mean_of([*theirs.values()]).mean
                rows.append([unit.label, labels[other], f"{size:,}", *_difference(found), f"{ratio:.2f}"])
    head = [
        "run",
        "against",
        "labels",
        "difference, points",
        f"{LEVEL:.0%} interval",
        "n",
        "whole FLOPs, ratio",
    ]
    return Table(head, rows, left=2)


def area_table(results: Results) -> Table:
    """Area under the budget curve of each run that has more than one size."""
    rows = []
    for unit in results.units:
        curves = {seed: results.curve(unit.name, seed) for seed in results.study.seeds}
        full = max((len(curve) for curve in curves.values()), default=0)
        found = [
            value for curve in curves.values() if len(curve) == full and (value := area(curve)) is not None
        ]
        if found:
            rows.append([unit.label, _told(mean_of(found)), str(len(found))])
    return Table(["run", "area, %", "n"], rows)


def _drawn(results: Results) -> list[page.Block]:
    blocks: list[page.Block] = []
    for what in results.study.draw:
        if what == "labels":
            blocks += _against_labels(results)
        elif what == "epochs":
            blocks += _over_epochs(results)
        elif what == "selection":
            blocks += _against_selection(results)
        else:
            blocks += _against_option(results, what)
    return blocks


def _summary(results: Results) -> Summary:
    """The runs of the loop as reports of single runs have them, under the labels of the study."""
    arms = []
    for unit in results.units:
        record = results.records.get(unit.name)
        if record is not None:
            folders = tuple(folder.trial_folder(record.path, one.arm, one.seed) for one in record.trials)
            arms.append(Arm(unit.label, unit.role, {}, record.trials, folders))
    order = ("main", "dense", "random")
    arms.sort(key=lambda arm: order.index(arm.role))
    return Summary(tuple(results.records.values()), tuple(arms), ())


def _against_labels(results: Results) -> list[page.Block]:
    if results.study.kind != "run" or len(results.labels) < 2:
        return []
    summary = _summary(results)
    bands = "Lines are means over seeds, bands reach from the lowest to the highest seed, dots are the seeds."
    return [
        page.Figure(
            figures.accuracy(summary),
            "Accuracy against labels and against FLOPs, a line for each run",
            f"{bands} {_NEVER}",
        ),
        page.Figure(
            figures.costs(summary),
            "FLOPs and seconds of selection and of the whole against labels, a line for each run",
            "The whole is selecting, and making one final network.",
        ),
    ]


def _over_epochs(results: Results) -> list[page.Block]:
    summary = _summary(results)
    if not summary.arms:
        return []
    last = summary.labels[-1]
    tested = "Accuracy is thick on the test set, thin on the labeled set."
    where = f"The final networks with {last:,} labels, means over seeds. {tested}"
    return [
        page.Figure(
            figures.training(summary, last), "Loss and accuracy over epochs, a line for each run", where
        )
    ]


def _against_selection(results: Results) -> list[page.Block]:
    """Accuracy at the largest size against the FLOPs of selecting it: a line for what is the same but for the variant."""
    last = results.labels[-1]
    lines: dict[str, dict[float, list[float]]] = {}
    for unit in results.units:
        found = [*results.at(unit.name, last).values()]
        flops = [*results.at(unit.name, last, "selection_flops").values()]
        if found and flops[0] > 0:
            grid = ", ".join(told_option(name, unit.options[name]) for name in results.study.grid)
            lines.setdefault(grid or "all runs", {})[flops[0]] = found
    if not any(len(points) > 1 for points in lines.values()):
        return []
    drawn = figures.against(lines, {}, "FLOPs of selection", engineering)
    caption = f"With {last:,} labels, every run that selects by a network. {_NEVER}"
    return [page.Figure(drawn, "Accuracy against the FLOPs of selecting", caption)]


def _against_option(results: Results, name: str) -> list[page.Block]:
    """Accuracy at the largest size against an option: a line for what is the same but for it; level ones for baselines."""
    last = results.labels[-1]
    lines: dict[str, dict[float, list[float]]] = {}
    for unit in results.units:
        found = [*results.at(unit.name, last).values()]
        value = unit.options.get(name)
        if found and unit.role == "main" and isinstance(value, int | float):
            label = unit.label.replace(f", {told_option(name, value)}", "")
            lines.setdefault(label, {})[float(value)] = found
    level = {
        unit.label: mean_of(found).mean
        for unit in results.units
        if unit.role != "main" and (found := [*results.at(unit.name, last).values()])
    }
    if not any(len(points) > 1 for points in lines.values()):
        return []
    caption = f"With {last:,} labels. Lines are means over seeds, dots are the seeds. {_NEVER}"
    words = name.rpartition(".")[2].replace("_", " ")
    drawn = figures.against(lines, level, words)
    return [page.Figure(drawn, f"Accuracy against {words}, a line for each kind of run", caption)]


def _told(found: Mean) -> str:
    spread = "" if found.deviation is None else f" ± {100 * found.deviation:.2f}"
    return f"{100 * found.mean:.2f}{spread}"


def _difference(found: Difference) -> list[str]:
    star = " *" if found.told else ""
    interval = (
        ""
        if found.interval is None
        else f"{100 * found.interval[0]:+.2f} to {100 * found.interval[1]:+.2f}{star}"
    )
    return [f"{100 * found.mean:+.2f}", interval, str(found.n)]
