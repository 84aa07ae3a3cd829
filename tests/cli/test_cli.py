from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import prunefuse
from prunefuse.cli.app import app
from prunefuse.experiment.config import PRESETS, RunConfig
from prunefuse.experiment.run import RunInterrupted
from prunefuse.ops.loader import facts
from prunefuse.pruning._choose.scores import CRITERIA
from prunefuse.training import RECIPES

TINY = "run --model mlp --schedule 20,30 --epochs 1 --min-steps 0 --seeds 1 --device cpu --threads 1"


def call(line, *more):
    return CliRunner().invoke(app, [*shlex.split(line), *map(str, more)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "one"
    return call(TINY, "--out", out), out


@pytest.fixture
def asked(monkeypatch):
    """Keeps the configuration that `prunefuse run` would run, and runs nothing."""
    kept = []

    def stop(config, *, command, quiet):
        kept.append(config)
        raise OSError("stopped by the test")

    monkeypatch.setattr("prunefuse.experiment.run.run", stop)
    return kept


def test_version():
    result = call("--version")
    assert (result.exit_code, result.output) == (0, f"prunefuse {prunefuse.__version__}\n")


def test_help_names_every_command_and_groups_the_options():
    assert all(word in call("--help").output for word in ("run", "info", "report"))
    text = call("run", "--help").output
    for panel in (
        "What to run",
        "How much to label",
        "How to select",
        "The final network",
        "Training",
        "The run",
    ):
        assert panel in text


def test_info_prints_the_facts_of_the_loader_as_lines():
    lines = call("info").output.splitlines()
    assert len(lines) == len(facts())
    for line, (name, value) in zip(lines, facts().items(), strict=True):
        assert line.startswith(f"{name} ")
        assert line.endswith(value)
    assert (
        len({line.index(value) for line, value in zip(lines, facts().values(), strict=True)}) == 1
    )  # aligned


def test_a_run_ends_with_a_table_and_the_place_of_the_report(finished):
    result, out = finished
    assert result.exit_code == 0, result.output
    assert result.output.rstrip().endswith(f"Report: {out / 'report.html'}")
    assert "selection FLOPs" in result.output
    for arm in ("prunefuse", "dense", "random"):
        assert any(
            line.startswith(arm) and " 30 " in line and " %" in line for line in result.output.splitlines()
        )
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert config["command"].split()[0] == "prunefuse"


def test_quiet_prints_the_run_folder_alone(tmp_path):
    result = call(TINY, "--baselines", "none", "--quiet", "--out", tmp_path / "run")
    assert (result.exit_code, result.output.replace("\n", "")) == (0, str(tmp_path / "run"))


@pytest.mark.parametrize(
    "options",
    [
        "--strategy bald --dropout 0.2 --passes 2 --baselines dense,random",
        "--strategy badge --baselines none",
        "--strategy margin --stochastic power --beta 2 --class-balanced --baselines none",
        "--strategy {own}:largest --baselines none",
    ],
)
def test_strategies_from_the_command_line(options, tmp_path):
    own = tmp_path / "own.py"
    own.write_text("def largest(logits):\n    return logits.amax(1)\n")
    result = call(f"{TINY} {options.format(own=own)} --quiet", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    picks = next((tmp_path / "run").glob("prunefuse/*/picks.csv")).read_text(encoding="utf-8").splitlines()
    assert len(picks) == 1 + 30
    assert (tmp_path / "run/report.html").is_file()


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_strategy_of_ones_own_that_fails_is_told_in_a_line(tmp_path, jobs):
    own = tmp_path / "own.py"
    own.write_text("def largest(logits):\n    return {}['no such key']\n")
    result = call(
        f"{TINY} --strategy {own}:largest --baselines none --jobs {jobs} --quiet", "--out", tmp_path / "run"
    )
    assert result.exit_code == 1
    told = f"Error: strategy must return utilities, got from {own}:largest: KeyError: 'no such key'. The complete rounds"
    assert result.output.startswith(told)
    assert "Traceback" not in result.output


def test_report_draws_one_run_again_and_pools_several(finished, tmp_path, monkeypatch):
    _, out = finished
    (out / "report.html").unlink()
    result = call("report", out)
    assert (result.exit_code, (out / "report.html").is_file()) == (0, True)
    call(TINY, "--seed", 1, "--out", tmp_path / "two")
    monkeypatch.chdir(tmp_path)
    result = call("report", out, tmp_path / "two")
    assert result.exit_code == 0
    assert "2 seeds (0, 1)" in (tmp_path / "report.html").read_text(encoding="utf-8")
    result = call("report", out, "--out", tmp_path / "again.html")
    assert (result.exit_code, (tmp_path / "again.html").is_file()) == (0, True)


def test_run_alone_is_the_digits_preset(asked):
    call("run")
    assert asked == [RunConfig()]


def test_the_command_of_the_readme_is_understood(asked):
    call("run --data digits --model resnet20 --prune-ratio 0.5 --strategy margin --budget 20%")
    assert asked == [RunConfig(budget="20%")]


def test_options_override_their_preset_and_nothing_else(asked):
    call("run --preset cifar10-resnet56 --epochs 3 --strategy k_center --baselines none --seed 4 --seeds 2")
    call("run --schedule 5%,10% --no-fuse --no-distill --lr-schedule step --autocast --recipe cifar")
    first, second = asked
    paper = PRESETS["cifar10-resnet56"]
    assert (first.recipe.epochs, first.strategy, first.baselines, first.seeds) == (3, "k_center", (), (4, 5))
    assert (first.schedule, first.model, first.recipe.lr) == (paper.schedule, "resnet56", paper.recipe.lr)
    assert (second.schedule, second.fuse, second.distill) == (("5%", "10%"), False, False)
    assert (second.recipe.schedule, second.recipe.autocast, second.recipe.epochs) == (
        "step",
        True,
        RECIPES["cifar"].epochs,
    )


def test_every_criterion_of_the_library_can_be_chosen(asked):
    for name in CRITERIA:
        call("run --criterion", name)
    assert [config.criterion for config in asked] == list(CRITERIA)
    assert ", ".join(CRITERIA) in call("run --criterion l3").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--strategy", "bald", "--model", "mlp"],
            "strategy must not be bald, whose passes take dropout, where the selector has no dropout layers",
        ),
        (
            ["--strategy", "k_center", "--stochastic", "power"],
            "stochastic must be none for k_center, which has no utilities",
        ),
        (
            ["--strategy", "maxent"],
            "strategy must be one of random, least_confidence, margin, entropy, energy, logit_margin, bald, extrapolated_du, "
            "extrapolated_dual, extrapolated_tdds, extrapolated_el2n, extrapolated_loss, k_center, badge, "
            "typiclust, probcover, got 'maxent'",
        ),
        (
            ["--strategy", "badge", "--diversity", "k_means"],
            "diversity must be none for badge, which has no utilities",
        ),
        (["--preselect", "0"], "preselect must be at least 1, got 0"),
        (["--model", "resnet21"], "model must be one of resnet8"),
        (
            ["--data", "mnist"],
            "data must be one of digits, cifar10, cifar100, places365, imagenet, folder:PATH",
        ),
        (["--preset", "imagenet"], "preset must be one of digits, cifar10-resnet56"),
        (["--recipe", "imagenet"], "recipe must be one of cifar, digits"),
        (["--baselines", "dense,other"], "baselines must be any of dense, random, or none"),
        (["--budget", "0.2"], "budget must be a number of samples (1000) or a per cent of the pool (2%)"),
        (["--budget", "5000"], "budget 5000 is more than the pool has (1437 samples)"),
        (["--schedule", "2%,4%", "--rounds", "3"], "schedule already says every size"),
        (["--prune-ratio", "1"], "prune_ratio must be in [0, 1)"),
        (["--seeds", "0"], "seeds must be"),
        (["--epochs", "0"], "epochs"),
    ],
)
def test_a_wrong_value_is_one_message_and_exit_code_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("run", *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert result.output.startswith("Error: ")
    assert len(result.output.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_an_unknown_option_or_a_word_for_a_number_is_exit_code_2():
    assert call("run", "--no-such-option").exit_code == 2
    assert call("run", "--epochs", "many").exit_code == 2


def test_missing_data_are_one_message_and_exit_code_1(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("run", "--data", "cifar10")
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert "Traceback" not in result.output
    assert "download" in result.output


def test_a_path_that_is_no_run_is_one_message_and_exit_code_2(tmp_path):
    result = call("report", tmp_path)
    assert (result.exit_code, len(result.output.splitlines())) == (2, 1)
    assert "is not a run folder" in result.output


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "prunefuse.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"prunefuse {prunefuse.__version__}\n"


@pytest.mark.parametrize(
    ("rounds", "message"),
    [
        (0, "Stopped. To go on: prunefuse run --resume runs/x"),
        (2, "Stopped. To go on: prunefuse run --resume runs/x; `prunefuse report runs/x` draws what is done"),
    ],
)
def test_an_interrupted_run_says_what_there_is(rounds, message, monkeypatch):
    def interrupted(*_, **__):
        raise RunInterrupted(Path("runs/x"), rounds)

    monkeypatch.setattr("prunefuse.experiment.run.run", interrupted)
    result = call("run")
    assert (result.exit_code, result.output) == (130, f"{message}\n")


def test_ctrl_c_while_a_command_imports_what_it_needs_is_one_message(monkeypatch):
    class Interrupting:
        def find_spec(self, name, path=None, target=None):
            if name == "prunefuse.experiment.run":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "prunefuse.experiment.run")
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    result = call("run")
    message = "Stopped: nothing was written.\n"
    assert (result.exit_code, result.output) == (130, message)
