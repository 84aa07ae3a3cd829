"""Real processes killed at any moment: what goes on ends with the same files as what was never killed."""

from __future__ import annotations

import csv
import json
import os
import random
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prunefuse.experiment import folder, trial
from prunefuse.experiment.steps import read_done

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")

# Several rounds, trainings of several epochs with a checkpoint after each, and every kind of step.
RUN = (
    "run --model mlp --schedule 20,40,60,80 --epochs 12 --min-steps 0 --batch-size 8 --seeds 1 --threads 1 --device cpu "
    "--strategy badge --t-sync 2 --checkpoint-seconds 0"
)
EXTRAPOLATE = (
    "extrapolate --model mlp --score el2n --epochs 6 --min-steps 0 --batch-size 64 --threads 1 --device cpu --by knn,direct "
    "--compare full,random --prune-ratio 0.5 --fuse --checkpoint-seconds 0"
)
COMMANDS = {"run": RUN, "extrapolate": EXTRAPOLATE}


def command(line, *more):
    return [sys.executable, "-m", "prunefuse.cli", *shlex.split(line), *map(str, more)]


def hears_signals():
    """What a shell runs in the background ignores Ctrl-C, what nohup runs ignores SIGHUP, and so do their children."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def start(line, *more, **options):
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(line, *more),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=hears_signals,
        **options,
    )


def finish(line, *more):
    process = start(line, *more)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return errors


def results(out):
    """What a run found: files by name, and of records what is not a time."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.suffix == ".safetensors" or path.name in (
            "picks.csv",
            "kept.csv",
            "scores.csv",
            "plan.json",
            "embeddings.npy",
        ):
            found[name] = path.read_bytes()
        elif path.name == "done.json":
            done = read_done(path.parent)
            found[name] = {key: value for key, value in done.items() if key not in ("spent", "files")}
            found[name, "work"] = [
                {k: v for k, v in line.items() if k != "seconds"} for line in done["spent"]
            ]
        elif path.name == "state.json":
            found[name] = [
                (one.picks, one.utilities, one.final_accuracy, [e.loss for e in one.epochs])
                for one in trial.read_rounds(path.parent)
            ]
        elif path.name == "metrics.csv" and (out / "epochs.csv").exists():
            found[name] = path.read_bytes()
    ledger = json.loads((out / "ledger.json").read_text())
    for line in ledger["entries"]:
        del line["seconds"]
    return found | {"ledger.json": ledger}


def killed_until_done(kind, out, kills, rng, jobs=1):
    """Start a run, kill it after a random while, go on, and so on; after so many kills it may end."""
    line = COMMANDS[kind]
    for kill in range(kills):
        begun = (out / "config.json").exists()
        options = ("--jobs", jobs)
        process = start(f"{kind} --resume", out, *options) if begun else start(line, "--out", out, *options)
        # After some lines of its progress, and a while: so kills come in every part of it, however slow the machine is.
        for _, _ in zip(range(rng.randrange(7)), process.stderr, strict=False):
            pass
        try:
            process.communicate(timeout=rng.uniform(0.0, 1.5))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        if process.returncode == 0:
            return kill
        assert process.returncode == -signal.SIGKILL, errors
    if (out / "config.json").exists():
        finish(f"{kind} --resume", out)
    else:
        finish(line, "--out", out)
    return kills


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Results of runs that were never stopped, by kind."""
    found = {}

    def of(kind):
        if kind not in found:
            out = tmp_path_factory.mktemp("whole") / kind
            finish(COMMANDS[kind], "--out", out, "--jobs", 1)
            found[kind] = results(out)
        return found[kind]

    return of


@pytest.mark.parametrize("kind", ["run", "extrapolate"])
def test_random_kills_change_nothing(tmp_path, whole, kind):
    expected = whole(kind)
    killed_until_done(kind, tmp_path / "out", 2 if kind == "run" else 1, random.Random(7), jobs=1)
    assert results(tmp_path / "out") == expected
    # A kill after the end may leave the lock, which holds nobody.
    assert not [path for path in (tmp_path / "out").rglob(".*") if path != tmp_path / "out/.lock"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["run", "extrapolate"])
def test_many_random_kills_change_nothing(tmp_path, whole, kind, seed):
    expected = whole(kind)
    killed_until_done(kind, tmp_path / "out", 4, random.Random(seed), jobs=1 + seed % 2)
    assert results(tmp_path / "out") == expected
    # A kill after the end may leave the lock, which holds nobody.
    assert not [path for path in (tmp_path / "out").rglob(".*") if path != tmp_path / "out/.lock"]


def test_the_processes_of_a_killed_run_end_with_it(tmp_path, whole):
    out = tmp_path / "out"
    process = start(RUN, "--out", out, "--jobs", 2)
    for line in process.stderr:
        if "round 1/" in line:
            break
    process.send_signal(signal.SIGKILL)  # the parent alone
    process.wait()
    process.stderr.close()
    # At once, while its processes may still be ending; and with another number of them.
    finish("run --resume", out, "--jobs", 1)
    assert results(out) == whole("run")


def test_a_finished_run_is_left_as_it_is(tmp_path):
    out = tmp_path / "out"
    finish(
        "run --model mlp --schedule 20,30 --epochs 1 --min-steps 0 --seeds 1 --baselines none --device cpu --out",
        out,
    )
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*") if path.is_file()}
    done = subprocess.run(command("run --resume", out), capture_output=True, text=True, check=True)
    assert f"Report: {out / 'report.html'}" in done.stdout
    assert before == {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize(
    ("number", "kind", "jobs"),
    [
        (signal.SIGINT, "run", 1),
        (signal.SIGINT, "extrapolate", 2),
        (signal.SIGTERM, "run", 2),
        (signal.SIGHUP, "extrapolate", 1),
    ],
)
def test_signals_end_a_run_with_the_command_that_goes_on(tmp_path, number, kind, jobs):
    out = tmp_path / "out"
    process = start(COMMANDS[kind], "--out", out, "--jobs", jobs)
    for line in process.stderr:
        if "run folder" in line:
            break
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith(f"Stopped. To go on: prunefuse {kind} --resume {out}")


def test_a_run_that_goes_on_is_refused_to_others_and_told_by_status(tmp_path):
    out = tmp_path / "out"
    process = start(RUN, "--out", out, "--jobs", 1)
    for line in process.stderr:
        if "round 1/" in line:
            break
    process.send_signal(signal.SIGSTOP)
    refused = subprocess.run(command("run --resume", out), capture_output=True, text=True)
    told = subprocess.run(command("status", out), capture_output=True, text=True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert refused.returncode == 1
    assert f"in use by process {process.pid} on " in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert told.returncode == 0, told.stderr
    assert f"goes on, in process {process.pid}" in told.stdout
    assert "round" in told.stdout
    assert "where the time went" in told.stdout
    stopped = subprocess.run(command("status", out), capture_output=True, text=True)
    assert f"was stopped. To go on: prunefuse run --resume {out}" in stopped.stdout


def test_rows_of_the_tables_are_those_of_the_trials(tmp_path):
    out = tmp_path / "out"
    finish(
        "run --model mlp --schedule 20,30 --epochs 1 --min-steps 0 --seeds 2 --device cpu --jobs 2 --out", out
    )
    with (out / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["seed"], row["round"]) for row in rows] == [
        (arm, seed, index)
        for seed in ("0", "1")
        for arm in ("prunefuse", "dense", "random")
        for index in ("0", "1")
    ]
    assert [(one.arm, one.seed, len(one.rounds)) for one in folder.read(out).trials] == [
        (arm, seed, 2) for seed in (0, 1) for arm in ("prunefuse", "dense", "random")
    ]


def test_a_training_that_diverges_in_another_process_is_one_line(tmp_path):
    out = tmp_path / "out"
    process = start(f"{RUN} --lr 1e30 --seeds 2 --jobs 2 --out", out)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("Error: the training loss became")
    assert f"No round was complete; see {out}" in errors


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_process_that_dies_is_told_and_the_run_goes_on_later(tmp_path, whole):
    out = tmp_path / "out"
    process = start(RUN, "--out", out, "--jobs", 2)
    for line in process.stderr:
        if "round 1/" in line:
            break
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert "a process of the run ended with code -9" in errors.splitlines()[-1]
    finish("run --resume", out)
    assert results(out) == whole("run")
