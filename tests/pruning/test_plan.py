"""Plans: what they promise about models, files and arguments."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from pruning_oracle import assert_pruning_is_masking, scramble_
from torch import nn

from prunefuse import models
from prunefuse.pruning import Layer, PruningPlan, plan_pruning

IMAGE = torch.zeros(2, 3, 16, 16)


@pytest.fixture(scope="module")
def plan() -> PruningPlan:
    return plan_pruning(models.resnet8(), IMAGE, ratio=0.7)


def test_planning_changes_neither_the_model_nor_the_generators():
    model = scramble_(models.resnet14()).train()
    model.stage1.eval()
    model.bn1.weight.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    values = copy.deepcopy(model.state_dict())
    tensors = {name: (id(t), t._version) for name, t in model.state_dict(keep_vars=True).items()}
    state = torch.get_rng_state()
    plan_pruning(model, IMAGE, criterion="random")
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    assert {name: (id(t), t._version) for name, t in model.state_dict(keep_vars=True).items()} == tensors
    assert all(torch.equal(t, values[name]) for name, t in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_plan_does_not_depend_on_mode_dtype_or_batch():
    model = scramble_(models.resnet8())
    one = plan_pruning(model.train(), IMAGE)
    other = plan_pruning(model.eval().to(torch.float64), IMAGE[:1].double())
    assert (one.kept, one.layers, one.attributes, one.fingerprint) == (
        other.kept,
        other.layers,
        other.attributes,
        other.fingerprint,
    )


def test_ratio_none_is_one_half(plan):
    model = models.resnet8()
    assert plan_pruning(model, (IMAGE,)) == plan_pruning(model, [IMAGE], ratio=0.5)
    assert plan_pruning(model, IMAGE).ratio == 0.5


def test_ratio_zero_keeps_everything():
    model = models.resnet8()
    plan = plan_pruning(model, IMAGE, ratio=0)
    assert plan.kept == {}
    assert plan.attributes == {}
    assert plan.params[0] == plan.params[1]
    small = plan.extract(model).state_dict()
    assert all(torch.equal(small[name], tensor) for name, tensor in model.state_dict().items())


def test_the_file_holds_the_plan(plan, tmp_path):
    path = tmp_path / "new folder" / "plan.json"
    plan.save(path)
    assert PruningPlan.load(path) == plan
    content = json.loads(path.read_text())
    assert (content["format"], content["version"]) == ("prunefuse plan", 4)
    assert content["kept"]["stage1.0.conv1.weight"]["1"] == list(plan.kept["conv1.weight"][0])
    assert list(tmp_path.rglob("*")) == [path.parent, path]


def test_a_file_read_on_its_own_cuts_the_same_model(plan, tmp_path):
    plan.save(tmp_path / "plan.json")
    dense = scramble_(models.resnet8())
    one, other = plan.extract(dense), PruningPlan.load(tmp_path / "plan.json").extract(dense)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert one.stage2[0].shortcut.pad.left == other.stage2[0].shortcut.pad.left < 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.update(version=1), "version of a plan must be 3 to 4, got 1"),
        (lambda p: p.update(format="other"), "not a pruning plan"),
        (lambda p: p.pop("fingerprint"), "unknown ['fingerprint']"),
        (lambda p: p.update(extra=1), "unknown ['extra']"),
        (lambda p: p.update(ratio="much"), "plan.ratio must be float, got 'much'"),
        (lambda p: p["kept"].update(x={"0": [1, 1]}), "kept['x'][0] must be increasing indices"),
        (lambda p: p["kept"].update(x={"0": []}), "must be increasing indices"),
        (lambda p: p["kept"].update(x={"0": [-1, 3]}), "must be increasing indices"),
        (
            lambda p: p["kept"].update(x={"0": [0, True]}),
            "plan.kept['x']['0'][1] must be int, got True",
        ),
        (lambda p: p["kept"].update(x={"one": [1]}), "must have numbers as keys, got 'one'"),
        (lambda p: p["kept"].update(x=[1]), "plan.kept['x'] must be dict"),
        (lambda p: p["attributes"]["conv1"].update(out_channels=1.5), "got 1.5"),
        (
            lambda p: p["layers"][0].pop("name"),
            "plan.layers[0] must have all its fields and no others, got missing or unknown ['name']",
        ),
        (
            lambda p: p["inputs"][0].update(dtype="float31"),
            "inputs must have the names of torch dtypes, got 'float31'",
        ),
        (lambda p: p.update(notes="none"), "plan.notes must be"),
        (lambda p: p["kept"]["conv1.weight"]["0"].__setitem__(-1, 15), "changed after it was saved"),
        (lambda p: p.update(ratio=0.5), "changed after it was saved"),
        (lambda p: p.pop("checksum"), "changed after it was saved"),
    ],
)
def test_a_damaged_or_foreign_file_is_an_error_that_says_where(plan, tmp_path, change, message):
    path = tmp_path / "plan.json"
    plan.save(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"plan\.json") as error:
        PruningPlan.load(path)
    assert message in str(error.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b"\xff\xfe", b'{"a": 1}'])
def test_what_is_no_plan_at_all(tmp_path, text):
    (tmp_path / "plan.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"plan\.json: not a pruning plan"):
        PruningPlan.load(tmp_path / "plan.json")
    with pytest.raises(FileNotFoundError):
        PruningPlan.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: p["kept"]["conv1.weight"].update({0: (2, 99)}),
            r"kept must be of the model's axes, got \[2, 99\] for axis 0 of 'conv1.weight'",
        ),
        (lambda p: p["kept"]["conv1.weight"].update({7: (0,)}), "axis 7 of 'conv1.weight'"),
        (lambda p: p["kept"].update({"conv9.weight": {0: (0,)}}), "'conv9.weight', which has shape"),
        (
            lambda p: p["attributes"]["conv1"].update(forward=3),
            "got 3 for 'forward' of 'conv1'",
        ),
        (
            lambda p: p["attributes"].update(conv9={"out_channels": 3}),
            "got 3 for 'out_channels' of 'conv9'",
        ),
        (lambda p: p["kept"]["conv1.weight"].pop(0), "the pruned model cannot run"),
        (lambda p: p.update(outputs=((2, 11),)), r"returns shapes \(\(2, 10\),\) instead of"),
    ],
)
def test_a_tampered_plan_does_not_cut(plan, change, message):
    content = copy.deepcopy({name: getattr(plan, name) for name in ("kept", "attributes", "outputs")})
    change(content)
    with pytest.raises(ValueError, match=message):
        replace(plan, **content).extract(models.resnet8())


def test_the_layout_of_a_plan_file_does_not_count(plan, tmp_path):
    plan.save(tmp_path / "plan.json")
    content = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps(content, indent=2, sort_keys=True))
    assert PruningPlan.load(tmp_path / "plan.json") == plan


class Other(models.ResNet):
    """The same tensors in another class."""


@pytest.mark.parametrize(
    "model",
    [
        models.resnet8(num_classes=11),
        models.resnet8(in_channels=1),
        models.resnet8(shortcut="B"),
        models.resnet14(),
        nn.Sequential(models.resnet8()),
        Other(type(models.resnet8().stage1[0]), 1),
    ],
    ids=["classes", "channels", "shortcut", "depth", "wrapped", "class"],
)
def test_a_plan_for_another_model_is_an_error(plan, model):
    with pytest.raises(ValueError, match="model must be like the model that was planned, got another"):
        plan.extract(model)


def test_a_pruned_model_is_another_model(plan):
    with pytest.raises(ValueError, match="already pruned"):
        plan.extract(plan.extract(models.resnet8()))
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got type"):
        plan.extract(models.ResNet)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_values_and_dtypes_do_not_count(plan, dtype):
    assert plan.extract(models.resnet8().to(dtype)).conv1.weight.dtype == dtype
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    assert plan_pruning(model, torch.zeros(1, 4)).extract(model.to(dtype))[0].weight.dtype == dtype


MODEL = models.resnet8()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ratio": 1}, ValueError, r"ratio must be in \[0, 1\), got 1"),
        ({"ratio": -0.1}, ValueError, r"ratio must be in \[0, 1\), got -0.1"),
        ({"ratio": float("nan")}, ValueError, r"ratio must be in \[0, 1\), got nan"),
        ({"ratio": "0.5"}, TypeError, "ratio must be a number, got str"),
        ({"ratio": True}, TypeError, "ratio must be a number, got bool"),
        ({"criterion": "l3"}, ValueError, "criterion must be one of l2, l1, random, .*, got 'l3'"),
        ({"ranking": "all"}, ValueError, "ranking must be one of local, global, got 'all'"),
        ({"rounding": "up"}, ValueError, "rounding must be one of floor, nearest, ceil, got 'up'"),
        (
            {"ignore": ["conv1", "convX"]},
            ValueError,
            "ignore must match modules, parameters or .* got 'convX'",
        ),
        ({"ignore": [1]}, TypeError, "ignore must be names of modules, got int"),
        (
            {"ignore": "*"},
            ValueError,
            "nothing was pruned at ratio 0.5: .*channels? .*stay",
        ),
        ({"model": "resnet8"}, TypeError, r"model must be an nn\.Module, got str"),
        ({"example_inputs": (2, 3)}, TypeError, "example_inputs must be .* got tuple of int, int"),
        ({"example_inputs": {"x": 1}}, TypeError, "example_inputs must be .* got dict"),
        (
            {"example_kwargs": [IMAGE]},
            TypeError,
            "example_kwargs must be a dictionary from names to inputs, got list",
        ),
        ({"example_inputs": ()}, ValueError, "example_inputs must be at least one tensor"),
        ({"example_inputs": torch.zeros(0, 3, 8, 8)}, ValueError, "none without elements"),
        ({"example_inputs": IMAGE[:, :1]}, RuntimeError, r"module 'conv1' \(Conv2d\): .*to have 3 channels"),
        ({"model": nn.Linear(3, 3), "example_inputs": torch.zeros(1, 3)}, ValueError, "nothing was pruned"),
        ({"model": nn.Sequential(nn.ReLU())}, ValueError, "nothing was pruned"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    arguments = {"model": MODEL, "example_inputs": IMAGE, **arguments}
    with pytest.raises(error, match=message):
        plan_pruning(**arguments)


def test_values_that_cannot_be_ranked():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight[1, 1] = float("nan")
    with pytest.raises(ValueError, match=r"0\.weight has values that are not finite"):
        plan_pruning(model, torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"got 0\.weight on the meta device"):
        plan_pruning(model.to("meta"), torch.zeros(1, 4, device="meta"))


@pytest.mark.parametrize(
    ("ignore", "whole"),
    [
        ("stage1.0.conv1", {"stage1.0.conv1"}),
        (["stage?.0.conv1"], {"stage1.0.conv1", "stage2.0.conv1", "stage3.0.conv1"}),
        (("stage1.0.bn1",), {"stage1.0.conv1"}),
        (
            ["stage3"],
            {"conv1", *(f"stage{s}.0.conv{c}" for s in (1, 2, 3) for c in (1, 2))}
            - {"stage1.0.conv1", "stage2.0.conv1"},
        ),
    ],
    ids=["name", "pattern", "norm", "container"],
)
def test_ignored_modules_keep_their_output_channels(ignore, whole):
    model = scramble_(models.resnet8()).double()
    image = torch.randn(2, 3, 16, 16).double()
    plan = plan_pruning(model, image, ignore=ignore)
    convolutions = [layer for layer in plan.layers if layer.type == "Conv2d"]
    assert {layer.name for layer in convolutions if layer.width_before == layer.width_after} == whole
    assert_pruning_is_masking(model, plan, image)


def test_ignoring_a_module_whose_weight_is_used_from_outside():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.c(self.b(nn.functional.linear(x, self.a.weight)))

    plan = plan_pruning(Net(), torch.zeros(1, 4), ignore="a")
    assert [layer.width_after for layer in plan.layers] == [8, 4, 2]


def test_layers_and_summary(plan):
    assert plan.layers[0] == Layer("conv1", "Conv2d", 16, 4, 432, 108, 256, 2 * 256 * 432, 2 * 256 * 108)
    assert plan.layers[1] == Layer("bn1", "BatchNorm2d", 16, 4, 32, 8, 0, 0, 0)
    text = plan.summary()
    lines = text.splitlines()
    assert lines[0] == "ratio 0.7, l2, local ranking, rounded by floor"
    assert lines[1].split() == ["layer", "type", "width", "parameters", "FLOPs"]
    assert "conv1" in lines[3]
    assert "16 -> 4" in lines[3]
    assert f"{plan.params[0]:,} -> {plan.params[1]:,}" in lines[-2]
    assert f"{plan.flops[0]:,} -> {plan.flops[1]:,}" in lines[-2]


def test_the_time_that_planning_took_is_no_part_of_the_plan(tmp_path):
    model = models.resnet8()
    one, other = plan_pruning(model, IMAGE), plan_pruning(model, IMAGE)
    assert one.seconds[0] > one.seconds[1] > 0
    assert one.seconds != other.seconds
    assert (one, one.checksum()) == (other, other.checksum())
    for plan, name in ((one, "one"), (other, "other")):
        plan.save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    total, own = one.seconds
    *lines, last = one.summary().splitlines()
    assert last == f"planned in {total:.2f} s, {own:.2f} s of them beyond torch.export"
    loaded = PruningPlan.load(tmp_path / "one")
    assert loaded.seconds is None
    assert loaded.summary().splitlines() == lines
