"""Fusing: what is written where, what is left alone, and what is refused before anything is written."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from prunefuse import models
from prunefuse.fusion import fuse_
from prunefuse.pruning import plan_pruning

IMAGE = torch.zeros(2, 3, 16, 16)
PLAN = plan_pruning(models.resnet8(), IMAGE, ratio=0.6)


def fill_(model: nn.Module, value: float) -> nn.Module:
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(value)
    return model


def kept_part(model: nn.Module) -> dict[str, torch.Tensor]:
    """Per tensor: 1 at the positions that come from the small model, 0 elsewhere."""
    zero, one = fill_(models.resnet8(), 0), fill_(PLAN.extract(models.resnet8()), 1)
    return fuse_(zero, one, PLAN).state_dict()


def small_model(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    small = PLAN.extract(models.resnet8())
    with torch.no_grad():
        for tensor in [*small.parameters(), *small.buffers()]:
            tensor.copy_(torch.rand(tensor.shape) if tensor.is_floating_point() else torch.tensor(5))
    return small


def test_every_weight_lands_at_its_rank():
    dense, small = models.resnet8(), small_model()
    before = copy.deepcopy(dense.state_dict())
    fuse_(dense, small, PLAN)
    name = "stage2.0.conv1.weight"
    outputs, inputs = PLAN.kept[name][0], PLAN.kept[name][1]
    for o in range(32):
        for i in range(16):
            both = o in outputs and i in inputs
            expected = (
                small.state_dict()[name][outputs.index(o), inputs.index(i)] if both else before[name][o, i]
            )
            assert torch.equal(dense.state_dict()[name][o, i], expected)
    assert torch.equal(dense.fc.bias, small.fc.bias)
    assert torch.equal(dense.fc.weight[:, list(PLAN.kept["fc.weight"][1])], small.fc.weight)
    assert dense.bn1.num_batches_tracked == 5


def test_the_fraction_of_weights_overwritten_at_one_half():
    plan = plan_pruning(models.resnet56(), IMAGE)
    dense = fuse_(fill_(models.resnet56(), 0), fill_(plan.extract(models.resnet56()), 1), plan)
    weights = [tensor for name, tensor in dense.state_dict().items() if name.endswith("weight")]
    assert round(sum(float(w.sum()) for w in weights) / sum(w.numel() for w in weights), 4) == 0.2509


def test_keep_leaves_every_other_position():
    dense, small = models.resnet8(), small_model()
    before = copy.deepcopy(dense.state_dict())
    fuse_(dense, small, PLAN, "keep")
    for name, mask in kept_part(dense).items():
        assert torch.equal(dense.state_dict()[name][mask == 0], before[name][mask == 0])


def test_zero_neutralizes_every_other_position():
    dense = fuse_(models.resnet8(), small_model(), PLAN, "zero")
    norms = {name for name, m in dense.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for name, mask in kept_part(dense).items():
        one = name.rpartition(".")[0] in norms and name.endswith(("weight", "running_var"))
        assert (dense.state_dict()[name][mask == 0] == (1 if one else 0)).all()


def test_another_model_gives_its_values_there_and_stays_as_it_is():
    other = models.resnet8().eval()
    before = copy.deepcopy(other.state_dict())
    dense, small = models.resnet8(), small_model()
    fuse_(dense, small, PLAN, other)
    for name, mask in kept_part(dense).items():
        assert torch.equal(dense.state_dict()[name][mask == 0], before[name][mask == 0])
        assert torch.equal(other.state_dict()[name], before[name])
    assert dense.training
    assert not other.training


def test_reinit_draws_with_the_given_generator_only():
    def fused(seed):
        return fuse_(
            models.resnet8(), small_model(), PLAN, "reinit", generator=torch.Generator().manual_seed(seed)
        )

    one = fused(3).state_dict()
    torch.manual_seed(99)
    dense = models.resnet8()
    before = copy.deepcopy(dense.state_dict())
    small = small_model()
    state = torch.get_rng_state()
    fuse_(dense, small, PLAN, "reinit", generator=torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), state)
    other = fused(4).state_dict()
    for name, mask in kept_part(dense).items():
        rest = mask == 0
        assert torch.equal(dense.state_dict()[name], one[name])
        if rest.any() and name.startswith(("conv", "stage")) and mask.ndim == 4:
            assert not torch.equal(one[name][rest], other[name][rest])
            assert not torch.equal(one[name][rest], before[name][rest])
    # PyTorch's own rule: uniform within the inverse root of the fan-in.
    name = "stage1.0.conv1.weight"
    drawn = one[name][kept_part(dense)[name] == 0]
    assert float(drawn.abs().max()) <= (16 * 9) ** -0.5
    assert float(drawn.abs().max()) > 0.95 * (16 * 9) ** -0.5


def test_reinit_without_a_generator_draws_from_the_default_one():
    torch.manual_seed(5)
    one = fuse_(models.resnet8(), PLAN.extract(models.resnet8()), PLAN, "reinit").state_dict()
    after = torch.get_rng_state()
    torch.manual_seed(5)
    other = fuse_(models.resnet8(), PLAN.extract(models.resnet8()), PLAN, "reinit").state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(torch.get_rng_state(), after)


def test_a_module_that_cannot_reset_itself_is_named_before_anything_is_written():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.v = nn.Parameter(torch.ones(8, 4)), nn.Parameter(torch.ones(2, 8))

        def forward(self, x):
            return nn.functional.linear(nn.functional.linear(x, self.w), self.v)

    dense = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4), Bare())
    plan = plan_pruning(dense, torch.zeros(1, 4))
    before = copy.deepcopy(dense.state_dict())
    small = fill_(plan.extract(dense), 3)
    message = r"modules without reset_parameters, got '2' \(Bare\)\. .*plan\.fuse_\(dense, small, build\(\)\)"
    with pytest.raises(ValueError, match=message):
        fuse_(dense, small, plan, "reinit")
    assert all(torch.equal(t, before[name]) for name, t in dense.state_dict().items())
    fresh = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4), Bare())
    fuse_(dense, small, plan, fresh)
    back = plan.extract(dense).state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in small.state_dict().items())


def test_reinit_knows_how_attention_draws():
    layer = nn.TransformerEncoderLayer(12, 4, 16, batch_first=True)
    dense = nn.Sequential(nn.Embedding(20, 12), layer, nn.Linear(12, 2))
    plan = plan_pruning(dense, torch.arange(10).view(2, 5))
    before = dense[1].self_attn.in_proj_weight.clone()
    small = plan.extract(dense)
    fuse_(dense, small, plan, "reinit", generator=torch.Generator().manual_seed(0))
    assert torch.equal(plan.extract(dense)[1].self_attn.in_proj_weight, small[1].self_attn.in_proj_weight)
    drawn = dense[1].self_attn.in_proj_weight != before
    assert drawn.sum() == before.numel() - small[1].self_attn.in_proj_weight.numel()
    assert float(dense[1].self_attn.in_proj_weight.detach().abs().max()) <= (6 / 48) ** 0.5  # Xavier's bound


def test_modes_gradients_and_identity_stay_and_autograd_notices():
    dense = models.resnet8().train()
    dense.stage1.eval()
    dense.conv1.weight.requires_grad_(False)
    parameters = {name: (id(p), p.requires_grad, p._version) for name, p in dense.named_parameters()}
    modes = [m.training for m in dense.modules()]
    small = small_model()
    expected = copy.deepcopy(small.state_dict())
    loss = dense(torch.randn(2, 3, 16, 16)).sum()
    assert fuse_(dense, small, PLAN) is dense
    assert [m.training for m in dense.modules()] == modes
    for name, p in dense.named_parameters():
        identity, requires_grad, version = parameters[name]
        assert (id(p), p.requires_grad) == (identity, requires_grad)
        assert p.is_leaf
        assert p._version > version
    assert all(torch.equal(t, expected[name]) for name, t in small.state_dict().items())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def other_shape() -> nn.Module:
    small = small_model()
    small.fc = nn.Linear(7, 10)
    return small


def missing_layer() -> nn.Module:
    small = small_model()
    del small.fc
    return small


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dense": models.resnet14()}, ValueError, "dense must be like the model that was planned"),
        ({"dense": 3}, TypeError, r"dense must be an nn\.Module, got int"),
        ({"small": 3}, TypeError, r"small must be an nn\.Module, got int"),
        (
            {"small": PLAN, "plan": small_model()},
            TypeError,
            r"small must be an nn\.Module, got PruningPlan",
        ),
        ({"plan": "plan.json"}, TypeError, "plan must be a PruningPlan, got str"),
        ({"generator": 3}, TypeError, r"generator must be a torch\.Generator or None, got int"),
        (
            {"small": models.resnet8()},
            ValueError,
            r"small must fit the plan: conv1\.weight must be \[6, 3, 3, 3\]",
        ),
        ({"small": other_shape()}, ValueError, r"fc\.weight must be \[10, 25\] .*got \[10, 7\]"),
        (
            {"small": missing_layer()},
            ValueError,
            r"got one of a model where fc\.bias, fc\.weight differ",
        ),
        (
            {"small": small_model().double()},
            ValueError,
            r"small must fit .* torch\.float32 on cpu, got .* torch\.float64",
        ),
        ({"small": small_model().to("meta")}, ValueError, "on cpu, got .* on meta"),
        (
            {"complement": "redraw"},
            ValueError,
            "complement must be one of keep, reinit, zero, preserve or a module, got 'redraw'",
        ),
        ({"complement": None}, TypeError, "complement must be a string or a module, got NoneType"),
        ({"complement": models.resnet14()}, ValueError, "complement must be like the model that was planned"),
        ({"complement": small_model()}, ValueError, "complement must be like the model that was planned"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_is_written(arguments, error, message):
    dense = fill_(models.resnet8(), 2)
    arguments = {"dense": dense, "small": small_model(), "plan": PLAN, "complement": "zero", **arguments}
    with pytest.raises(error, match=message):
        fuse_(**arguments)
    assert all((tensor == 2).all() for tensor in dense.state_dict().values())


def test_tied_weights_are_written_once_and_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.c.weight = self.b.weight
            self.d = nn.Linear(8, 2)

        def forward(self, x):
            return self.d(self.c(self.b(self.a(x)).relu()))

    dense = Tied().double()
    plan = plan_pruning(dense, torch.zeros(1, 4).double())
    small = plan.extract(dense)
    nn.init.normal_(small.b.weight)
    x = torch.randn(3, 4).double()
    for complement in ("zero", Tied().double()):
        fuse_(dense, small, plan, complement)
        assert dense.c.weight is dense.b.weight
        assert torch.equal(plan.extract(dense).b.weight, small.b.weight)
    torch.testing.assert_close(fuse_(dense, small, plan, "zero")(x), small(x), rtol=1e-9, atol=1e-12)


@pytest.mark.cuda
@pytest.mark.parametrize("complement", ["keep", "reinit", "zero"])
def test_on_cuda(complement):
    dense, small = models.resnet8().cuda(), small_model().cuda()
    state = torch.cuda.get_rng_state()
    generator = torch.Generator().manual_seed(0)
    fuse_(dense, small, PLAN, complement, generator=generator)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    back = PLAN.extract(dense).state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in small.state_dict().items())
