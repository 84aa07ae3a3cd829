"""Cutting the small model out, and building it again from files."""

from __future__ import annotations

import copy

import pytest
import torch
from pruning_oracle import assert_same_function, scramble_
from torch import nn

from prunefuse import _files as files
from prunefuse import models
from prunefuse.fusion import fuse_
from prunefuse.pruning import PruningPlan, load_pruned, plan_pruning

IMAGE = torch.zeros(2, 3, 16, 16)


@pytest.fixture(scope="module")
def plan() -> PruningPlan:
    return plan_pruning(models.resnet8(), IMAGE)


def test_the_dense_model_is_not_touched_and_shares_nothing(plan):
    dense = scramble_(models.resnet8())
    before = {name: (id(t), t._version, t.clone()) for name, t in dense.state_dict(keep_vars=True).items()}
    small = plan.extract(dense)
    with torch.no_grad():
        for tensor in [*small.parameters(), *small.buffers()]:
            tensor.zero_()
    after = dense.state_dict(keep_vars=True)
    assert {n: (i, v) for n, (i, v, _) in before.items()} == {
        n: (id(t), t._version) for n, t in after.items()
    }
    assert all(torch.equal(after[name], values) for name, (_, _, values) in before.items())
    assert (dense.conv1.out_channels, dense.stage2[0].shortcut.pad.left) == (16, 8)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in [*dense.modules(), *small.modules()])


def test_modes_gradients_and_dtypes_stay(plan):
    dense = models.resnet8().to(torch.bfloat16).train()
    dense.stage1.eval()
    dense.conv1.weight.requires_grad_(False)
    small = plan.extract(dense)
    assert type(small) is type(dense)
    assert [m.training for m in small.modules()] == [m.training for m in dense.modules()]
    assert not small.conv1.weight.requires_grad
    assert small.stage2[0].conv1.weight.requires_grad
    assert all(isinstance(p, nn.Parameter) and p.is_leaf for p in small.parameters())
    assert {t.dtype for t in small.state_dict().values()} == {torch.bfloat16, torch.int64}


def test_kept_values_are_the_ones_that_were_planned(plan):
    dense = scramble_(models.resnet8())
    small = plan.extract(dense)
    outputs, inputs = (list(plan.kept["stage2.0.conv1.weight"][axis]) for axis in (0, 1))
    expected = dense.stage2[0].conv1.weight[outputs][:, inputs]
    assert torch.equal(small.stage2[0].conv1.weight, expected)
    assert torch.equal(small.bn1.running_var, dense.bn1.running_var[list(plan.kept["bn1.running_var"][0])])
    assert small.bn1.num_batches_tracked == 7


def test_extracting_does_not_move_statistics_or_generators(plan):
    dense = scramble_(models.resnet8()).train()
    state = torch.get_rng_state()
    small = plan.extract(dense)
    assert torch.equal(torch.get_rng_state(), state)
    assert small.bn1.num_batches_tracked == 7


class HardCodedView(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.head = nn.Linear(8 * 16, 5)

    def forward(self, x):
        return self.head(self.conv(x).view(-1, 8 * 16))


class HardCodedReshape(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        return self.conv(x).reshape(x.shape[0], 8, 4, 4).relu()


def test_what_meets_a_size_in_the_code_stays_and_the_module_is_named():
    image = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"nothing was pruned .*its forward needs sizes .*\(HardCodedView\)"):
        plan_pruning(HardCodedView(), image)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), HardCodedReshape(nn.Conv2d(4, 8, 1)), nn.Conv2d(8, 2, 1))
    plan = plan_pruning(model, image)
    assert [len(p) for p in plan.extract(model).parameters() if p.ndim == 4] == [2, 8, 2]
    (note,) = plan.notes
    assert "its forward needs sizes that no pruned module has" in note
    assert "module '1' (HardCodedReshape)" in note


def strided(stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=stride), nn.Flatten(), nn.Linear(8 * 36, 2))


def test_a_model_of_equal_tensors_that_runs_otherwise_is_another_model():
    plan = plan_pruning(strided(1), torch.zeros(2, 3, 8, 8))
    with pytest.raises(
        ValueError, match=r"model must be like the model that was planned, .*\(2, 3, 8, 8\) it cannot run"
    ):
        plan.extract(strided(2))
    plan = plan_pruning(strided(1)[0:1].append(nn.Conv2d(8, 2, 1)), torch.zeros(2, 3, 8, 8))
    model = strided(2)[0:1].append(nn.Conv2d(8, 2, 1))
    with pytest.raises(
        ValueError, match=r"returns shapes \(\(2, 2, 3, 3\),\) instead of \(\(2, 2, 6, 6\),\)"
    ):
        plan.extract(model)
    assert not any(isinstance(p, torch._subclasses.FakeTensor) for p in model.parameters())


def test_a_counter_of_forwards_is_not_touched_by_the_check():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
            self.register_buffer("calls", torch.zeros(2))

        def forward(self, x):
            self.calls = self.calls + 1
            return self.b(self.a(x))

    small = plan_pruning(Counting(), torch.zeros(1, 4)).extract(Counting())
    assert small.calls.tolist() == [0, 0]


@pytest.mark.parametrize("kernel", [1, 3])
def test_the_memory_format_stays(kernel):
    dense = nn.Sequential(nn.Conv2d(3, 8, kernel), nn.ReLU(), nn.Conv2d(8, 6, kernel), nn.Conv2d(6, 2, 1))
    dense.to(memory_format=torch.channels_last)
    plan = plan_pruning(dense, torch.zeros(1, 3, 8, 8))
    small = plan.extract(dense)
    for layer in (small[0], small[2], small[3]):
        weight = layer.weight
        assert weight.stride() == weight.detach().clone(memory_format=torch.channels_last).stride()
    plain = plan.extract(copy.deepcopy(dense).to(memory_format=torch.contiguous_format))
    assert all(p.is_contiguous() for p in plain.parameters())
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), plain.parameters(), strict=True))
    before = {name: t.stride() for name, t in dense.named_parameters()}
    back = plan.extract(fuse_(dense, scramble_(small), plan))
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), back.parameters(), strict=True))
    assert before == {name: t.stride() for name, t in dense.named_parameters()}


def test_load_pruned_rebuilds_the_small_model_from_files(tmp_path):
    dense = scramble_(models.resnet14(shortcut="B"))
    plan = plan_pruning(dense, IMAGE, ratio=0.7)
    small = scramble_(plan.extract(dense), seed=3)
    plan.save(tmp_path / "plan.json")
    files.save_tensors(tmp_path / "small.safetensors", small.state_dict())

    def factory() -> nn.Module:
        return models.resnet14(shortcut="B").eval()

    loaded = PruningPlan.load(tmp_path / "plan.json")
    for weights in (tmp_path / "small.safetensors", str(tmp_path / "small.safetensors"), small.state_dict()):
        again = load_pruned(factory, loaded, weights)
        assert not again.training
        assert_same_function(again, copy.deepcopy(small), torch.randn(2, 3, 16, 16), tolerance=0)
        assert all(torch.equal(t, small.state_dict()[name]) for name, t in again.state_dict().items())


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.c.weight = self.b.weight
        self.again = self.a
        self.register_buffer("unsaved", torch.ones(8), persistent=False)
        self.register_buffer("saved", self.unsaved)

    def forward(self, x):
        return self.d(self.c(self.b(self.again(x)).relu())) * self.saved.sum()


def test_tied_weights_are_saved_under_one_name_and_loaded_under_all(tmp_path):
    from safetensors.torch import load_file, save_model

    dense = Tied()
    plan = plan_pruning(dense, torch.zeros(1, 4))
    small = scramble_(plan.extract(dense), seed=3)
    save_model(small, tmp_path / "small.safetensors")
    saved = load_file(tmp_path / "small.safetensors")
    assert len(saved.keys() & {"b.weight", "c.weight"}) == 1
    files.save_tensors(tmp_path / "all.safetensors", small.state_dict())
    later = {name: t for name, t in small.state_dict().items() if not name.startswith(("a.", "b.weight"))}
    x = torch.randn(3, 4)
    for weights in (tmp_path / "small.safetensors", tmp_path / "all.safetensors", later):
        again = load_pruned(Tied, plan, weights)
        assert again.c.weight is again.b.weight
        assert torch.equal(again(x), small(x))
    with pytest.raises(
        ValueError, match=r"weights must fit .*b\.weight, c\.weight are not in the state dict"
    ):
        load_pruned(Tied, plan, {n: t for n, t in saved.items() if n not in ("b.weight", "c.weight")})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factory": models.resnet8()}, "factory must be a function or class that builds .* got ResNet"),
        ({"factory": "resnet8"}, "factory must be .* got str"),
        ({"plan": "plan.json"}, "plan must be a PruningPlan, got str"),
        ({"weights": models.resnet8()}, "weights must be a checkpoint's file or a state dict, got ResNet"),
    ],
)
def test_load_pruned_names_arguments_of_a_wrong_type(plan, change, message):
    arguments = {"factory": models.resnet8, "plan": plan, "weights": {}, **change}
    with pytest.raises(TypeError, match=message):
        load_pruned(**arguments)


def test_weights_that_do_not_fit_are_named(plan, tmp_path):
    small = plan.extract(models.resnet8()).state_dict()
    with pytest.raises(
        ValueError, match=r"weights must fit .*conv1\.weight is \(16, 3, 3, 3\) in the state dict"
    ):
        load_pruned(models.resnet8, plan, models.resnet8().state_dict())
    with pytest.raises(ValueError, match=r"weights must fit .*fc\.bias is not in the state dict"):
        load_pruned(models.resnet8, plan, {name: t for name, t in small.items() if name != "fc.bias"})
    with pytest.raises(ValueError, match="model must be like the model that was planned"):
        load_pruned(models.resnet14, plan, small)
    with pytest.raises(TypeError, match=r"factory must be a function that returns an nn\.Module, got int"):
        load_pruned(lambda: 3, plan, small)
    (tmp_path / "bad.safetensors").write_bytes(b"no tensors")
    with pytest.raises(
        ValueError, match=r"weights must be a checkpoint that is safe to read, got .*bad\.safetensors"
    ):
        load_pruned(models.resnet8, plan, tmp_path / "bad.safetensors")


def test_several_inputs_and_outputs_on_the_meta_device():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(3, 8)
            self.heads = nn.ModuleDict({"x": nn.Linear(8, 2), "y": nn.Linear(8, 5)})

        def forward(self, x, y):
            hidden = self.a(x) + self.b(y)
            return {name: head(hidden) for name, head in self.heads.items()}, x, None

    with torch.device("meta"):
        model = Net()
        plan = plan_pruning(model, (torch.zeros(2, 4), torch.zeros(2, 3)), criterion="random")
    assert plan.outputs == ((2, 2), (2, 5), (2, 4))
    assert plan.extract(model).heads["y"].weight.shape == (5, 4)
    assert {str(p.device) for p in plan.extract(Net()).parameters()} == {"cpu"}


@pytest.mark.cuda
def test_on_cuda():
    dense = scramble_(models.resnet8()).cuda()
    plan = plan_pruning(dense, IMAGE.cuda())
    assert plan == plan_pruning(copy.deepcopy(dense).cpu(), IMAGE)
    assert {p.device.type for p in plan.extract(dense).parameters()} == {"cuda"}


def test_a_model_that_looks_at_values_is_checked_with_values():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.steps = nn.Linear(6, 20), nn.Linear(20, 3), torch.tensor([2.0, 4.0, 8.0])

        def forward(self, x):
            factors = [torch.full((1,), step) for step in self.steps]
            return self.b(self.a(x).relu()) * torch.cat(factors)

    model, x = Scaled(), torch.randn(4, 6)
    state = torch.get_rng_state()
    small = plan_pruning(model, x, ratio=0.5).extract(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert small(x).shape == (4, 3)
