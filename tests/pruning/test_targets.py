"""Targets instead of ratios, ratios for parts of a model, multiples and least widths."""

from __future__ import annotations

import pytest
import torch
from pruning_oracle import assert_pruning_is_masking, scramble_
from torch import nn

from prunefuse import models
from prunefuse.pruning import Target, plan_pruning

IMAGE = torch.zeros(2, 3, 16, 16)


def width(plan, name):
    return next(layer.width_after for layer in plan.layers if layer.name == name)


@pytest.mark.parametrize("options", [{}, {"preset": "spa"}, {"criterion": "random", "round_to": 2}])
@pytest.mark.parametrize("quantity", ["parameters", "flops"])
@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.9])
def test_the_least_ratio_that_keeps_to_it(quantity, fraction, options):
    model = models.resnet14(shortcut="B")
    plan = plan_pruning(model, IMAGE, target=Target(quantity, fraction), **options)
    dense, reached = plan.params if quantity == "parameters" else plan.flops
    assert reached <= fraction * dense
    less = plan_pruning(model, IMAGE, ratio=plan.ratio - 2**-16, rounding=plan.rounding, **options)
    assert (less.params if quantity == "parameters" else less.flops)[1] > fraction * dense
    again = plan_pruning(model, IMAGE, ratio=plan.ratio, rounding=plan.rounding, **options)
    assert again.kept == plan.kept
    note = plan.notes[1 if "preset" in options else 0]
    assert note.startswith(f"{quantity} at most {fraction * dense:,.0f}: {dense:,} -> {reached:,} (")
    assert note in plan.summary()


def test_an_absolute_amount():
    model = models.resnet8()
    assert plan_pruning(model, IMAGE, target=Target("parameters", at_most=40_000)).params[1] <= 40_000


def test_global_ranking_comes_close_to_a_target():
    model = models.resnet20()
    for quantity in ("parameters", "flops"):
        plan = plan_pruning(model, IMAGE, target=Target(quantity, 0.5), preset="spa")
        dense, reached = plan.params if quantity == "parameters" else plan.flops
        assert 0.47 < reached / dense <= 0.5


def test_memory_is_weights_and_the_most_activations_that_are_alive_at_once():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 100), nn.Linear(100, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.c(self.b(self.a(x)))

    x = torch.zeros(10, 4)
    plan = plan_pruning(Net(), x, target=Target("memory", at_most=5000), ignore="b")
    small = plan.extract(Net())
    kept = width(plan, "a")
    weights = sum(p.numel() for p in small.parameters())
    activations = 10 * (kept + max(4, 8))  # what a layer reads and what it writes
    assert 4 * (weights + activations) <= 5000 < 4 * (weights + 4 + 1 + 8 + activations + 10)
    assert f"-> {4 * (weights + activations):,} bytes" in plan.notes[0]


class Clock:
    """Stands still but where a layer works."""

    now = 0.0

    def perf_counter(self):
        return self.now


class Slow(nn.Linear):
    """Takes 40 microseconds of a clock for each of its channels."""

    clock = Clock()

    def forward(self, x):
        if not torch.compiler.is_compiling():
            self.clock.now += 40e-6 * self.weight.shape[0]
        return super().forward(x)


def test_latency_is_measured_on_the_pruned_model(monkeypatch):
    monkeypatch.setattr("prunefuse.pruning._choose.targets.time", Slow.clock)
    model = nn.Sequential(Slow(4, 100), nn.ReLU(), nn.Linear(100, 2)).train()
    plan = plan_pruning(model, torch.randn(1, 4), target=Target("latency", 0.5, repeats=5))
    assert width(plan, "0") in (49, 50)
    assert "latency at most" in plan.notes[0]
    assert "medians of 5 forwards in turns, 1 thread; the middle half of the runs spans" in plan.notes[0]
    assert model.training
    with pytest.raises(ValueError, match="target must be less than the latency of the dense model"):
        plan_pruning(model, torch.randn(1, 4), target=Target("latency", at_most=60.0, repeats=1))
    with pytest.raises(
        ValueError, match=r"target must be at least .* for latency, got 1e-07: .* with every axis"
    ):
        plan_pruning(model, torch.randn(1, 4), target=Target("latency", at_most=1e-7, repeats=1))


def test_ratios_of_their_own():
    model = models.resnet14(shortcut="B")
    only = plan_pruning(model, IMAGE, ratios={"stage3.*": 0.75, "stage3.1.conv1": 0.5})
    widths = {
        layer.name: (layer.width_before, layer.width_after) for layer in only.layers if layer.type == "Conv2d"
    }
    for name, (before, after) in widths.items():
        expected = (before // 2 if "1.conv1" in name else before // 4) if "stage3" in name else before
        assert after == expected
    both = plan_pruning(model, IMAGE, ratio=0.5, ratios={"stage3": 0, "stage1.0.conv1": 0.9})
    assert width(both, "stage3.0.conv1") == 64
    assert (width(both, "conv1"), width(both, "stage1.0.conv1")) == (8, 1)
    target = Target("flops", 0.5)
    for preset in ("prunefuse", "spa"):
        plan = plan_pruning(model, IMAGE, target=target, ratios={"stage1.0.conv1": 0.25}, preset=preset)
        assert width(plan, "stage1.0.conv1") == 12
        assert plan.flops[1] <= plan.flops[0] / 2


def test_tied_channels_with_several_ratios_take_the_smallest():
    model = models.resnet8()  # conv1 and stage1.0.conv2 write the same residual axis
    plan = plan_pruning(model, IMAGE, ratios={"conv1": 0.75, "stage1.0.conv2": 0.25})
    assert width(plan, "conv1") == width(plan, "stage1.0.conv2") == 12


@pytest.mark.parametrize("preset", ["prunefuse", "spa"])
def test_multiples_and_least_widths(preset):
    model = scramble_(models.resnet14(shortcut="B")).double()
    image = torch.randn(2, 3, 16, 16).double()
    plan = plan_pruning(model, image, ratio=0.55, round_to=4, preset=preset)
    widths = [layer.width_after for layer in plan.layers if layer.type == "Conv2d"]
    assert all(n % 4 == 0 for n in widths)
    assert_pruning_is_masking(model, plan, image)
    plan = plan_pruning(model, image, ratio=0.9, min_channels=7, preset=preset)
    widths = [layer.width_after for layer in plan.layers if layer.type == "Conv2d"]
    assert min(widths) == 7
    plan = plan_pruning(model, image, ratio=0.5, round_to=32, preset=preset)
    assert width(plan, "stage1.0.conv1") == 16
    assert width(plan, "stage3.0.conv1") in (32, 64)


class Attention(nn.Module):
    """Eight heads of 4 channels each."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(12, 96), nn.Linear(32, 12)

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, -1, 4).permute(2, 0, 3, 1, 4)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("options", "heads"), [({}, 3), ({"round_to": 8}, 2), ({"min_channels": 18}, 5)])
def test_heads_stay_whole_and_count_as_their_channels(options, heads):
    plan = plan_pruning(Attention(), torch.zeros(1, 3, 12), ratio=0.6, **options)
    assert len(plan.kept["out.weight"][1]) == 4 * heads
    plan.extract(Attention())(torch.zeros(1, 3, 12))


def test_global_ranking_compares_layers():
    """In the second layer every channel is worth more than in the first, which so loses nearly all."""
    model = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 2))
    with torch.no_grad():
        model[0].weight.mul_(0.01)
    plan = plan_pruning(model, torch.zeros(1, 4), ranking="global", ratio=0.25)
    assert [layer.width_after for layer in plan.layers] == [10, 20, 2]
    plan = plan_pruning(model, torch.zeros(1, 4), ranking="global", ratio=0.6)
    assert [layer.width_after for layer in plan.layers] == [
        2,
        16,
        2,
    ]  # 16 of all 40 stay, and a tenth of each
    plan = plan_pruning(model, torch.zeros(1, 4), ranking="global", ratio=0.6, min_fraction=0)
    assert [layer.width_after for layer in plan.layers] == [1, 16, 2]  # one, so that none is empty
    assert plan.notes[0].startswith("more than nine tenths of the channels leave")
    assert plan.notes[0].endswith(": 0 (20 -> 1)")
    plan = plan_pruning(model, torch.zeros(1, 4), ranking="global", ratio=0.6, min_fraction=0.35)
    assert [layer.width_after for layer in plan.layers] == [7, 16, 2]
    plan = plan_pruning(model, torch.zeros(1, 4), ranking="global", ratio=0.25, normalization="mean")
    assert min(layer.width_after for layer in plan.layers[:2]) > 10
    assert sum(layer.width_after for layer in plan.layers[:2]) == 30


def test_global_ranking_leaves_a_tenth_of_every_axis():
    """Divided by the sum of its group, every channel of a wide layer is worth little; its layers must not end at one."""
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 500), nn.ReLU(), nn.Linear(500, 2))
    x, target = torch.zeros(1, 4), Target("parameters", 0.08)
    thin = plan_pruning(model, x, target=target, preset="spa", normalization="sum", min_fraction=0)
    assert [layer.width_after for layer in thin.layers] == [16, 36, 2]
    assert any("more than nine tenths" in note and "2 (500 -> 36)" in note for note in thin.notes)
    plan = plan_pruning(model, x, target=target, preset="spa", normalization="sum")
    assert [layer.width_after for layer in plan.layers] == [11, 50, 2]
    assert plan.params[1] <= 0.08 * plan.params[0]
    assert not any("more than nine tenths" in note for note in plan.notes)
    own = plan_pruning(model, x, ratio=0.5, preset="spa", normalization="sum", ratios={"2": 0.95})
    assert width(own, "2") == 25  # what was asked for


def test_spa_spares_every_layer_by_its_own_measure():
    """Divided by the mean of its group, a channel is worth the same in wide and narrow layers of an untrained network."""
    model = models.resnet20()
    plan = plan_pruning(model, IMAGE, target=Target("flops", 0.5), preset="spa", min_fraction=0)
    assert all(layer.width_after > layer.width_before / 3 for layer in plan.layers)
    mean = plan_pruning(
        model, IMAGE, target=Target("flops", 0.5), preset="spa", min_fraction=0, normalization="mean"
    )
    assert mean == plan
    by_sum = plan_pruning(
        model, IMAGE, target=Target("flops", 0.5), preset="spa", min_fraction=0, normalization="sum"
    )
    assert min(layer.width_after / layer.width_before for layer in by_sum.layers) < 0.1


def test_a_least_part_of_an_axis_holds_in_local_ranking_where_asked_for():
    model = nn.Sequential(nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 2))
    assert plan_pruning(model, torch.zeros(1, 4), ratio=0.95).layers[0].width_after == 2
    assert plan_pruning(model, torch.zeros(1, 4), ratio=0.95, min_fraction=0.26).layers[0].width_after == 11
    assert not any("nine tenths" in note for note in plan_pruning(model, torch.zeros(1, 4), ratio=0.9).notes)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ratio": 0.5, "target": Target("flops", 0.5)}, ValueError, "target must be left out beside a ratio, got both"),
        ({"target": 0.5}, TypeError, "target must be a Target, got float"),
        (
            {"target": Target("parameters", 0.001)},
            ValueError,
            "target must be at least .* for parameters, got 75.29: .* with every axis at its smallest width",
        ),
        (
            {"target": Target("parameters", at_most=10**6)},
            ValueError,
            "target must be less than the parameters of the dense model, 7.529e.04, got 1e.06: nothing to prune",
        ),
        ({"target": Target("flops", 0.5), "ignore": "*"}, ValueError, "target must be at least .* for flops, got "),
        ({"ratios": {"stage9": 0.5}}, ValueError, "ratios must match modules of the model, got 'stage9'"),
        ({"ratios": {"conv1": 1}}, ValueError, r"ratios\['conv1'\] must be in \[0, 1\), got 1"),
        ({"ratios": {"fc": 0.5}}, ValueError, "nothing was pruned"),
        ({"round_to": 0}, ValueError, "round_to must be at least 1, got 0"),
        ({"round_to": 64}, ValueError, "nothing was pruned at ratio 0.5: .* too few of its channels may leave"),
        ({"min_channels": 2.5}, TypeError, "min_channels must be a whole number, got float"),
        ({"min_fraction": "half"}, TypeError, "min_fraction must be a number, got str"),
        ({"min_fraction": 1}, ValueError, r"min_fraction must be in \[0, 1\), got 1"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        plan_pruning(models.resnet8(), IMAGE, **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("energy", 0.5), ValueError, "target.quantity must be one of 'parameters', 'flops', 'memory', 'latency'"),
        (("flops",), ValueError, "target must have one of fraction and at_most, got neither"),
        (("flops", 0.5, 100), ValueError, "target must have one of fraction and at_most, got both"),
        (("flops", 1), ValueError, "target.fraction must be above 0 and below 1, got 1"),
        (("flops", None, 0), ValueError, "target.at_most must be a positive number, got 0"),
        (("flops", "half"), TypeError, "target.fraction must be a number, got str"),
        (("latency", 0.5, None, 0), ValueError, "target.repeats must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_targets_check_themselves(arguments, error, message):
    with pytest.raises(error, match=message):
        Target(*arguments)


class FourHeads(nn.Module):
    """Attention whose width is its own, and a wide layer behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.size = 4, 16
        self.qkv, self.proj = nn.Linear(8, 192), nn.Linear(64, 256)
        self.head = nn.Linear(256, 8)

    def forward(self, x):
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, self.size).permute(2, 0, 3, 1, 4).unbind(0)
        x = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, -1)
        return self.head(self.proj(x).relu())


def test_a_target_rounds_to_the_nearest_so_that_few_heads_lose_no_more_than_many_channels():
    torch.manual_seed(0)
    model, x, target = FourHeads(), torch.zeros(1, 5, 8), Target("flops", 0.6)
    plan = plan_pruning(model, x, target=target)
    assert plan.rounding == "nearest"
    assert plan == plan_pruning(model, x, target=target, rounding="nearest")
    assert plan.kept == plan_pruning(model, x, ratio=plan.ratio, rounding=plan.rounding).kept
    assert width(plan, "qkv") == 3 * 3 * 16
    down = plan_pruning(model, x, target=target, rounding="floor")
    assert width(down, "qkv") == 3 * 2 * 16
    assert down.flops[1] < plan.flops[1] <= 0.6 * plan.flops[0]
    assert plan_pruning(model, x, ratio=0.3).rounding == "floor"
