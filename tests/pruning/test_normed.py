"""Weights that are divided by a norm of their own: what is kept is applied with the values that it had."""

from __future__ import annotations

import pytest
import torch
from pruning_oracle import scramble_
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from prunefuse.pruning import PruningPlan, plan_pruning

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
NORMS = {
    "weight norm": parametrizations.weight_norm,
    "weight norm of columns": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "weight norm of all": lambda layer: parametrizations.weight_norm(layer, dim=None),
    "weight norm by hooks": weight_norm,
    "weight norm of all by hooks": lambda layer: weight_norm(layer, dim=None),
    "spectral norm": parametrizations.spectral_norm,
    "spectral norm by hooks": spectral_norm,
}
LAYERS = {
    "linear": (nn.Linear, ()),
    "convolution": (nn.Conv1d, (3,)),
    "transposed": (nn.ConvTranspose1d, (3,)),
}


def network(wrap, layer, more):
    """Two such layers between plain ones, with values as after training."""
    model = nn.Sequential(
        layer(5, 16, *more),
        nn.ReLU(),
        wrap(layer(16, 12, *more)),
        nn.ReLU(),
        wrap(layer(12, 8, *more)),
        layer(8, 3, *more),
    ).double()
    x = torch.randn(4, 5, *(12 for _ in more)).double()
    model.train()(x)  # the vectors of spectral norms move
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + torch.rand_like(parameter))
    return model.eval(), x


def applied(model, x):
    """The weights of the layers as they are applied."""
    model(x)
    return [model[at].weight.detach() for at in (0, 2, 4, 5)]


def parts(plan, layer, weights):
    """What a plan keeps of applied weights."""
    reads, writes = (0, 1) if layer is nn.ConvTranspose1d else (1, 0)
    widths = [
        list(plan.kept.get(f"{at}.bias", {0: range(w.shape[writes])})[0])
        for at, w in zip((0, 2, 4, 5), weights, strict=True)
    ]
    inputs = [list(range(5)), *widths[:-1]]
    return [
        w.index_select(writes, torch.tensor(out)).index_select(reads, torch.tensor(into))
        for w, out, into in zip(weights, widths, inputs, strict=True)
    ]


@pytest.mark.parametrize("wrap", NORMS.values(), ids=NORMS.keys())
@pytest.mark.parametrize(("layer", "more"), LAYERS.values(), ids=LAYERS.keys())
def test_kept_weights_are_applied_as_before_and_written_back_so(wrap, layer, more):
    model, x = network(wrap, layer, more)
    plan = plan_pruning(model, x)
    small = plan.extract(model).eval()
    assert (len(small[2].bias), len(small[4].bias)) == (6, 4)
    for part, weight in zip(parts(plan, layer, applied(model, x)), applied(small, x), strict=True):
        torch.testing.assert_close(weight, part)
    with torch.no_grad():  # as training would
        for parameter in small.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    trained = applied(small, x)
    plan.fuse_(model, small)
    for part, weight in zip(parts(plan, layer, applied(model, x)), trained, strict=True):
        torch.testing.assert_close(part, weight)
    for a, b in zip(small.state_dict().values(), plan.extract(model).state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_exported_program_applies_them_too():
    model, x = network(parametrizations.weight_norm, nn.Linear, ())
    plan = plan_pruning(model, x)
    program = plan.extract_program(model, x).module()
    torch.testing.assert_close(program(x), plan.extract(model).eval()(x))


def test_zeros_as_complement_keep_the_function():
    model, x = network(parametrizations.weight_norm, nn.Linear, ())
    scramble_(model)
    plan = plan_pruning(model, x)
    small = plan.extract(model).eval()
    torch.testing.assert_close(plan.fuse_(model, small, "zero").eval()(x), small(x))


def test_layers_that_lose_outputs_only_keep_their_gains_to_the_bit():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 16)), nn.ReLU(), nn.Linear(16, 3))
    plan = plan_pruning(model, torch.zeros(1, 5))
    inside = "parametrizations.weight.original0"
    kept = list(plan.kept[f"0.{inside}"][0])
    assert torch.equal(plan.extract(model)[0].get_parameter(inside), model[0].get_parameter(inside)[kept])


class Standardized(nn.Module):
    """Rows of mean 0 and deviation 1, with a gain each."""

    def __init__(self, rows, dims):
        super().__init__()
        self.gain = nn.Parameter(torch.rand(rows, *(1 for _ in range(dims - 1))))

    def forward(self, weight):
        rows = weight.flatten(1)
        rows = (rows - rows.mean(1, keepdim=True)) / (rows.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        return rows.view_as(weight) * self.gain


class Centered(nn.Module):
    """The same without gains."""

    def forward(self, weight):
        rows = weight.flatten(1)
        deviation, mean = torch.std_mean(rows, dim=1, keepdim=True, correction=0)
        return ((rows - mean) / deviation).view_as(weight)


class Unit(nn.Module):
    def forward(self, weight):
        return nn.functional.normalize(weight.flatten(1), dim=1).view_as(weight)


def parametrized(kind):
    def wrap(layer):
        part = kind(len(layer.weight), layer.weight.ndim) if kind is Standardized else kind()
        nn.utils.parametrize.register_parametrization(layer, "weight", part)
        return layer

    return wrap


FORMS = {
    "orthogonal": parametrizations.orthogonal,
    "orthogonal by Cayley": lambda layer: parametrizations.orthogonal(layer, orthogonal_map="cayley"),
    "standardized without gains": parametrized(Centered),
    "of unit length": parametrized(Unit),
    "weight norm": parametrizations.weight_norm,
    "weight norm by hooks": weight_norm,
}


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("wrap", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize(
    ("layer", "more"), [(nn.Linear, ()), (nn.Conv1d, (1,))], ids=["linear", "convolution"]
)
def test_weights_of_any_form_are_applied_as_before_in_both_modes(wrap, layer, more, training):
    """Of forms that hold for the whole weight alone, what would change them stays, with a note."""
    model, x = network(wrap, layer, more)
    model.train(training)
    plan = plan_pruning(model, x)
    assert plan.params[1] < plan.params[0]
    small = plan.extract(model)
    assert small.training is training
    for part, weight in zip(parts(plan, layer, applied(model, x)), applied(small, x), strict=True):
        torch.testing.assert_close(weight, part)
    plan.fuse_(model, small)
    for part, weight in zip(parts(plan, layer, applied(model, x)), applied(small, x), strict=True):
        torch.testing.assert_close(part, weight)


class Written(nn.Conv1d):
    """A convolution that standardizes its weight itself, with gains."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1))

    def applied(self):
        var, mean = torch.var_mean(self.weight, dim=[1, 2], keepdim=True, unbiased=False)
        return self.gain * ((self.weight - mean) * (var + 1e-9).rsqrt())

    def forward(self, x):
        return nn.functional.conv1d(x, self.applied(), self.bias)


class ByBatchNorm(Written):
    def applied(self):
        flat = self.weight.reshape(1, self.out_channels, -1)
        gain = (self.gain * 0.3).view(-1)
        rows = nn.functional.batch_norm(flat, None, None, weight=gain, training=True, momentum=0.0, eps=1e-9)
        return rows.reshape_as(self.weight)


class WithoutGain(Written):
    """As timm has some for big transfer."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        del self.gain

    def applied(self):
        flat = self.weight.reshape(1, self.out_channels, -1)
        rows = nn.functional.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-9)
        return rows.reshape_as(self.weight)


class Parametrized(nn.Conv1d):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        parametrized(Standardized)(self)

    def applied(self):
        return self.weight


STANDARDIZED = [Written, ByBatchNorm, Parametrized]


def standardized_network(kind):
    model = nn.Sequential(
        nn.Conv1d(4, 16, 1), nn.ReLU(), kind(16, 12, 3), nn.ReLU(), kind(12, 8, 3), nn.Conv1d(8, 2, 1)
    )
    return scramble_(model).double(), torch.randn(2, 4, 9).double()


def rows_left(plan, model, at):
    """What a plan keeps of the weight of a standardized layer, as it is applied."""
    name = next(x for x in plan.kept if x.startswith(f"{at}.") and x.endswith(("weight", "original")))
    axes = plan.kept[name]
    weight = model[at].applied().detach()
    return weight[list(axes[0])][:, list(axes[1])], name


@pytest.mark.parametrize("kind", STANDARDIZED)
def test_rows_of_standardized_weights_keep_their_norms_by_their_gains(kind):
    model, x = standardized_network(kind)
    plan = plan_pruning(model, x)
    small = plan.extract(model)
    told = " ".join(plan.notes)
    for at in (2, 4):
        part, name = rows_left(plan, model, at)
        now = small[at].applied().detach()
        assert now.shape == part.shape
        torch.testing.assert_close(now.flatten(1).norm(dim=1), part.flatten(1).norm(dim=1), rtol=1e-4, atol=0)
        assert f"{name} {100 * float((now - part).norm() / part.norm()):.2g} %" in told
    assert "gains keep the norm of each row" in told
    program = plan.extract_program(model, x).module()
    torch.testing.assert_close(program(x), small.eval()(x))
    scramble_(small, 5)  # as training would
    plan.fuse_(model, small)
    again = plan.extract(model)
    for a, b in zip(small.state_dict().values(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)
    for at in (2, 4):
        part, _ = rows_left(plan, model, at)
        now = small[at].applied().detach()
        torch.testing.assert_close(now.flatten(1).norm(dim=1), part.flatten(1).norm(dim=1), rtol=1e-4, atol=0)


def test_standardized_weights_without_gains_are_told():
    model, x = standardized_network(WithoutGain)
    plan = plan_pruning(model, x)
    small = plan.extract(model)
    part, name = rows_left(plan, model, 2)
    amount = float((small[2].applied().detach() - part).norm() / part.norm())
    assert any(
        "no gains keep the norms" in note and f"{name} {100 * amount:.2g} %" in note for note in plan.notes
    )
    assert not plan.standardized


def test_a_loaded_plan_has_the_gains(tmp_path):
    model, x = standardized_network(Written)
    plan = plan_pruning(model, x)
    plan.save(tmp_path / "plan.json")
    loaded = PruningPlan.load(tmp_path / "plan.json")
    assert loaded.standardized == {"2.weight": "2.gain", "4.weight": "4.gain"}
    torch.testing.assert_close(loaded.extract(model)(x), plan.extract(model)(x), rtol=0, atol=0)
