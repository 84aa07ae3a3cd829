"""What channels are worth, against brute force over the elements of every coupled set."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from pruning_oracle import assert_pruning_is_masking, scramble_
from torch import nn

from prunefuse import models
from prunefuse._inputs import Inputs
from prunefuse.pruning import plan_pruning
from prunefuse.pruning._choose.gradients import Evidence, gather
from prunefuse.pruning._choose.scores import Scoring, channel_scores
from prunefuse.pruning._graph.copies import named_tensors
from prunefuse.pruning._graph.export import export
from prunefuse.pruning._graph.program import Program
from prunefuse.pruning._walk import trace


class Net(nn.Module):
    """A residual axis of 6 with a norm, on which ``b`` both reads and writes, and a free axis of 5."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 6)
        self.c, self.d = nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x):
        x = torch.tanh(self.a(x))
        return self.d(torch.tanh(self.c(x + self.b(self.norm(x)))))


X, Y = torch.randn(8, 3, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 2
BATCHES = [(X[:4], Y[:4]), (X[4:], Y[4:])]


@pytest.fixture(scope="module")
def traced():
    model = scramble_(Net(), 3)
    found = trace(model, Program.of(export(model, Inputs((X[:1],), {}))))
    return model, found, found.component


def mean_loss(model):
    return sum(nn.functional.cross_entropy(model(x), y) for x, y in BATCHES) / len(BATCHES)


def truth(model):
    """Gradient, Hessian times gradient, and squared gradients of batches, by the definition."""
    names, tensors = zip(*model.named_parameters(), strict=True)
    gradient = torch.autograd.grad(mean_loss(model), tensors, create_graph=True)
    flat = torch.cat([g.flatten() for g in gradient])
    hessian = torch.stack([torch.cat([h.flatten() for h in torch.autograd.grad(g, tensors, retain_graph=True)])
                           for g in flat])  # fmt: skip
    split = [x.numel() for x in tensors]
    squared = [
        torch.stack(
            [torch.autograd.grad(nn.functional.cross_entropy(model(x), y), t)[0] ** 2 for x, y in BATCHES]
        )
        for t in tensors
    ]

    def shaped(vector):
        parts = zip(vector.split(split), tensors, strict=True)
        return dict(zip(names, (p.view_as(t).detach() for p, t in parts), strict=True))

    return {
        "theta": dict(zip(names, (x.detach() for x in tensors), strict=True)),
        "gradient": shaped(flat),
        "product": shaped(hessian @ flat),
        "diagonal": shaped(hessian.diagonal()),
        "squared": dict(zip(names, (s.mean(0).detach() for s in squared), strict=True)),
    }


FORMULAS = {
    "l1": ("", lambda t, _: abs(t)),
    "l2": ("", lambda t, _: t * t),
    "snip": ("gradient", lambda t, g: abs(t * g)),
    "taylor": ("gradient", lambda t, g: t * g),
    "grasp": ("product", lambda t, h: t * h),
    "crop": ("product", lambda t, h: abs(t * h)),
    "fisher": ("squared", lambda t, f: t * t * f / 2),
}


def by_definition(traced, criterion, scope, aggregation):
    """Loop over every element of every parameter: which coupled channels is it on, and what is it worth."""
    model, found, component = traced
    known = truth(model)
    kind, formula = FORMULAS[criterion]
    members = {}
    for name, theta in known["theta"].items():
        axes = (
            range(theta.ndim)
            if scope == "coupled"
            else [found.writers[name]]
            if name in found.writers
            else []
        )
        for index in product(*map(range, theta.shape)):
            other = float(known[kind][name][index]) if kind else 0.0
            sets = {int(component[found.tensors[name].axes[a][index[a]]]) for a in axes} - {0}
            for channel in sets:
                members.setdefault(channel, []).append(formula(float(theta[index]), other))
    combine = {
        "norm": lambda s: np.sqrt(sum(s)) if criterion == "l2" else sum(s),
        "sum": sum,
        "mean": np.mean,
        "max": lambda s: max(map(abs, s)) if criterion == "taylor" else max(s),
        "l2": lambda s: np.sqrt(np.square(s).sum()),
    }[aggregation]
    finish = abs if criterion == "taylor" else float
    return {channel: finish(combine(scores)) for channel, scores in members.items()}


@pytest.mark.parametrize("aggregation", ["norm", "sum", "mean", "max", "l2"])
@pytest.mark.parametrize("scope", ["writers", "coupled"])
@pytest.mark.parametrize("criterion", FORMULAS)
def test_scores_are_the_formula_over_the_coupled_set(traced, criterion, scope, aggregation):
    model, found, component = traced
    kind = FORMULAS[criterion][0]
    evidence = gather(model, kind, None, BATCHES, 0) if kind else Evidence()
    scoring = Scoring(criterion, scope, aggregation)
    got = channel_scores(scoring, found, component, named_tensors(model), evidence)
    expected = by_definition(traced, criterion, scope, aggregation)
    assert len(expected) == 11
    for channel, score in expected.items():
        assert got[channel] == pytest.approx(score, rel=2e-4, abs=1e-7)


def test_the_diagonal_of_the_hessian_is_exact_where_there_is_nothing_else():
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False))
    curvature = torch.rand(3, 2)

    def loss(model, batch):
        return (batch * curvature * model[0].weight ** 2).sum() / 2

    evidence = gather(model, "diagonal", loss, [1.0, 3.0], 0)
    torch.testing.assert_close(evidence.second["0.weight"], 2 * curvature)
    assert not evidence.second["1.weight"].any()
    plan = plan_pruning(model, torch.zeros(1, 2), criterion="obd", loss=loss, batches=[1.0], ratio=0.6)
    worth = (curvature * model[0].weight.detach() ** 2).sum(1)
    assert plan.kept["0.weight"][0] == (int(worth.argmax()),)


def test_gradients_of_attention_exist_twice():
    model = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True).eval()
    plan = plan_pruning(
        model,
        torch.zeros(1, 3, 16),
        criterion="crop",
        loss=lambda m, x: m(x).square().mean(),
        batches=[torch.randn(2, 3, 16)],
        preset="spa",
        ratio=0.4,
    )
    plan.extract(model)(torch.zeros(1, 3, 16))


def test_the_model_is_left_as_it_was_and_its_mode_counts():
    model = scramble_(models.resnet8()).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    batches = [(torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(4))]
    trained = plan_pruning(model, torch.zeros(1, 3, 16, 16), criterion="grasp", batches=batches)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    again = plan_pruning(model, torch.zeros(1, 3, 16, 16), criterion="grasp", batches=batches)
    assert again == trained
    assert (
        plan_pruning(model.eval(), torch.zeros(1, 3, 16, 16), criterion="grasp", batches=batches) != trained
    )


def test_a_function_of_the_user_is_given_parameters_and_their_gradients():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    x, y = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    nn.functional.cross_entropy(model(x), y).backward()
    seen = {}

    def mine(parameter, gradient):
        seen[tuple(parameter.shape)] = gradient
        return parameter.new_tensor(range(parameter.shape[0])).view(-1, 1).expand_as(parameter)

    plan = plan_pruning(model, torch.zeros(1, 4), criterion=mine, batches=[(x, y)])
    assert plan.kept["0.weight"][0] == (3, 4, 5)
    assert plan.criterion == "mine"
    torch.testing.assert_close(seen[6, 4], model[0].weight.grad)
    plan_pruning(model, torch.zeros(1, 4), criterion=mine)
    assert seen[6, 4] is None


def test_norm_scales_rank_what_they_scale_and_the_rest_stays():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1)
    )
    scale = torch.tensor([3.0, -4, 0.1, 0, 5, 0.2, -6, 0.3])
    with torch.no_grad():
        model[1].weight.copy_(scale)
    plan = plan_pruning(model, torch.zeros(1, 3, 4, 4), criterion="bn_scale")
    assert plan.kept["0.weight"][0] == (0, 1, 4, 6)
    assert set(plan.kept) == {
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
        "3.weight",
    }
    assert plan.notes == ("bn_scale gives these channels no score: 3.weight",)
    with pytest.raises(ValueError, match=r"nothing was pruned.*bn_scale gives these channels no score"):
        plan_pruning(model[3:], torch.zeros(1, 8, 4, 4), criterion="bn_scale")


def test_activations_are_those_that_the_reading_layers_see():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    data = [torch.randn(7, 4), (torch.randn(7, 4), None)]
    plan = plan_pruning(model, torch.zeros(1, 4), criterion="activation", batches=data, ratio=0.5)
    for depth, kept in ((2, plan.kept["0.weight"][0]), (4, plan.kept["2.weight"][0])):
        seen = sum(model[:depth](x).mean(0) for x in (data[0], data[1][0]))
        assert kept == tuple(sorted(seen.topk(len(kept)).indices.tolist()))


def test_given_scores_take_the_place_of_a_criterion():
    model = Net()
    given = {"c.weight": {0: torch.arange(5.0)}, "d.weight": {1: torch.tensor([9.0, 0, 0, 0, 0])}}
    plan = plan_pruning(model, X[:1], scores=given, ratio=0.6)
    assert plan.kept["d.weight"][1] == (0, 4)
    assert plan.criterion == "scores"
    assert all(layer.width_after == 6 for layer in plan.layers[:3])
    assert "scores gives these channels no score: a.weight" in plan.notes[0]


@pytest.mark.parametrize(
    "criterion", ["l1", "l2", "random", "snip", "taylor", "grasp", "crop", "fisher", "obd"]
)
@pytest.mark.parametrize("preset", ["prunefuse", "spa"])
def test_every_criterion_leaves_the_masked_function(criterion, preset):
    model = scramble_(models.resnet8()).double().eval()
    image = torch.randn(4, 3, 16, 16).double()
    batches = [(image, torch.arange(4))]
    plan = plan_pruning(model, image, criterion=criterion, batches=batches, preset=preset, ratio=0.4)
    assert_pruning_is_masking(model, plan, image)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"criterion": "snip"}, ValueError, "batches must be data, such as .* for the criterion 'snip'"),
        ({"criterion": "snip", "batches": []}, ValueError, "batches must be at least one batch, got none"),
        ({"criterion": "snip", "batches": [X]}, ValueError, r"batches must be pairs of tensors \(x, y\).* got Tensor"),
        (
            {"criterion": "snip", "batches": BATCHES, "loss": lambda m, b: m(b[0])},
            ValueError,
            "loss must return a tensor with one number",
        ),
        (
            {"criterion": "snip", "batches": BATCHES, "loss": lambda m, b: m(b[0]).sum().detach()},
            ValueError,
            "loss must depend on the parameters, got one that does not",
        ),
        ({"criterion": lambda p, g: 3}, TypeError, "criterion must return a tensor, got int"),
        ({"criterion": lambda p, g: p[:1]}, ValueError, r"a score for every element of a\.weight, shape \(6, 3\)"),
        ({"criterion": lambda p, g: p / 0}, ValueError, "values that are not finite"),
        ({"scores": {"e": {0: X}}}, ValueError, "scores must be of axes of the model, got axis 0 of a tensor 'e'"),
        ({"scores": {"c.weight": {0: X}}}, ValueError, r"scores must be 5 finite numbers for axis 0 of 'c\.weight', got shape"),
        ({"scores": {"c.weight": {0: torch.ones(5) / 0}}}, ValueError, "scores must be 5 finite numbers for axis 0"),
        ({"aggregation": "median"}, ValueError, "aggregation must be one of norm, sum"),
        ({"normalization": "l2"}, ValueError, "normalization must be one of none, sum"),
        ({"scope": "all"}, ValueError, "scope must be one of writers, coupled"),
        ({"preset": "spa2"}, ValueError, "preset must be one of prunefuse, spa"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        plan_pruning(Net(), X[:1], **arguments)
