"""Pruning without training: what every layer that lost inputs makes of the rest."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pruning_oracle import scramble_
from torch import Tensor, nn
from torch.nn import functional

from prunefuse import models
from prunefuse.data import load
from prunefuse.pruning import PruningPlan, noise_like, plan_pruning, prune_without_finetuning

IMAGES = (16, 3, 8, 8)


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, list[tuple[Tensor, Tensor]]]]:
    """The output, and what went in and out of every module, call by call."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
    handles = [
        module.register_forward_hook(
            lambda _, args, out, path=path: seen.setdefault(path, []).append((args[0], out))
        )
        for path, module in model.named_modules()
    ]
    with torch.no_grad():
        result = model.eval()(x)
    for handle in handles:
        handle.remove()
    return result, seen


def assert_refitted(model: nn.Module, small: nn.Module, plan: PruningPlan, x: Tensor) -> set[str]:
    """Every convolution and linear map that lost inputs is the least-squares fit to the dense outputs.

    The design matrix is found by running the small layer on unit weights, which is slow, and knows nothing of how
    the package unfolds.
    """
    (_, dense_seen), (_, seen) = run(model, x), run(small, x)
    checked = set()
    for path, module in small.named_modules():
        name = f"{path}.weight"
        if not isinstance(module, nn.Linear | nn.modules.conv._ConvNd) or 1 not in plan.kept.get(name, {}):
            continue
        channel = 1 if isinstance(module, nn.modules.conv._ConvNd) else -1
        rows = torch.tensor(plan.kept[name].get(0, range(model.get_submodule(path).weight.shape[0])))
        inputs = torch.cat([a for a, _ in seen[path]])
        wanted = torch.cat([b for _, b in dense_seen[path]]).movedim(channel, -1)[..., rows]
        groups = getattr(module, "groups", 1)
        unit = copy.deepcopy(module)
        design = []
        for k in range(module.weight[0].numel()):
            for tensor in unit.parameters():
                tensor.data.zero_()
            unit.weight.data.flatten(1)[:, k] = 1
            with torch.no_grad():
                design.append(
                    unit(inputs).movedim(channel, -1).reshape(-1, groups, len(rows) // groups)[:, :, 0]
                )
        if module.bias is not None:
            design.append(torch.ones_like(design[0]))
        columns, targets = torch.stack(design, 2), wanted.reshape(-1, groups, len(rows) // groups)
        own = module.weight.detach().flatten(1)
        if module.bias is not None:
            own = torch.cat([own, module.bias.detach()[:, None]], 1)
        for g in range(groups):
            best = torch.linalg.lstsq(columns[:, g], targets[:, g], driver="gelsd").solution.T
            mine = own.unflatten(0, (groups, -1))[g]
            fitted = columns[:, g] @ best.T
            torch.testing.assert_close(
                columns[:, g] @ mine.T, fitted, rtol=0, atol=1e-7 * float(fitted.abs().max())
            )
        checked.add(path)
    return checked


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.one = nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.two = nn.Conv2d(6, 8, 1)
        self.head = nn.Conv2d(8, 2, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        return self.head((x + self.two(self.one(x).tanh())).relu())


class Concatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1)
        self.both = nn.Conv2d(10, 5, 2, bias=False)
        self.head = nn.Linear(5 * 7 * 7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x).relu(), self.right(x).tanh()], 1)
        return self.head(self.both(x).relu().flatten(1))


class Depthwise(nn.Module):
    """And a layer that is applied twice."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Conv2d(3, 8, 1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.mix = nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x).sin()
        x = self.mix(x).tanh() - self.mix(functional.elu(self.deep(x)))
        return self.head(functional.elu(x))


@pytest.mark.parametrize(
    ("kind", "fitted"),
    [
        (Residual, {"one", "two", "head"}),
        (Concatenated, {"both", "head"}),
        (Depthwise, {"mix", "head"}),
    ],
    ids=["residual", "concatenation", "depthwise and shared"],
)
def test_coupled_layers_are_refitted_by_least_squares(kind, fitted):
    model = scramble_(kind().double()).eval()
    x = images(400, *IMAGES[1:])
    plan, small = prune_without_finetuning(model, x[:1], x, ratio=0.5, damping=0)
    assert assert_refitted(model, small, plan, x) == fitted


CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_a_layer_is_refitted_and_never_worse_than_without(data):
    torch.manual_seed(data.draw(st.integers(0, 99)))
    dims = data.draw(st.integers(0, 3))
    bias = data.draw(st.booleans())
    if dims:
        groups = data.draw(st.sampled_from([1, 2, 4]))
        options = {
            "kernel_size": data.draw(st.integers(1, 3)),
            "stride": data.draw(st.integers(1, 2)),
            "dilation": data.draw(st.integers(1, 2)),
            "padding": data.draw(st.integers(0, 2)),
            "groups": groups,
            "bias": bias,
        }
        first, second = CONVOLUTIONS[dims](4, 8, 1), CONVOLUTIONS[dims](8, 2 * groups, **options)
        between: nn.Module = nn.GELU()
        x = images(60, 4, *(6,) * dims)
    else:
        first, between = nn.Conv2d(4, 8, 1), nn.Sequential(nn.GELU(), nn.Flatten())
        second = nn.Linear(8 * 4, 3, bias=bias)
        x = images(200, 4, 2, 2)
    model = nn.Sequential(first, between, second).double().eval()
    damping = data.draw(st.sampled_from([0.0, 0.01, 10.0]))
    plan, small = prune_without_finetuning(model, x[:1], x, ratio=0.5, damping=damping)
    same, own = prune_without_finetuning(model, x[:1], x, ratio=0.5, damping=damping, fit_to="own")
    assert same == plan  # there is no layer before this one whose errors it could make up for
    for mine, other in zip(small.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(other, mine, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        wanted = model(x)
        kept, deleted = small(x), plan.extract(model)(x)
    assert (kept - wanted).square().sum() <= (deleted - wanted).square().sum() * (1 + 1e-9)
    if not damping:
        assert assert_refitted(model, small, plan, x) == {"2"}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 16)
        self.bend = nn.GELU()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bend(self.embed(x))
        return self.head(x + self.attention(x, x, x, need_weights=False)[0])


def test_projections_of_attention_are_refitted():
    """The squared error to the dense outputs has no slope in the weights: for a linear map, that is the optimum."""
    model = scramble_(Attention().double()).eval()
    x = images(80, 7, 5)
    plan, small = prune_without_finetuning(model, x[:1], x, ratio=0.5, damping=0)
    (_, dense_seen), (_, seen) = run(model, x), run(small, x)
    big, own = model.attention, small.attention
    before, after = dense_seen["bend"][0][1], seen["bend"][0][1]
    rows = torch.tensor(plan.kept["attention.in_proj_weight"].get(0, range(48)))
    errors = [
        functional.linear(after, own.in_proj_weight, own.in_proj_bias)
        - functional.linear(before, big.in_proj_weight, big.in_proj_bias).detach()[..., rows]
    ]
    columns = torch.tensor(plan.kept["attention.out_proj.weight"].get(0, range(16)))
    wanted = dense_seen["attention"][0][1][0][..., columns]
    errors.append(own(after, after, after, need_weights=False)[0] - wanted)
    slopes = [own.in_proj_weight, own.in_proj_bias], [own.out_proj.weight, own.out_proj.bias]
    for error, parameters in zip(errors, slopes, strict=True):
        for gradient in torch.autograd.grad(error.square().sum(), parameters):
            assert gradient.abs().max() < 1e-7 * error.detach().square().sum()
    assert len(plan.kept["attention.out_proj.weight"][1]) < 16
    assert 1 in plan.kept["attention.in_proj_weight"]


class Products(nn.Module):
    """Weights by matmul and addmm, as some transformers have them; input axis first."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.matrix = nn.Parameter(torch.randn(8, 6))
        self.last = nn.Parameter(torch.randn(6, 3))
        self.bias = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu() @ self.matrix
        return torch.addmm(self.bias, x.relu().flatten(0, 1), self.last)


def test_plain_products_are_refitted():
    model = Products().double().eval()
    x = images(64, 2, 4)
    plan, small = prune_without_finetuning(model, x, x, ratio=0.5, damping=0)
    with torch.no_grad():
        rows = torch.tensor(plan.kept["matrix"][1])
        first = torch.linalg.lstsq(
            small.first(x).relu().flatten(0, 1),
            (model.first(x).relu() @ model.matrix)[..., rows].flatten(0, 1),
        ).solution
        torch.testing.assert_close(small.matrix, first)
        hidden = (small.first(x).relu() @ small.matrix).relu().flatten(0, 1)
        last = torch.linalg.lstsq(functional.pad(hidden, (0, 1), value=1.0), model(x)).solution
    torch.testing.assert_close(torch.cat([small.last, small.bias[None]]), last)


def test_layers_fitted_to_their_own_outputs_do_not_make_up_for_those_before():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = images(200, 4)
    plan, small = prune_without_finetuning(model, x[:1], x, ratio=0.5, damping=0, fit_to="own")

    def fit(inputs: Tensor, kept: tuple[int, ...], layer: nn.Module) -> Tensor:
        """(out, kept + 1): weights and bias."""
        left = functional.pad(inputs[:, list(kept)], (0, 1), value=1.0)
        return torch.linalg.lstsq(left, layer(inputs)).solution.T

    def assert_is(layer: nn.Module, wanted: Tensor) -> None:
        torch.testing.assert_close(torch.cat([layer.weight, layer.bias[:, None]], 1), wanted)

    with torch.no_grad():
        first = model[:2](x)
        second = fit(first, plan.kept["2.weight"][1], model[2])
        assert_is(small[2], second[list(plan.kept["2.weight"][0])])
        # The layer behind sees what the fitted one makes of all its outputs, also of those that will leave.
        left = functional.pad(first[:, list(plan.kept["2.weight"][1])], (0, 1), value=1.0)
        assert_is(small[4], fit((left @ second.T).tanh(), plan.kept["4.weight"][1], model[4]))


class Heads(nn.Module):
    """Six channels that three layers read."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.heads = nn.ModuleList(nn.Linear(6, 2) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x).sin()
        return torch.cat([head(x) for head in self.heads], 1)


COMBINED = {
    "sum": lambda costs: costs.sum(0),
    "mean": lambda costs: costs.mean(0),
    "median": lambda costs: costs.median(0).values,
}


def test_costs_in_several_layers_are_combined():
    torch.manual_seed(0)
    model = Heads().double().eval()
    model.heads[0].weight.data *= 10 * torch.linspace(1, 0, 6)  # one layer that outweighs the others
    x = images(100, 4)
    with torch.no_grad():
        hidden = model.body(x).sin()

        def cost(head: nn.Module, channel: int) -> Tensor:
            left = torch.cat([hidden[:, :channel], hidden[:, channel + 1 :], torch.ones(100, 1)], 1)
            wanted = head(hidden)
            return (left @ torch.linalg.lstsq(left, wanted).solution - wanted).square().sum()

        costs = torch.tensor([[cost(head, channel) for channel in range(6)] for head in model.heads])
    kept = {}
    for how, combined in COMBINED.items():
        plan, _ = prune_without_finetuning(model, x[:1], x, ratio=0.5, damping=0, combine=how)
        best = combined(costs).topk(3).indices.sort().values
        kept[how] = plan.kept["body.weight"][0]
        assert kept[how] == tuple(best.tolist())
    assert kept["median"] != kept["sum"]


@pytest.mark.parametrize("fit_to", ["dense", "own"])
def test_batch_norms_have_the_statistics_of_the_calibration_inputs(fit_to):
    model = scramble_(models.resnet8().double())
    x = images(*IMAGES)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():  # one layer after the other, each behind norms that are settled
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            model.eval()
            norm.train()
            norm.reset_running_stats()
            model(x)
    _, small = prune_without_finetuning(model, x[:1], x, ratio=0.5, fit_to=fit_to)
    _, seen = run(small, x)
    for path, norm in small.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            inputs = seen[path][0][0].movedim(1, 0).flatten(1)
            torch.testing.assert_close(norm.running_mean, inputs.mean(1), rtol=1e-6, atol=1e-8)
            torch.testing.assert_close(norm.running_var, inputs.var(1), rtol=1e-6, atol=1e-8)


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A ResNet-8 trained for three seconds, calibration images, test images and labels."""
    data = load("digits")
    x, y = map(torch.stack, zip(*((x, torch.as_tensor(y)) for x, y in data.pool), strict=True))
    test_x, test_y = map(torch.stack, zip(*((x, torch.as_tensor(y)) for x, y in data.test), strict=True))
    torch.manual_seed(0)
    model = models.resnet8(in_channels=1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=12 * 23)
    for _ in range(12):
        for some in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(model(x[some]), y[some]).backward()
            optimizer.step()
            schedule.step()
    return model.eval(), x[:512], test_x, test_y


@pytest.mark.parametrize(("ratio", "flops"), [(0.15, 0.7), (0.3, 0.5), (0.45, 0.3)])
def test_a_trained_network_keeps_its_accuracy_where_deletion_does_not(digits, ratio, flops):
    model, images, x, y = digits

    def accuracy(net: nn.Module) -> float:
        with torch.no_grad():
            return float((net(x).argmax(1) == y).float().mean())

    deletion = plan_pruning(model, images[:1], ratio=ratio, criterion="l1")
    plan, small = prune_without_finetuning(model, images[:1], images, ratio=ratio)
    assert plan.flops == deletion.flops
    assert plan.flops[1] / plan.flops[0] == pytest.approx(flops, abs=0.05)
    assert accuracy(model) > 0.95
    assert accuracy(small) > accuracy(model) - 0.03
    assert accuracy(small) > accuracy(deletion.extract(model))
    _, from_noise = prune_without_finetuning(model, images[:1], noise_like(images[:1], 512), ratio=ratio)
    assert accuracy(from_noise) > accuracy(deletion.extract(model))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden = nn.Linear(4, 8), nn.Linear(4, 8)
        self.lstm = nn.LSTM(8, 6, batch_first=True)
        self.head, self.other = nn.Linear(6, 2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(x))[0]) + self.other(self.hidden(x).relu())


def test_channels_stay_that_something_reads_which_cannot_make_up_for_them():
    model = Recurrent()
    x = torch.randn(40, 5, 4)
    plan, _ = prune_without_finetuning(model, x[:1], x, ratio=0.5)
    assert set(plan.kept) == {"hidden.weight", "hidden.bias", "other.weight"}
    assert any("embed" in note and "lstm" in note for note in plan.notes)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(11, 8), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        x = x + self.down(self.up(x).relu())
        return functional.linear(x, self.table.weight)


def test_a_weight_with_a_second_use_is_not_changed():
    model = Tied()
    tokens = torch.randint(0, 11, (40, 6))
    plan, small = prune_without_finetuning(model, tokens[:1], tokens, ratio=0.5)
    assert torch.equal(small.table.weight, model.table.weight)
    assert len(plan.kept["down.weight"][1]) == 8


def test_the_model_the_generators_and_modes_are_left_alone():
    model = scramble_(models.resnet8()).train()
    model.stage1.eval()
    values, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    modes = [m.training for m in model.modules()]
    _, small = prune_without_finetuning(
        model, torch.zeros(1, *IMAGES[1:]), noise_like(torch.zeros(IMAGES), 32)
    )
    assert all(torch.equal(tensor, values[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes == [m.training for m in small.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in [*model.modules(), *small.modules()])


def test_the_form_of_the_calibration_inputs_and_the_memory_do_not_matter():
    model = scramble_(models.resnet8().double())
    x = images(100, *IMAGES[1:])
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.zeros(100)), batch_size=30)
    one = prune_without_finetuning(model, x[:1], x, ratio=0.5)
    for calibration, memory in ((loader, 2**30), ([x[:1], x[1:]], 1)):
        plan, small = prune_without_finetuning(model, x[:1], calibration, ratio=0.5, memory=memory)
        assert plan == one[0]
        for name, tensor in small.state_dict().items():
            torch.testing.assert_close(tensor, one[1].state_dict()[name], rtol=1e-6, atol=1e-8)
    assert plan.criterion == "obspa"


def test_noise_is_seeded_and_shaped_like_the_examples():
    example = (torch.zeros(1, 3, 4, dtype=torch.float64), torch.zeros(5, 2))
    batches = noise_like(example, 100, seed=3)
    assert [[tuple(x.shape) for x in batch] for batch in batches] == [
        [(64, 3, 4), (64, 2)],
        [(36, 3, 4), (36, 2)],
    ]
    assert [x.dtype for x in batches[0]] == [torch.float64, torch.float32]
    again, other = noise_like(example, 100, seed=3), noise_like(example, 100, seed=4)
    assert torch.equal(batches[1][0], again[1][0])
    assert not torch.equal(batches[1][0], other[1][0])
    with pytest.raises(ValueError, match="example_inputs must be floating-point"):
        noise_like(torch.zeros(1, 3, dtype=torch.int64))


@pytest.mark.parametrize(
    ("calibration", "options", "error", "words"),
    [
        (iter([torch.zeros(2, 3)]), {}, TypeError, "calibration must be a tensor or something"),
        ([], {}, ValueError, "calibration must be at least one batch"),
        ([{"x": 1}], {}, TypeError, "calibration must be batches of 1 tensors"),
        (torch.zeros(2, 3), {"criterion": "l1"}, TypeError, "criterion"),
        (torch.zeros(2, 3), {"damping": -1}, ValueError, "damping must be"),
        (
            torch.zeros(2, 3),
            {"combine": "mode"},
            ValueError,
            "combine must be one of sum, mean, median, got 'mode'",
        ),
        (torch.zeros(2, 3), {"fit_to": None}, ValueError, "fit_to must be one of dense, own, got None"),
        (
            torch.zeros(2, 3),
            {"damping": 0},
            ValueError,
            "damping must be larger, or calibration must be more inputs",
        ),
    ],
    ids=["iterator", "empty", "mapping", "criterion", "negative", "combine", "fit_to", "singular"],
)
def test_wrong_arguments_are_named(calibration, options, error, words):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(error, match=words):
        prune_without_finetuning(model, torch.zeros(1, 3), calibration, **options)
    with pytest.raises(ValueError, match="model must have a convolution or linear layer"):
        prune_without_finetuning(nn.Linear(3, 2), torch.zeros(1, 3), torch.zeros(2, 3))


class OwnMatrices(nn.Module):
    """Multiplies by parameters of its own a second time."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.f, self.o = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 3)
        self.A, self.B = nn.Parameter(torch.randn(4, 32)), nn.Parameter(torch.randn(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.i(x).relu()
        return self.o((self.f(h) + h @ self.A.t() @ self.B.t() + h @ (self.A + 0).t() @ self.B.t()).relu())


def test_parameters_of_the_model_itself_that_something_reads_twice():
    model, x = OwnMatrices(), torch.randn(64, 8)
    plan, small = prune_without_finetuning(model, x[:2], x, ratio=0.3)
    assert small(x).shape == (64, 3)
    assert plan.kept
