"""Without the packages of the extra `cli`: the library works, and what needs one says so in a line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXTRA = ("jinja2", "matplotlib", "rich", "sklearn", "tomli", "typer")
PROJECT = (Path(__file__).parent.parent / "pyproject.toml").read_text()
HIDE = """
from importlib.machinery import PathFinder

find = PathFinder.find_spec


def find_others(name, path=None, target=None):
    return None if name.partition(".")[0] in {hidden} else find(name, path, target)


PathFinder.find_spec = staticmethod(find_others)
"""


@pytest.fixture
def without(tmp_path):
    """Runs Python in a new process that cannot find the modules named."""

    def run(hidden, *arguments):
        (tmp_path / "sitecustomize.py").write_text(HIDE.format(hidden=repr(tuple(hidden))))
        paths = [str(tmp_path), str(Path(__file__).parent.parent)]
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
        )

    return run


def command(*arguments):
    """The console script that is installed, with these arguments."""
    module, function = re.search(r'^prunefuse = "(.+):(.+)"$', PROJECT, re.MULTILINE).groups()
    return "-c", f"from {module} import {function}; {function}()", *arguments


@pytest.mark.parametrize(
    ("hidden", "arguments", "message"),
    [
        (EXTRA, ["run"], "prunefuse run needs typer"),
        (["typer"], ["--help"], "prunefuse needs typer"),
        (["rich"], ["run", "--quiet"], "a run needs rich"),
        (["sklearn"], ["run", "--quiet"], "the data set digits needs scikit-learn"),
        (["sklearn"], ["extrapolate", "--quiet"], "the data set digits needs scikit-learn"),
        (["jinja2"], ["report", "runs"], "a report needs jinja2"),
        (["matplotlib"], ["report", "runs"], "a report needs matplotlib"),
    ],
)
def test_a_command_says_in_one_line_what_is_missing(without, tmp_path, hidden, arguments, message):
    done = without(hidden, *command(*arguments))
    expected = f'Error: {message}, which is not installed: pip install "prunefuse[cli]"\n'
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)
    assert not [path for path in tmp_path.iterdir() if path.name not in ("sitecustomize.py", "__pycache__")]


@pytest.mark.parametrize("name", ["run", "extrapolate"])
def test_tensorboard_is_missed_before_the_data_are_read(without, tmp_path, name):
    done = without(["tensorboard"], *command(name, "--tensorboard", "--data", "folder:nowhere", "--quiet"))
    message = 'the option tensorboard needs tensorboard, which is not installed: pip install "prunefuse[tensorboard]"'
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"Error: {message}\n")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("module", "file"), [("h5py", "x.h5"), ("zarr", "x.zarr"), ("pyarrow", "x.parquet")])
def test_a_file_says_which_package_reads_it(without, module, file):
    done = without([module], *command("score", file, "--out", "out.csv"))
    expected = f'Error: {file} needs {module}, which is not installed: pip install "prunefuse[files]"\n'
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)


def test_the_command_by_module_says_the_same(without):
    done = without(EXTRA, "-m", "prunefuse.cli", "score", "logits.npy")
    expected = 'Error: prunefuse score needs typer, which is not installed: pip install "prunefuse[cli]"\n'
    assert (done.returncode, done.stderr) == (1, expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("from prunefuse.data import load; load('digits')", "the data set digits needs scikit-learn"),
        ("from prunefuse.experiment.report import report", "a report needs (jinja2|matplotlib)"),
        (
            "import torch; from prunefuse.extrapolation import ridge; ridge().fit(torch.randn(9, 2), torch.randn(9))",
            "a regression of scores needs scikit-learn",
        ),
    ],
)
def test_a_function_says_in_one_line_what_is_missing(without, call, message):
    code = f"from prunefuse.errors import MissingPackageError\ntry:\n    {call}\nexcept MissingPackageError as e:\n    print(e)"
    done = without(EXTRA, "-c", code)
    assert re.fullmatch(message + r', which is not installed: pip install "prunefuse\[cli\]"\n', done.stdout)


def test_scoring_planning_fusing_and_the_loop_need_none_of_them(without):
    code = """
import torch
import prunefuse
from prunefuse.data import TensorImages

torch.manual_seed(0)
dense = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
x = torch.randn(60, 8)
picks, _ = prunefuse.top_b(prunefuse.score(dense(x), ("margin", "entropy"))["margin"], 5)
plan = prunefuse.plan_pruning(dense, x[:2], ratio=0.5)
small = plan.extract(dense)
plan.fuse_(dense, small)
print(plan.summary())
model = lambda: torch.nn.Sequential(
    torch.nn.Flatten(), torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)
)
images = TensorImages(x.view(60, 1, 2, 4), torch.arange(60) % 3)
config = prunefuse.LoopConfig(
    schedule=(10, 20), strategy="margin", prune_ratio=0.5, recipe=prunefuse.Recipe(epochs=2, batch_size=8)
)
done = list(prunefuse.ActiveLearning(model, images, images, config))
print([round.labels for round in done], sum(cost.flops for cost in done[0].costs) > 0)
"""
    done = without((*EXTRA, "torchvision"), "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[10, 20] True"


def test_pyproject_and_the_messages_name_the_same_packages():
    from prunefuse._extras import PACKAGES

    for extra in {extra for _, extra in PACKAGES.values()}:
        listed = re.search(rf"^{extra} = \[(.+)\]$", PROJECT, re.MULTILINE).group(1)
        names = {
            re.match(r"[A-Za-z0-9-]+", text).group().removesuffix("-cpu")
            for text in re.findall('"(.+?)"', listed)
        }
        assert names == {package for package, its in PACKAGES.values() if its == extra}
