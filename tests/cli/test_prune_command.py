from __future__ import annotations

import shlex
import subprocess
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from peer_packages import skip_without
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from prunefuse.cli.app import app
from prunefuse.cli.prune_files import parse_target
from prunefuse.pruning import PruningPlan

BUILDER = """
import torch
from torch import nn
def build():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
def words():
    return nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 5))
number = lambda: 3
class Opaque(nn.Module):
    def forward(self, x):
        return x * int(torch.rand(()).item() > 2) if x.sum() > 0 else x
"""


def call(line, *more):
    return CliRunner().invoke(app, ["prune", *shlex.split(line), *map(str, more)])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "mynets.py").write_text(BUILDER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mynets", raising=False)
    return tmp_path


def test_half_the_flops_of_a_torchvision_name_and_loading_it_in_a_new_process(folder):
    result = call("resnet18 --target-flops 0.5 --num-classes 10 --input 1x3x64x64 --preset spa --out small")
    assert result.exit_code == 0, result.output
    plan = PruningPlan.load(folder / "small" / "plan.json")
    assert 0.49 < plan.flops[1] / plan.flops[0] <= 0.5
    assert plan.ranking == "global"
    assert plan.summary() in result.output
    assert sorted(path.name for path in (folder / "small").iterdir()) == [
        "model.json",
        "plan.json",
        "weights.safetensors",
    ]
    code = result.output.partition("To load it:")[2]
    check = "import torch; print(*model.eval()(torch.zeros(1, 3, 64, 64)).shape, sum(p.numel() for p in model.parameters()))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{check}"], capture_output=True, text=True, cwd=folder
    )
    assert done.stdout.split() == ["1", "10", str(plan.params[1])], done.stderr


def test_a_name_of_timm(folder, monkeypatch):
    made = []
    timm = types.ModuleType("timm")
    timm.__spec__ = ModuleSpec("timm", None)
    timm.list_models = lambda: ["convmixer_tiny"]
    timm.create_model = lambda name, **options: (
        made.append((name, options)) or torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 5))
    )
    monkeypatch.setitem(sys.modules, "timm", timm)
    for name in ("timm:convmixer_tiny", "convmixer_tiny"):
        result = call(f"{name} --num-classes 5 --input 1x4", "-o", f"small {len(made)}")
        assert result.exit_code == 0, result.output
        assert 'lambda: create_model("convmixer_tiny", num_classes=5)' in result.output
    assert made == [("convmixer_tiny", {"num_classes": 5})] * 2
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = call("timm:convmixer_tiny -o none")
    assert (
        result.output == "Error: model 'timm:convmixer_tiny' needs the package timm, which is not installed\n"
    )


@pytest.mark.parametrize("form", ["model.safetensors", "model.pth", "nested.pth", "parallel.pth"])
def test_a_checkpoint_and_a_function(folder, form):
    import importlib

    sys.path.insert(0, str(folder))
    state = importlib.import_module("mynets").build().state_dict()
    state["0.weight"][[1, 5]] = 9.0
    if form.endswith("safetensors"):
        save_file(state, form)
    else:
        parallel = {f"module.{name}": value for name, value in state.items()}
        forms = {"nested.pth": {"state_dict": state, "epoch": 3}, "parallel.pth": {"state_dict": parallel}}
        torch.save(forms.get(form, state), form)
    result = call(f"mynets:build --weights {form} --ratio 0.875 --input 2x3x8x8 -o small")
    assert result.exit_code == 0, result.output
    assert "no --weights" not in result.output
    assert torch.equal(load_file("small/weights.safetensors")["0.weight"], state["0.weight"][[1, 5]])
    assert "from mynets import build" in result.output


@pytest.mark.parametrize("prefix", ["module.", "module._orig_mod.", "net."])
def test_a_checkpoint_whose_names_all_begin_alike(folder, prefix):
    import importlib

    sys.path.insert(0, str(folder))
    state = importlib.import_module("mynets").build().state_dict()
    torch.save({"state_dict": {prefix + name: tensor for name, tensor in state.items()}}, "wrapped.pth")
    result = call("mynets:build --weights wrapped.pth --input 2x3x8x8 -o small")
    assert result.exit_code == 0, result.output
    small, kept = (
        load_file("small/weights.safetensors"),
        PruningPlan.load("small/plan.json").kept["0.weight"][0],
    )
    assert torch.equal(small["0.weight"], state["0.weight"][list(kept)])


def test_many_names_that_do_not_fit_are_told_in_a_line(folder):
    torch.save({f"layer{n}.weight": torch.zeros(1) for n in range(500)}, "other.pth")
    result = call("mynets:build --weights other.pth --input 2x3x8x8 -o small")
    assert result.exit_code == 2
    assert (
        "0.weight, 0.bias, 4.weight and 1 more are not in other.pth; layer0.weight, layer1.weight, layer2.weight and 497 more"
        in result.output
    )
    assert len(result.output) < 400


def test_options_reach_the_plan(folder):
    result = call(
        "mynets:words --input 1x6:int64 --criterion random --seed 3 --ranking global --ignore 3 --round-to 8 "
        "--target-parameters 400 -o small"
    )
    assert result.exit_code == 0, result.output
    plan = PruningPlan.load("small/plan.json")
    assert (plan.criterion, plan.seed, plan.ranking) == ("random", 3, "global")
    assert plan.params[1] <= 400
    assert plan.layers[1].width_after % 8 == 0
    assert "note: no --weights" in result.output


def test_heads_lose_channels_inside(folder):
    Path("tokens.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)\n"
        "    return nn.Sequential(nn.Linear(4, 8), layer, nn.Linear(8, 2))\n"
    )
    result = call("tokens:build --input 1x5x4 --heads inside -o small")
    assert result.exit_code == 0, result.output
    plan = PruningPlan.load("small/plan.json")
    assert plan.kept["1.self_attn.in_proj_weight"][0] != tuple(range(12))
    assert plan.scaled["1.self_attn.in_proj_weight"] == {0: tuple(range(8))}
    result = call("tokens:build --input 1x5x4 --heads half -o other")
    assert result.exit_code == 2
    assert "heads must be one of whole, inside, got 'half'" in result.output


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("resnet19", 2, "or an .onnx file, got 'resnet19'; did you mean resnet1"),
        ("torchvision:nothing", 2, "got 'torchvision:nothing'"),
        ("nonets:build", 2, "can be imported, got 'build' from 'nonets'"),
        ("mynets:nothing", 2, "can be imported, got 'nothing' from 'mynets'"),
        ("mynets:number", 2, "model must be a function that returns a module, got number, which returns int"),
        ("mynets:build --num-classes 3", 2, "num_classes must be left out beside a function"),
        ("mynets:build --input 3x", 2, "input must be a shape such as 1x3x224x224"),
        ("mynets:build --input 3x4:float31", 2, "input must be a shape such as"),
        ("mynets:build --ratio 0.5 --target-flops 0.5", 2, "target must be one of a ratio and the targets"),
        ("mynets:build --target-memory 0.5 --target-flops 0.5", 2, "target must be one of a ratio and the targets"),
        ("mynets:build --target-flops half", 2, "target-flops must be a number such as 0.5, got 'half'"),
        ("mynets:build --target-flops 5ms", 2, "target-flops must be a fraction below 1 or an amount, got '5ms'"),
        ("mynets:build --target-latency 5", 2, "an amount such as 5ms, got '5'"),
        ("mynets:build --target-flops 0.0001 --input 1x3x8x8", 2, "target must be at least 1,952 for flops, got 3.123"),
        ("mynets:build --criterion snip", 2, "for the criterion 'snip'"),
        ("mynets:build --ignore conv9", 2, "ignore must match modules, parameters or buffers of the model, got 'conv9'"),
        ("mynets:build --weights none.pth", 1, "No such file"),
        ("mynets:build --weights mynets.py", 2, "weights must be a checkpoint that is safe to read, got mynets.py"),
        ("mynets:build --weights other.safetensors", 2, "weights must fit the model, got other.safetensors"),
        ("mynets:build --weights whole.pth", 2, "which has a pickled torch.nn.modules.linear.Linear"),
        ("mynets:Opaque --input 2x2", 2, "nothing was pruned at ratio 0.5: planned by one run on the example inputs"),
        ("mynets:build --weights wide.pth", 2, "0.weight is (4, 3, 3, 3) in wide.pth and (16, 3, 3, 3) in the model"),
        ("mynets:build --input 1x4x8x8", 1, "the model cannot run, in module '0'"),
        ("net.onnx", 2, "model cannot be an ONNX file here"),
    ],
)  # fmt: skip
def test_an_error_is_one_line_and_nothing_is_written(folder, monkeypatch, line, code, message):
    monkeypatch.setitem(sys.modules, "prunefuse.onnx", None)
    save_file({"a": torch.zeros(1)}, "other.safetensors")
    torch.save(torch.nn.Linear(2, 2), "whole.pth")
    narrow = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), *[torch.nn.Identity()] * 3, torch.nn.Linear(4, 4))
    torch.save({f"module.{name}": tensor for name, tensor in narrow.state_dict().items()}, "wide.pth")
    result = call(line, "--out", "small")
    assert result.exit_code == code, result.output
    assert message in result.output
    assert result.output.startswith("Error: ")
    assert len(result.output.splitlines()) == 1
    assert not (folder / "small").exists()


@pytest.mark.parametrize("name", ["mynets:build", "net.onnx"])
def test_what_exists_is_not_overwritten(folder, name):
    (folder / "small").mkdir()
    result = call(name, "-o", "small")
    assert (result.exit_code, result.output) == (1, "Error: small exists and is not overwritten\n")
    assert not list((folder / "small").iterdir())


@pytest.fixture
def chain(folder):
    skip_without("onnx_ir")
    import numpy as np
    import onnx

    text = """<ir_version: 9, opset_import: ["" : 17]> g (float[N, A] x) => (float[N, 4] y) {
        a = MatMul (x, w1)
        b = Relu (a)
        y = MatMul (b, w2) }"""
    model = onnx.parser.parse_model(text)
    for name, shape in (("w1", (6, 40)), ("w2", (40, 4))):
        weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    onnx.save(model, "net.onnx")
    return folder


def test_an_onnx_file_takes_the_same_options(chain):
    import onnx

    line = "net.onnx --target-flops 0.5 --preset spa --criterion l1 --round-to 4 --input 1x6 -o small.onnx"
    result = call(line)
    assert result.exit_code == 0, result.output
    assert "40 -> 20" in result.output
    assert "flops at most 400: 800 -> 400 (0.500)" in result.output
    assert result.output.endswith("Written to small.onnx.\n")
    assert list(onnx.load("small.onnx").graph.initializer[0].dims) == [6, 20]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "shapes must have all sizes of the input x of shape"),
        ("--input 1x6 --weights w.pth", "weights must be left out for an ONNX file"),
        ("--input 1x6 --num-classes 3", "num_classes must be left out for an ONNX file"),
        ("--input 1x6 --target-latency 0.5", "target must be parameters, flops or memory for an ONNX file"),
        ("--input 1x6 --criterion snip", "criterion must be one of l2, l1, random, bn_scale, got"),
        ("--input 1x6 --heads inside", "heads must be whole for an ONNX file, got 'inside'"),
        ("--input 1x6 --ignore w3", "ignore must match nodes or tensors of the file, got 'w3'"),
    ],
)
def test_what_an_onnx_file_does_not_take_is_said(chain, options, message):
    result = call(f"net.onnx {options} -o small.onnx")
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert [path.name for path in chain.glob("*.onnx")] == ["net.onnx"]


@pytest.mark.parametrize(
    ("quantity", "text", "fraction", "at_most"),
    [
        ("flops", "0.5", 0.5, None),
        ("flops", "30%", 0.3, None),
        ("flops", "1.8e9", None, 1.8e9),
        ("parameters", "40000", None, 40000),
        ("latency", "0.5", 0.5, None),
        ("latency", "5ms", None, 0.005),
        ("latency", "0.5 ms", None, 0.0005),
        ("latency", "50%", 0.5, None),
    ],
)
def test_targets_as_text(quantity, text, fraction, at_most):
    target = parse_target(quantity, text)
    assert (target.quantity, target.fraction, target.at_most) == (quantity, fraction, at_most)
