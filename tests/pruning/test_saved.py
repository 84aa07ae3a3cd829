"""The folder of a small model: written whole or not at all, and loaded in another process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_surgery import Tied
from torch import nn

from prunefuse import _files as files
from prunefuse import models
from prunefuse.pruning import PruningPlan, load_pruned, plan_pruning
from prunefuse.pruning.plan import plan_of

IMAGE = torch.zeros(1, 3, 16, 16)
FACTORY = "prunefuse.models:resnet8"
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def pruned():
    dense = models.resnet8()
    plan = plan_pruning(dense, IMAGE, ratio=0.5)
    return plan, plan.extract(dense).eval()


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_folder_loads_in_a_new_process_and_gives_the_same_outputs(pruned, tmp_path):
    plan, small = pruned
    images = torch.randn(2, 3, 16, 16)
    assert plan.save_model(small, tmp_path / "new" / "small", FACTORY) == tmp_path / "new" / "small"
    files.save_tensors(tmp_path / "images.safetensors", {"x": images})
    program = (
        "import prunefuse, torch; from safetensors.torch import load_file\n"
        "model = prunefuse.load_pruned('new/small', trust=True).eval()\n"
        "prunefuse.save_tensors('y.safetensors', {'y': model(load_file('images.safetensors')['x'])})\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
    assert torch.equal(load_file(tmp_path / "y.safetensors")["y"], small(images))
    names = {path.name for path in (tmp_path / "new").rglob("*")}
    assert names == {"small", "weights.safetensors", "plan.json", "model.json"}
    assert PruningPlan.load(tmp_path / "new/small/plan.json") == plan


def test_a_name_is_imported_only_where_it_is_trusted(pruned, tmp_path, monkeypatch):
    plan, small = pruned
    (tmp_path / "builder.py").write_text(
        "open('ran', 'w').close()\nfrom prunefuse.models import resnet8 as build\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    plan.save_model(small, "small", "builder:build")
    with pytest.raises(
        ValueError, match=r"trust must be True to import and call builder:build, .* got False"
    ):
        load_pruned("small")
    assert same(load_pruned("small", factory=models.resnet8), small)
    assert not Path("ran").exists()  # neither saving nor loading has run it
    assert same(load_pruned(Path("small"), trust=True), small)
    assert Path("ran").exists()


def test_a_folder_without_a_name_needs_a_factory(pruned, tmp_path):
    plan, small = pruned
    for folder in ("with", "without"):
        plan.save_model(small, tmp_path / folder)
    (tmp_path / "without" / "model.json").unlink()  # as earlier versions of `prunefuse prune` wrote folders
    for folder in ("with", "without"):
        with pytest.raises(ValueError, match=r"factory must be a function .* names none"):
            load_pruned(tmp_path / folder, trust=True)
        assert same(load_pruned(tmp_path / folder, factory=models.resnet8), small)


def test_nothing_is_overwritten_and_nothing_is_half_written(pruned, tmp_path, monkeypatch):
    plan, small = pruned
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    for taken in ("mine", "file"):
        with pytest.raises(FileExistsError, match=rf"{taken} exists and is not overwritten"):
            plan.save_model(small, tmp_path / taken)
    plan.save_model(small, tmp_path / "empty")
    assert same(load_pruned(tmp_path / "empty", factory=models.resnet8), small)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "tensor_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        plan.save_model(small, tmp_path / "small")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "mine"]
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes"]


def test_a_folder_that_fills_while_another_is_written_stays(tmp_path):
    def write() -> None:
        with files.new_folder(tmp_path / "small") as temporary:
            (temporary / "theirs").write_text("")
            (tmp_path / "small").mkdir()
            (tmp_path / "small" / "mine").write_text("")

    with pytest.raises(FileExistsError, match="is not overwritten"):
        write()
    assert [path.name for path in tmp_path.rglob("*")] == ["small", "mine"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_keep_their_precision(pruned, tmp_path, dtype):
    plan = pruned[0]
    small = plan.extract(models.resnet8().to(dtype))
    plan.save_model(small, tmp_path / "small", FACTORY)
    again = load_pruned(tmp_path / "small", trust=True)
    assert same(again, small)
    assert {p.dtype for p in again.parameters()} == {dtype}


def test_tied_weights_are_stored_once(tmp_path):
    dense = Tied()
    plan = plan_pruning(dense, torch.zeros(1, 4))
    small = plan.extract(dense)
    plan.save_model(small, tmp_path / "small")
    assert len(load_file(tmp_path / "small/weights.safetensors").keys() & {"b.weight", "c.weight"}) == 1
    again = load_pruned(tmp_path / "small", factory=Tied)
    assert again.c.weight is again.b.weight
    assert same(again, small)


@pytest.mark.parametrize(
    ("factory", "error", "message"),
    [
        ("resnet8", ValueError, "factory must be package.module:function, got 'resnet8'"),
        ("a.b:c()", ValueError, "factory must be package.module:function"),
        ("os:system\n", ValueError, "factory must be package.module:function"),
        ("nowhere.at.all:build", ValueError, "factory must be of a module that can be found, got 'nowhere"),
        ("prunefuse.models:resnet9", ValueError, "factory must be a function that can be imported, got .*resnet9"),
        ("__main__:build", ValueError, "factory must be of a module that other programs can import"),
        (models.resnet8, TypeError, "factory must be the name package.module:function, got function"),
    ],
)  # fmt: skip
def test_names_that_cannot_be_imported_are_told_before_anything_is_written(
    pruned, tmp_path, factory, error, message
):
    plan, small = pruned
    with pytest.raises(error, match=message):
        plan.save_model(small, tmp_path / "small", factory)
    assert not list(tmp_path.iterdir())


def test_what_is_not_the_small_model_is_told(pruned, tmp_path):
    plan, small = pruned
    for wrong, message in (
        (models.resnet8(), r"small must be cut by this plan, where conv1\.weight has 8 at axis 0, got shape \(16, 3, 3, 3\)"),
        (nn.Linear(2, 2), r"small must be cut by this plan, .* got a model without it"),
        (plan.extract(models.resnet8()).to("meta"), "small must have values, got .* on the meta device"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            plan.save_model(wrong, tmp_path / "small")
    with pytest.raises(TypeError, match=r"small must be an nn\.Module, got str"):
        plan.save_model("small", small)
    with pytest.raises(TypeError, match="folder must be a path, got ResNet"):
        plan.save_model(small, small)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(factory="os:system('x')"), r"model\.json: factory must be package\.module:function"),
        (lambda c: c.update(factory=3), "factory must be package.module:function, got 3"),
        (lambda c: c.update(factory="prunefuse.models:gone"), "factory must be a function that can be imported"),
        (lambda c: c.update(factory="prunefuse.models:names"), r"factory must be a function that returns an nn\.Module"),
        (lambda c: c.update(version=2), "version of a model must be 1, got 2"),
        (lambda c: c.update(format="other"), "not the description of a model"),
    ],
)  # fmt: skip
def test_a_damaged_description_is_an_error(pruned, tmp_path, change, message):
    plan, small = pruned
    folder = plan.save_model(small, tmp_path / "small", FACTORY)
    content = json.loads((folder / "model.json").read_text())
    change(content)
    (folder / "model.json").write_text(json.dumps(content))
    with pytest.raises((ValueError, TypeError), match=message):
        load_pruned(folder, trust=True)


def test_arguments_that_do_not_go_together_are_told(pruned, tmp_path):
    plan, small = pruned
    folder = plan.save_model(small, tmp_path / "small", FACTORY)
    with pytest.raises(TypeError, match="plan and weights must be left out beside a folder"):
        load_pruned(folder, plan, small.state_dict())
    with pytest.raises(TypeError, match="source must be a folder beside factory="):
        load_pruned(models.resnet8, factory=models.resnet8)
    with pytest.raises(TypeError, match="trust must be True or False, got str"):
        load_pruned(folder, trust="yes")
    with pytest.raises(TypeError, match="plan must be a PruningPlan, got NoneType"):
        load_pruned(models.resnet8)
    with pytest.raises(TypeError, match="factory must be a function or class"):
        load_pruned()
    with pytest.raises(FileNotFoundError):
        load_pruned(tmp_path / "nowhere", trust=True)
    with pytest.raises(NotADirectoryError, match=r"plan\.json is a file, where a folder"):
        load_pruned(folder / "plan.json", trust=True)


@pytest.mark.parametrize(
    "prefixes", [["module."], ["model."], ["_orig_mod."], ["module.", "_orig_mod."], ["net.backbone."]]
)
@pytest.mark.parametrize("where", ["state", "pt", "safetensors", "inside", "no suffix"])
def test_checkpoints_with_prefixes_load(pruned, tmp_path, prefixes, where):
    plan, small = pruned
    state = {"".join(prefixes) + name: tensor for name, tensor in small.state_dict().items()}
    weights: object = state
    if where == "pt":
        torch.save(state, weights := tmp_path / "w.pt")
    elif where == "inside":
        torch.save({"state_dict": state, "epoch": 3, "optimizer": {}}, weights := tmp_path / "w.ckpt")
    elif where != "state":
        files.save_tensors(
            weights := tmp_path / f"w{'.safetensors' if where == 'safetensors' else ''}", state
        )
    assert same(load_pruned(models.resnet8, plan, weights), small)


def test_checkpoints_of_compiled_parts_load(pruned):
    plan, small = pruned
    state = {name.replace("stage1.0.", "stage1.0._orig_mod."): t for name, t in small.state_dict().items()}
    assert same(load_pruned(models.resnet8, plan, state), small)


def test_a_plan_file_of_version_3_loads_and_cuts():
    # Written by a version of the package that had the third format, from the weights below.
    plan = PruningPlan.load(HERE / "plan_version_3.json")
    dense = models.resnet8(in_channels=1)
    with torch.no_grad():
        for p in dense.parameters():
            p.copy_(torch.arange(p.numel()).flip(0).reshape(p.shape) % 97 / 97)
    small = plan.extract(dense)
    assert small.conv1.weight.shape == (8, 1, 3, 3)
    assert plan.params == (
        sum(p.numel() for p in dense.parameters()),
        sum(p.numel() for p in small.parameters()),
    )
    now = plan_pruning(dense, torch.zeros(1, 1, 8, 8), ratio=0.5)
    assert plan == replace(now, reads=None)
    assert plan_of(plan.to_text(), "again") == plan
    with pytest.raises(ValueError, match=r"of version 3 .* plan again with plan_pruning"):
        plan.fuse_(dense, small, "preserve")
    plan.fuse_(dense, small, "zero")
    assert torch.equal(small.conv1.weight, dense.conv1.weight[list(plan.kept["conv1.weight"][0])])


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_place_that_cannot_be_written_to_is_an_error(pruned, tmp_path):
    plan, small = pruned
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="Permission denied"):
        plan.save_model(small, tmp_path / "small")
