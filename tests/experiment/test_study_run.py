"""Studies carried out: each run once, to the same numbers as alone; stopped, gone on with, and added to."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import equal

from prunefuse.errors import ConfigError, DamagedFileError, RunFolderError, StudyInterrupted
from prunefuse.experiment import loop
from prunefuse.experiment.config import RunConfig
from prunefuse.experiment.folder import read as read_run
from prunefuse.experiment.report import report as draw
from prunefuse.experiment.run import LoopRun
from prunefuse.experiment.run import run as run_alone
from prunefuse.experiment.status import status
from prunefuse.experiment.study import Study, forecast, read_study, run
from prunefuse.experiment.study.report import overview, report
from prunefuse.experiment.study.results import read
from prunefuse.training import Recipe

RECIPE = {"epochs": 1, "batch_size": 16, "lr": 0.05, "schedule": "one-cycle"}
OPTIONS = {"data": "digits", "model": "mlp", "schedule": ["20", "40"], "strategy": "margin"}
OPTIONS |= {"device": "cpu", "threads": 1} | {f"recipe.{name}": value for name, value in RECIPE.items()}


def study(**changes: Any) -> Study:
    usual: dict[str, Any] = {
        "name": "tiny",
        "title": "Tiny",
        "seeds": (0, 1),
        "against": ("dense", "random"),
        "draw": (),
        "options": OPTIONS,
        "grid": {"prune_ratio": (0.5, 0.7)},
    }
    return Study(**(usual | changes))


FUSING = (
    {"name": "neither", "fuse": False, "distill": False},
    {"name": "fused", "distill": False},
    {"name": "drawn again", "complement": "reinit"},
    {"name": "distilled", "fuse": False},
)


def rows(path: Path, *, timed: bool = False) -> list[dict[str, str]]:
    with (path / "results.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if timed or "seconds" not in k} for row in found]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts trainings and trials."""
    counted: Counter[str] = Counter()
    train, do = loop.train, LoopRun.do

    def counting(*args: Any, **options: Any) -> Any:
        counted["trainings"] += 1
        return train(*args, **options)

    def doing(self: LoopRun, task: str, listener: Any) -> None:
        counted["trials"] += 1
        do(self, task, listener)

    monkeypatch.setattr(loop, "train", counting)
    monkeypatch.setattr(LoopRun, "do", doing)
    return counted


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(
        study(draw=("labels",)),
        tmp_path_factory.mktemp("studies") / "tiny",
        jobs=1,
        command="prunefuse study run tiny",
        quiet=True,
    )


def test_every_run_has_what_it_has_alone(tmp_path: Path) -> None:
    """Picks, accuracies, and weights to the bit, also where steps are another run's."""
    fused = study(grid={}, variants=FUSING, seeds=(0,), against=("neither",))
    path = run(fused, tmp_path / "study", jobs=1, quiet=True)
    found = read(path)
    assert [unit.label for unit in found.units] == [
        "neither",
        "dense",
        "random",
        "fused",
        "drawn again",
        "distilled",
    ]
    for unit in found.units:
        alone = run_alone(
            RunConfig(**{**vars(unit.config), "out": str(tmp_path / unit.name), "jobs": 1}), quiet=True
        )
        [ours], [theirs] = read_run(path / "trials" / unit.name).trials, read_run(alone).trials
        for one, other in zip(ours.rounds, theirs.rounds, strict=True):
            assert (one.picks, one.utilities, one.metrics) == (other.picks, other.utilities, other.metrics)
            assert [(c.phase, c.flops) for c in one.costs] == [(c.phase, c.flops) for c in other.costs]
        place = f"{ours.arm}/seed0/final.safetensors"
        weights = [load_file(folder / place) for folder in (path / "trials" / unit.name, alone)]
        assert all(equal(weights[0][name], value) for name, value in weights[1].items())


def test_steps_that_runs_share_are_done_once(tmp_path: Path, trained: Counter[str]) -> None:
    run(study(grid={}, variants=FUSING, seeds=(0,), against=()), tmp_path / "study", jobs=1, quiet=True)
    # Two sizes: 2 dense and 2 random networks, 2 selectors, and 2 final networks of each of four kinds; but of the first
    # size, whose labels are random, "neither" is the random network.
    assert trained["trainings"] == 2 + 2 + 2 + 4 * 2 - 1


def test_the_folder_has_runs_and_tables(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "config.json",
        "manifest.json",
        "report.html",
        "report.md",
        "results.csv",
        "shared",
        "trials",
    }
    facts = json.loads((finished / "config.json").read_text())
    assert facts["finished"]
    assert facts["kind"] == "study"
    found = rows(finished)
    assert len(found) == 4 * 2 * 2
    assert {row["run"] for row in found} == {"prunefuse, p 0.5", "prunefuse, p 0.7", "dense", "random"}
    for place in (finished / "trials").iterdir():
        record = read_run(place)  # as a run of its own
        assert record.config["finished"]
        assert (place / "ledger.json").is_file()


def test_the_report_has_means_differences_areas_and_drawings(finished: Path) -> None:
    text = (finished / "report.md").read_text()
    for title in (
        "Accuracy and cost",
        "Paired differences",
        "Area under the budget curve",
        "How it was made",
    ):
        assert f"## {title}" in text
    found = read(finished)
    ours, dense = found.units[0], found.units[1]
    values = [found.at(unit.name, 40) for unit in (ours, dense)]
    gain = sum(values[0][seed] - values[1][seed] for seed in (0, 1)) / 2
    line = next(line for line in text.splitlines() if line.startswith(f"| {ours.label} | dense | 40 |"))
    assert f"{100 * gain:+.2f}" in line
    assert "| 2 |" in line
    page = (finished / "report.html").read_text()
    assert page.count("<svg") == 6
    assert "prunefuse study run tiny" in page
    tables = overview(finished)
    assert len(tables[0].rows) == 4 * 2


def test_other_commands_know_a_study(finished: Path) -> None:
    assert draw([finished]) == finished / "report.html"
    assert status(finished)[0] == f"{finished} is finished: {finished / 'report.html'}"
    with pytest.raises(RunFolderError, match="is of prunefuse study, whose reports are of one folder alone"):
        draw([finished, finished], finished / "both.html")


def test_a_finished_study_is_left_as_it_is(finished: Path, trained: Counter[str]) -> None:
    before = rows(finished, timed=True)
    run(study(), finished, jobs=1, quiet=True)
    assert not trained
    assert rows(finished, timed=True) == before


def test_what_is_added_is_all_that_is_done(tmp_path: Path, trained: Counter[str]) -> None:
    path = tmp_path / "study"
    run(study(grid={"prune_ratio": (0.5,)}, seeds=(0,)), path, jobs=1, quiet=True)
    assert trained.pop("trials") == 3
    run(study(seeds=(0,)), path, jobs=1, quiet=True)  # one ratio more
    assert trained.pop("trials") == 1
    run(study(), path, jobs=1, quiet=True)  # one seed more
    assert trained.pop("trials") == 4
    assert len(list((path / "trials").iterdir())) == 4
    assert len(rows(path)) == 4 * 2 * 2
    run(
        study(grid={"prune_ratio": (0.7,)}, seeds=(1,)), path, jobs=1, quiet=True
    )  # less: nothing is lost, nor done
    assert trained["trials"] == 0
    assert {row["seed"] for row in rows(path)} == {"1"}
    assert all(read_run(place).config["config"]["seeds"] == [0, 1] for place in (path / "trials").iterdir())
    assert len(list((path / "trials").iterdir())) == 4


def test_longer_sizes_begin_with_the_steps_that_are_there(tmp_path: Path, trained: Counter[str]) -> None:
    path = tmp_path / "study"
    small = {"grid": {"prune_ratio": (0.5,)}, "seeds": (0,), "against": ()}
    run(study(**small, options={**OPTIONS, "baselines": []}), path, jobs=1, quiet=True)
    trained.clear()
    longer = {**OPTIONS, "baselines": [], "schedule": ["20", "40", "60"]}
    run(study(**small, options=longer), path, jobs=1, quiet=True)
    assert trained["trainings"] == 2  # a selector and a final network of the last size


def test_a_stopped_study_goes_on(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "study"
    train, left = loop.train, 9

    def stopping(*args: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return train(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", stopping)
        with pytest.raises(StudyInterrupted) as stopped:
            run(study(), path, jobs=1, quiet=True, command="prunefuse study run tiny")
    assert stopped.value.folder == path
    assert "not finished" in (path / "report.md").read_text()
    told = "\n".join(map(str, status(path)))
    assert f"{path} was stopped. To go on: prunefuse study run tiny" in told
    assert "1 of 4 runs are finished" in told
    assert 0 < len(rows(path)) < 16
    left = 10**9
    run(study(), path, jobs=1, quiet=True)
    assert rows(path) == rows(finished)
    assert "not finished" not in (path / "report.md").read_text()


def test_two_processes_find_what_one_does(finished: Path, tmp_path: Path) -> None:
    path = run(study(), tmp_path / "study", jobs=2, quiet=True)
    assert rows(path) == rows(finished)


def test_the_forecast_is_what_is_then_spent(tmp_path: Path) -> None:
    path, planned = tmp_path / "study", study(grid={}, variants=FUSING, seeds=(0,), against=())
    told = forecast(planned, path, jobs=1)
    assert (told.runs, told.trials) == (6, 6)
    assert told.seconds > 0
    assert not path.exists()
    run(planned, path, jobs=1, quiet=True)
    spent = [
        line["flops"]
        for place in (path / "shared").glob("*/done.json")
        for line in json.loads(place.read_text())["spent"]
    ]
    assert told.flops == pytest.approx(sum(spent))
    whole = [
        c.flops for u in read(path).records.values() for t in u.trials for r in t.rounds for c in r.costs
    ]
    assert told.alone == pytest.approx(sum(whole))
    assert told.flops < told.alone
    after = forecast(planned, path, jobs=1)
    assert (after.trials, after.flops, after.seconds) == (0, 0.0, 0.0)
    more = forecast(study(grid={"prune_ratio": (0.25,)}, seeds=(0,), against=()), path, jobs=2)
    assert more.trials == 1  # the pace is that of what is done
    assert more.seconds > 0


def test_accuracy_is_drawn_against_an_option(tmp_path: Path) -> None:
    drawn = study(
        draw=("prune_ratio", "epochs", "selection"),
        options={**OPTIONS, "schedule": ["20", "40"], "test_every_epoch": True},
    )
    page = (run(drawn, tmp_path / "study", jobs=1, quiet=True) / "report.html").read_text()
    assert page.count("<svg") == 4
    assert "Accuracy against prune ratio" in page
    assert "Accuracy against the FLOPs of selecting" in page


def test_a_shared_step_that_was_changed_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "study"
    one = study(grid={}, variants=FUSING[1:2], seeds=(0,), against=(), options={**OPTIONS, "baselines": []})
    run(one, path, jobs=1, quiet=True)
    for file in (path / "shared").glob("*/weights.safetensors"):
        file.write_bytes(file.read_bytes()[:-4] + b"abcd")
    two = study(grid={}, variants=FUSING[1:], seeds=(0,), against=(), options={**OPTIONS, "baselines": []})
    with pytest.raises(DamagedFileError, match=r"shared/.*/weights.safetensors was changed or is damaged"):
        run(two, path, jobs=1, quiet=True)


def test_other_folders_are_refused(tmp_path: Path, finished: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(RunFolderError, match="out must be a new folder or that of a study"):
        run(study(), tmp_path / "other", quiet=True)
    [single, *_] = (finished / "trials").iterdir()
    with pytest.raises(RunFolderError, match="of prunefuse run"):
        run(study(), single, quiet=True)
    with pytest.raises(RunFolderError, match="is not a folder of prunefuse study"):
        report(single)
    with pytest.raises(RunFolderError):
        report(tmp_path / "nowhere")


def test_nothing_is_written_where_a_run_is_not_possible(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not work on"):
        run(
            study(options={**OPTIONS, "model": "torchvision:resnet18", "image_size": 1}),
            tmp_path / "study",
            quiet=True,
        )
    assert not (tmp_path / "study").exists()


def test_score_extrapolation_is_a_study_too(tmp_path: Path) -> None:
    options = {
        "data": "digits",
        "model": "mlp",
        "score": "el2n",
        "subset": "20%",
        "keep": ["10%", "20%"],
        "by": ["knn", "direct"],
    }
    options |= {
        "compare": ["full", "random"],
        "device": "cpu",
        "threads": 1,
        "recipe.epochs": 2,
        "recipe.min_steps": 0,
    }
    wanted = Study("kept", "Kept", kind="extrapolate", seeds=(0,), against=("random",), options=options)
    path = run(wanted, tmp_path / "study", jobs=1, quiet=True)
    found = rows(path)
    assert len(found) == 4 * 2
    text = (path / "report.md").read_text()
    assert "| extrapolated by knn | random pruning | 143 |" in text
    assert Recipe().epochs == 181
    assert read_study("budgets").kind == "run"
