"""plan.explain: what is coupled with a layer's channels, and by what."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn

from prunefuse import PruningPlan, models, plan_pruning
from prunefuse.pruning import prune_and_finetune, prune_without_finetuning

IMAGE = torch.zeros(1, 3, 16, 16)


def blocks(text):
    """Title of each block -> its lines, without indents; the first line of the text is under ""."""
    first, *rest = text.split("\n\n")
    found = {"": [first]}
    for block in rest:
        lines = [" ".join(line.split()) for line in block.splitlines()]
        found[lines[0].partition(" (")[0]] = lines
    return found


class Branches(nn.Module):
    """Concat, group norm, depthwise and grouped convolutions, and a flattened end."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 4, 3, padding=1)
        self.norm = nn.GroupNorm(3, 12)
        self.each = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.grouped = nn.Conv2d(12, 24, 1, groups=3)
        self.end = nn.Linear(24 * 16, 5)

    def forward(self, x):
        a = self.a(x)
        x = torch.cat([a, self.b(a).relu()], 1)
        return self.end(self.grouped(self.each(self.norm(x))).flatten(1))


class Concat(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 10, 3)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x):
        return self.head(torch.cat([self.left(x), self.right(x)], 1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(7, 32), nn.Linear(32, 3)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)

    def forward(self, x):
        return self.out(self.layer(self.into(x)))


def test_a_residual_block():
    plan = plan_pruning(models.resnet14(shortcut="B"), IMAGE)
    told = blocks(plan.explain("stage1.0.conv1"))
    assert told[""] == ["stage1.0.conv1 (Conv2d)"]
    assert told["output channels"] == [
        "output channels (weight, dim 0): 8 of 16 stay",
        "leave together:",
        "stage1.0.conv1.weight dim 0, makes them",
        "stage1.0.bn1.weight, bias, running_mean, running_var dim 0",
        "stage1.0.conv2.weight dim 1, reads them",
        "coupled by:",
        "batch_norm in stage1.0.bn1 (has weights or statistics for each of them)",
        "conv2d in stage1.0.conv2 (reads them)",
    ]
    inputs = told["input channels"]
    assert inputs[0] == "input channels (weight, dim 1): 8 of 16 stay"
    assert "conv1.weight dim 0, makes them" in inputs
    assert "stage1.1.conv2.weight dim 0, makes them" in inputs
    assert "add in stage1.0, stage1.1 (residual: adds tensors, channel by channel)" in inputs


def test_what_is_told_of_parameters_is_what_leaves():
    model = models.resnet14()
    plan = plan_pruning(model, IMAGE, ratio=0.25)
    for name, parameter in model.named_parameters():
        for axis, indices in plan.kept.get(name, {}).items():
            assert f"(dim {axis}): {len(indices)} of {parameter.shape[axis]} stay" in plan.explain(name)


def test_inputs_and_outputs_of_the_network_and_what_is_ignored():
    plan = plan_pruning(models.resnet8(), IMAGE, ignore="conv1")
    assert "dim 1): all 3 stay, as inputs of the network, which conv2d in conv1 takes" in plan.explain(
        "conv1"
    )
    assert "dim 0): all 16 stay, because conv1 is ignored" in plan.explain("conv1")
    assert "dim 0): all 10 stay, as outputs of the network" in plan.explain("fc")
    far = plan.explain("stage1.0.conv2")
    assert "all 16 stay, because conv1 is ignored; they are coupled to that by add in stage1.0" in far


def test_attention():
    plan = plan_pruning(Attention(), torch.zeros(2, 5, 7))
    told = blocks(plan.explain("layer.self_attn"))
    assert told["output channels"][0] == (
        "output channels (in_proj_weight, dim 0): 48 of 96 stay; they leave in 4 sets of 24"
    )
    assert "layer.self_attn.out_proj.weight dim 1, reads them" in told["output channels"]
    assert "scaled_dot_product_attention in layer.self_attn (loses whole heads)" in told["output channels"]
    assert "into.weight dim 0, makes them" in told["input channels"]
    assert "layer.norm1.weight, bias dim 0" in told["input channels"]
    assert "add in layer (residual: adds tensors, channel by channel)" in told["input channels"]


def test_concat():
    told = blocks(plan_pruning(Concat(), IMAGE).explain("left"))
    assert told["output channels"] == [
        "output channels (weight, dim 0): 3 of 6 stay",
        "leave together:",
        "left.weight dim 0, makes them",
        "left.bias dim 0",
        "head.weight dim 1 [0:6], reads them",
        "coupled by:",
        "conv2d in left (makes them)",
        "cat in the model itself (puts them beside others)",
        "conv2d in head (reads them)",
    ]
    right = plan_pruning(Concat(), IMAGE).explain("right")
    assert "dim 1 [6:16], reads them" in right


def test_depthwise_grouped_and_group_norm():
    plan = plan_pruning(Branches(), torch.zeros(1, 3, 4, 4))
    told = blocks(plan.explain("each"))
    outputs = told["output channels"]
    assert outputs[0] == "output channels (weight, dim 0): 6 of 12 stay; they leave in 4 sets of 3"
    assert "conv2d in each (depthwise: one filter for each of them)" in outputs
    assert "group_norm in norm (every group loses the same of its channels)" in outputs
    assert told["input channels"] == [
        "input channels (weight, dim 1 has those of one group): 6 of 12 stay; they leave in 4 sets of 3",
        "leave together with the output channels",
    ]
    assert blocks(plan.explain("norm"))["channels"][0].startswith("channels (weight, dim 0): 6 of 12 stay")
    end = blocks(plan.explain("end"))["input channels"]
    assert end[0] == "input channels (weight, dim 1): 192 of 384 stay; they leave in 8 sets of 48"
    assert "flatten in the model itself (splits an axis or merges several)" in end


def test_notes_on_a_layer():
    class Reduced(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.c(self.b(x)) + self.a(x).sum(-1, keepdim=True)

    plan = plan_pruning(Reduced(), torch.zeros(2, 4))
    text = plan.explain("a")
    assert "all 8 stay, because sum in the model itself needs them whole" in text
    assert "note: the model itself (aten::sum): reduces over channels" in text
    assert "note" not in plan.explain("b")


def test_what_stays_because_of_code_and_of_tensors_that_cannot_be_cut():
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 12), nn.Linear(12, 8), nn.Linear(8, 2)
            self.table = torch.ones(8)

        def forward(self, x):
            return self.c(self.b(self.a(x).view(-1, 12).relu()) * self.table)

    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4), Written())
    plan = plan_pruning(model, torch.zeros(2, 4))
    assert "(weight, dim 0): all 12 stay, because the code of 2 has sizes that cannot follow" in plan.explain(
        "2.a"
    )
    assert "note: module '2' (Written): its forward needs sizes" in plan.explain("2.a")
    assert "because they meet a tensor that 2 holds, which cannot be cut" in plan.explain("2.b")
    assert "note: 'table' of module '2' (Written)" in plan.explain("2.b")
    assert "dim 0): 3 of 6 stay" in plan.explain("0")


def test_unknown_names():
    plan = plan_pruning(models.resnet8(), IMAGE)
    with pytest.raises(
        ValueError, match=r"name must be a layer or a tensor .*got 'stage1\.0\.conv3'.*stage1\.0\.conv2"
    ):
        plan.explain("stage1.0.conv3")
    with pytest.raises(ValueError, match=r"got 'stage1\.0'; near are stage1\.0\.conv1"):
        plan.explain("stage1.0")


def test_a_loaded_plan_is_explained_by_its_model(tmp_path):
    model = models.resnet8()
    plan = plan_pruning(model, IMAGE)
    plan.save(tmp_path / "plan.json")
    loaded = PruningPlan.load(tmp_path / "plan.json")
    assert loaded == plan
    assert "couplings" not in (tmp_path / "plan.json").read_text()
    with pytest.raises(ValueError, match=r"plan\.explain\('conv1', model=\.\.\., example_inputs=\.\.\.\)"):
        loaded.explain("conv1")
    assert loaded.explain("conv1", model=model, example_inputs=IMAGE) == plan.explain("conv1")
    with pytest.raises(ValueError, match="model"):
        loaded.explain("conv1", model=models.resnet14(), example_inputs=IMAGE)
    with pytest.raises(TypeError, match="example_inputs must be"):
        loaded.explain("conv1", model=model)


def test_a_plan_for_a_program():
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 12), nn.Linear(12, 2)

        def forward(self, x):
            return self.b(self.a(x).view(-1, 12).relu())

    stays = plan_pruning(Written(), torch.zeros(2, 4), ratios={"a": 0.5}, expressed_by="program")
    assert "dim 0): 6 of 12 stay" in stays.explain("a")


def test_plans_in_steps_and_without_training():
    torch.manual_seed(0)
    model = models.resnet8().eval()
    _, plan = prune_and_finetune(model, IMAGE, lambda small: None, steps=2, ratio=0.5)
    text = plan.explain("stage1.0.conv1")
    assert "dim 0): 8 of 16 stay" in text
    assert "conv2d in stage1.0.conv2 (reads them)" in text
    plan, _ = prune_without_finetuning(model, IMAGE, torch.randn(8, 3, 16, 16), ratio=0.5)
    assert "dim 0): 8 of 16 stay" in plan.explain("stage1.0.conv1")
    assert "residual" in plan.explain("conv1")


def test_a_plan_does_not_keep_the_model_alive():
    model = models.resnet8()
    plan = plan_pruning(model, IMAGE)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    told = plan.explain("conv1")
    assert "residual" in told
    assert copy.deepcopy(plan).explain("conv1") == pickle.loads(pickle.dumps(plan)).explain("conv1") == told
