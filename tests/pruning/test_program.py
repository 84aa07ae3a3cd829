"""The pruned exported program: what a module's own code cannot express."""

from __future__ import annotations

import copy
import importlib
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from peer_packages import skip_without
from pruning_oracle import assert_same_function, masked, scramble_
from torch import Tensor, nn

from prunefuse import fuse_, models
from prunefuse.pruning import (
    PruningPlan,
    Target,
    load_pruned,
    plan_pruning,
    prune_and_finetune,
    register_rule,
)

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
BATCH = ({0: torch.export.Dim("batch")},)


class HardCoded(nn.Module):
    """Every size that it can be wrong about is a literal, and constants are no buffers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 32, 3, padding=1, groups=16)
        self.mix = nn.Conv2d(32, 24, 1)
        self.scale = nn.Parameter(torch.rand(24))
        self.shift = torch.rand(24).double()
        self.register_buffer("offset", torch.rand(24), persistent=False)
        self.drop = nn.Dropout(0.5)
        self.flat = nn.Linear(24 * 64, 20)
        self.heads = nn.Linear(20, 20)
        self.last = nn.Linear(20, 5)

    def normalize(self, y):
        return F.layer_norm(y, (20,))

    def forward(self, x):
        y = self.norm(self.first(x)).relu()
        y = F.group_norm(self.depthwise(y), 32)
        y = self.mix(y) + F.pad(y[:, :8], (0, 0, 0, 0, 8, 8))
        y = y * self.scale.view(1, 24, 1, 1) + self.shift.view(24, 1, 1)
        y = y + self.offset.reshape(24, 1, 1).expand(24, 8, 8) + torch.full((24, 1, 1), 0.1, dtype=y.dtype)
        a, b = torch.split(y, 12, 1)
        c, d, e = torch.split(torch.cat([b, a], 1), [4, 12, 8], 1)
        y = torch.cat([e, *torch.tensor_split(torch.cat([c, d], 1), [8], 1)], 1).narrow(1, 0, 24)
        y = self.normalize(self.drop(self.flat(y.view(-1, 1536))))
        y = self.heads(y).unflatten(1, (4, 5))
        y = y.transpose(1, 2).tanh().reshape(x.shape[0] * 5, 4).view(-1, 5, 4).transpose(1, 2)
        return self.last(torch.cat([y.reshape(-1, 20)[:, -10:], y.reshape(-1, 20)[:, :10]], 1))


@pytest.fixture
def dense():
    return scramble_(HardCoded()).double()


@pytest.fixture
def plan(dense):
    return plan_pruning(dense, IMAGE, expressed_by="program")


def masked_hard_coded(dense: nn.Module, plan: PruningPlan) -> nn.Module:
    """Its layer norm takes statistics over what is kept."""
    model, kept = masked(dense, plan), torch.tensor(plan.kept["flat.weight"][0])

    def normalize(y: Tensor) -> Tensor:
        return torch.zeros_like(y).index_copy(1, kept, F.layer_norm(y[:, kept], (len(kept),)))

    model.normalize = normalize
    return model.eval()


def outputs(module: nn.Module, *inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return module(*inputs)


def assert_close(one: Tensor, other: Tensor) -> None:
    assert float(other.abs().max()) > 1e-6
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * float(other.abs().max()))


def test_sizes_written_in_the_code_follow(dense, plan):
    widths = {
        layer.name: layer.width_after for layer in plan.layers if layer.width_after < layer.width_before
    }
    assert widths == {"": 12, "first": 8, "norm": 8, "depthwise": 16, "mix": 12, "flat": 10, "heads": 8}
    assert (plan.notes, plan.attributes) == ((), {})
    program = plan.extract_program(dense, IMAGE, dynamic_shapes=BATCH)
    for batch in (2, 5):
        x = torch.randn(batch, 3, 8, 8).double()
        assert_close(outputs(program.module(), x), outputs(masked_hard_coded(dense, plan), x))
    assert program.constants["shift"].shape == program.constants["offset"].shape == (12,)
    assert sum(p.numel() for p in program.module().parameters()) == plan.params[1]
    assert [p.shape for p in dense.parameters()] == [p.shape for p in HardCoded().parameters()]


def test_the_module_alone_says_that_the_program_is_offered(dense):
    with pytest.raises(ValueError, match="nothing was pruned") as error:
        plan_pruning(dense, IMAGE)
    assert str(error.value).count('expressed_by="program"') == 2  # for its padding, and its sizes

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 12), nn.Linear(12, 2)

        def forward(self, x):
            return self.c(self.b(self.a(x).view(-1, 8).relu()))

    module, program = (plan_pruning(Flat(), torch.zeros(1, 4), expressed_by=x) for x in ("module", "program"))
    assert [layer.width_after for layer in module.layers] == [8, 6, 2]
    assert [layer.width_after for layer in program.layers] == [4, 6, 2]
    assert "its forward needs sizes" in module.notes[0]
    assert 'expressed_by="program"' in module.notes[0]


def test_attention_as_wide_as_its_input():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.last = nn.MultiheadAttention(12, 3, batch_first=True), nn.Linear(12, 2)

        def forward(self, x):
            return self.last(self.attention(x, x, x, need_weights=False)[0])

    dense, x = scramble_(Net()).double(), torch.randn(2, 5, 12).double()
    plan = plan_pruning(dense, x, ratio=0.6, expressed_by="program")
    assert len(plan.kept["attention.in_proj_weight"][0]) == 3 * 4  # one head of three
    assert_close(outputs(plan.extract_program(dense, x).module(), x), outputs(masked(dense, plan).eval(), x))


def test_a_batch_times_heads_in_one_size():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(6, 16) for _ in range(3))
            self.last = nn.Linear(16, 2)

        def split(self, x):
            return x.view(-1, 5, 4, 4).transpose(1, 2).reshape(x.shape[0] * 4, 5, 4)

        def forward(self, x):
            with torch.no_grad():  # a block of its own in the graph
                weights = (self.split(self.q(x)) @ self.split(self.k(x)).transpose(-2, -1)).softmax(-1)
            y = weights @ self.split(self.v(x))
            return self.last(y.view(x.shape[0], 4, 5, 4).transpose(1, 2).reshape(-1, 5, 16))

    dense, x = scramble_(Net()).double(), torch.randn(3, 5, 6).double()
    plan = plan_pruning(dense, x, expressed_by="program")
    assert [layer.width_after for layer in plan.layers if layer.params_before] == [8, 8, 8, 2]
    program = plan.extract_program(dense, x, dynamic_shapes=BATCH)
    y = torch.randn(7, 5, 6).double()
    assert_close(outputs(program.module(), y), outputs(masked(dense, plan).eval(), y))


class Gated(nn.Module):
    """Two gates beside the channels, that the weights make worth the least."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 12), nn.Linear(10, 2)
        with torch.no_grad():
            self.first.weight[10:] *= 0.01

    def forward(self, x):
        y, gates = self.first(x).split([10, 2], 1)
        return self.last(y * gates[:, 0:1].sigmoid() * gates[:, 1:2].sigmoid())


def test_no_part_of_an_axis_is_emptied():
    dense, x = Gated().double().eval(), torch.randn(3, 4).double()
    plan = plan_pruning(dense, x, expressed_by="program")
    assert plan.kept["first.weight"][0][-2:] == (10, 11)
    assert_close(outputs(plan.extract_program(dense, x).module(), x), outputs(masked(dense, plan), x))


def test_weights_that_only_training_uses():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
            self.auxiliary = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))

        def forward(self, x):
            y = self.first(x).view(-1, 8)
            return (self.last(y), self.auxiliary(y)) if self.training else self.last(y)

    dense, x = scramble_(Net()).double(), torch.randn(3, 4).double()
    plan = plan_pruning(dense, x, expressed_by="program")
    assert [x.shape for x in plan.extract_program(dense, x, training=True).module()(x)] == [(3, 2), (3, 2)]
    small = plan.extract_program(dense, x).module()
    assert [small.get_parameter(f"auxiliary.{i}.weight").shape for i in (0, 1, 2)] == [(3, 4), (3,), (2, 3)]
    assert_close(outputs(small, x), outputs(masked(dense, plan).eval(), x))


TIMM = {
    "focalnet": lambda m: m.FocalNet(depths=(1, 1), embed_dim=24, num_classes=5),
    "xcit": lambda m: m.Xcit(img_size=32, depth=2, embed_dim=32, num_heads=4, num_classes=5),
}


@pytest.mark.parametrize("family", TIMM)
def test_timm(family):
    skip_without("timm")
    dense = scramble_(TIMM[family](importlib.import_module(f"timm.models.{family}"))).double()
    x = torch.randn(2, 3, 32, 32).double()
    plan = plan_pruning(dense, x, expressed_by="program")
    small = plan.extract_program(dense, x, dynamic_shapes=BATCH).module()
    x = torch.randn(3, 3, 32, 32).double()
    assert_close(outputs(small, x), outputs(masked(dense, plan).eval(), x))
    assert plan.params[1] / plan.params[0] < 0.35
    fused = fuse_(copy.deepcopy(dense), small, plan)
    again = plan.extract_program(fused, x).state_dict
    assert all(torch.equal(value, again[name]) for name, value in small.state_dict().items())


LOAD = """
import sys, torch
program = torch.export.load(sys.argv[1])
torch.save(program.module()(torch.load(sys.argv[2])), sys.argv[3])
"""


def test_saved_and_loaded_in_a_new_process_without_the_class(dense, plan, tmp_path):
    program = plan.extract_program(dense, IMAGE)
    torch.export.save(program, tmp_path / "small.pt2")
    torch.save(IMAGE, tmp_path / "x.pt")
    files = [tmp_path / name for name in ("small.pt2", "x.pt", "y.pt")]
    subprocess.run([sys.executable, "-c", LOAD, *files], check=True, timeout=120)
    assert torch.equal(torch.load(tmp_path / "y.pt"), program.module()(IMAGE))


def test_trained_and_fused_back(dense, plan):
    before = copy.deepcopy(dense.state_dict())
    training = plan.extract_program(dense.eval(), IMAGE, training=True).module()
    optimizer = torch.optim.SGD(training.parameters(), 0.1)
    training(IMAGE).square().sum().backward()
    optimizer.step()
    assert not torch.equal(outputs(training, IMAGE), outputs(training, IMAGE))  # dropout
    program = plan.extract_program(dense, IMAGE)
    assert all(torch.equal(value, dense.state_dict()[name]) for name, value in before.items())
    small = program.module()
    small.load_state_dict(training.state_dict())
    assert small.norm.num_batches_tracked == 7 + 3
    fuse_(dense, small, plan)
    again = plan.extract_program(dense, IMAGE).module()
    assert dict(again.state_dict()).keys() == before.keys()
    for name, value in small.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert not torch.equal(dense.first.weight, before["first.weight"])
    assert_close(outputs(small, IMAGE), outputs(masked_hard_coded(dense, plan), IMAGE))


def test_the_program_of_a_plan_for_the_module():
    dense = scramble_(models.resnet8()).double()
    dense.bn1.weight.requires_grad_(False)
    plan = plan_pruning(dense, IMAGE, ratio=0.7, ignore="stage2.0.conv1")
    small, program = plan.extract(dense).eval(), plan.extract_program(dense, IMAGE).module()
    assert_same_function(small, masked(dense, plan), IMAGE)
    assert torch.equal(outputs(program, IMAGE), outputs(small, IMAGE))
    grads = {name: p.requires_grad for name, p in small.named_parameters()}
    assert {name: p.requires_grad for name, p in program.named_parameters()} == grads


def test_tied_weights_stay_tied():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
            self.b.weight = self.a.weight
            self.first = nn.Linear(4, 8)

        def forward(self, x):
            y = self.first(x).view(-1, 8)
            return self.last(self.b(self.a(y) + y) + y)

    dense, x = scramble_(Net()).double(), torch.randn(3, 4).double()
    plan = plan_pruning(dense, x, expressed_by="program")
    small = plan.extract_program(dense, x).module()
    assert small.a.weight is small.b.weight
    assert small.a.weight.shape == (4, 4)
    assert_close(outputs(small, x), outputs(masked(dense, plan), x))
    fuse_(dense, small, plan, "zero")
    assert_close(outputs(dense, x), outputs(small, x))


def test_the_plan_says_what_it_is_for(dense, plan, tmp_path):
    plan.save(tmp_path / "plan.json")
    loaded = PruningPlan.load(tmp_path / "plan.json")
    assert loaded == plan
    assert loaded.expressed_by == "program"
    assert "expressed by the exported program" in plan.summary().splitlines()[0]
    one, other = (p.extract_program(dense, IMAGE).state_dict for p in (plan, loaded))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_refusals(dense, plan):
    for wrong in (
        lambda: plan.extract(dense),
        lambda: load_pruned(HardCoded, plan, {}),
        lambda: prune_and_finetune(dense, IMAGE, pytest.fail, expressed_by="program"),
    ):
        with pytest.raises(
            ValueError, match=r"expressed_by must be .* plan\.extract_program\(model, example_inputs\) gives"
        ):
            wrong()
    with pytest.raises(ValueError, match="expressed_by must be one of module, program, got 'file'"):
        plan_pruning(dense, IMAGE, expressed_by="file")
    with pytest.raises(ValueError, match="expressed_by must be one of"):
        replace(plan, expressed_by="file")
    with pytest.raises(ValueError, match="target must be parameters, flops or memory"):
        plan_pruning(dense, IMAGE, target=Target("latency", 0.5), expressed_by="program")
    with pytest.raises(ValueError, match="model must be like the model that was planned, got another"):
        plan.extract_program(models.resnet8(), IMAGE)
    with pytest.raises(TypeError, match="example_inputs must be a tensor"):
        plan.extract_program(dense, 3)
    with pytest.raises(RuntimeError, match=r"torch\.export cannot capture the model, in module 'first'"):
        plan.extract_program(dense, IMAGE[:, :2])
    kept = {**plan.kept, "mix.weight": {**plan.kept["mix.weight"], 0: tuple(range(12))}}
    with pytest.raises(
        ValueError,
        match="got one that is damaged or for another: what it removes of",
    ):
        replace(plan, kept=kept).extract_program(dense, IMAGE)


def test_an_operator_with_sizes_that_nobody_knows():
    @torch.library.custom_op("prunefuse_test::widened", mutates_args=())
    def widened(x: Tensor, width: int) -> Tensor:
        return x + torch.zeros(width, dtype=x.dtype)

    @widened.register_fake
    def _(x, width):
        return x + torch.zeros(width, dtype=x.dtype)

    @register_rule("prunefuse_test::widened")
    def rule(call, x, width):
        return x

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.last(widened(self.first(x), 8))

    dense, x = Net().double(), torch.zeros(1, 4).double()
    plan = plan_pruning(dense, x, expressed_by="program")
    with pytest.raises(RuntimeError, match=r"the pruned program does not fit together: .*length 8"):
        plan.extract_program(dense, x)
