"""Widths, parameters and multiply-adds against published and hand-computed numbers."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunefuse import models
from prunefuse._names import TEXT_MODELS
from prunefuse.pruning import plan_pruning

IMAGE = torch.zeros(1, 3, 32, 32)
BUILD = {depth: getattr(models, f"resnet{depth}") for depth in (8, 20, 56, 110, 164)}


def basic_counts(depth: int, widths: tuple[int, int, int], shortcut: str) -> tuple[int, int]:
    """Parameters and multiply-adds of a CIFAR ResNet of basic blocks with all axes of a stage equally wide."""
    params = 3 * 9 * widths[0] + 2 * widths[0] + 10 * widths[2] + 10
    macs = 3 * 9 * widths[0] * 1024 + 10 * widths[2]
    before = widths[0]
    for stage, width in enumerate(widths):
        pixels = (32 >> stage) ** 2
        for block in range((depth - 2) // 6):
            source = before if block == 0 else width
            weights = 9 * width * (source + width)
            params += weights + 4 * width
            macs += weights * pixels
            if block == 0 and stage and shortcut == "B":
                params += source * width + 2 * width
                macs += source * width * pixels
        before = width
    return params, macs


@pytest.mark.parametrize(
    ("depth", "shortcut", "ratio", "params", "macs"),
    [
        (8, "A", 0, 75_290, 12_239_488),
        (8, "B", 0, 78_042, 12_501_632),
        (20, "A", 0, 269_722, 40_551_040),
        (20, "B", 0, 272_474, 40_813_184),
        (56, "A", 0, 853_018, 125_485_696),
        (56, "B", 0, 855_770, 125_747_840),
        (56, "A", 0.5, 214_546, 31_482_176),
        (56, "B", 0.5, 215_282, 31_547_712),
        (56, "A", 0.7, 73_549, 9_653_950),
        (56, "B", 0.7, 73_812, 9_674_110),
    ],
)
def test_the_published_table(depth, shortcut, ratio, params, macs):
    model = BUILD[depth](shortcut=shortcut)
    plan = plan_pruning(model, IMAGE, ratio=ratio)
    assert plan.params[1] == params == basic_counts(depth, stage_widths(plan), shortcut)[0]
    assert plan.flops[1] == 2 * macs
    assert macs == basic_counts(depth, stage_widths(plan), shortcut)[1]
    assert sum(p.numel() for p in plan.extract(model).parameters()) == params


def stage_widths(plan) -> tuple[int, int, int]:
    widths = {layer.name: layer.width_after for layer in plan.layers}
    return tuple(widths[f"stage{i}.0.conv2"] for i in (1, 2, 3))


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize(
    ("rounding", "widths"), [("floor", (4, 9, 19)), ("nearest", (5, 10, 19)), ("ceil", (5, 10, 20))]
)
def test_every_axis_is_rounded_on_its_own_also_where_widths_are_tied(shortcut, rounding, widths):
    plan = plan_pruning(models.resnet20(shortcut=shortcut), IMAGE, ratio=0.7, rounding=rounding)
    assert stage_widths(plan) == widths
    convolutions = [layer for layer in plan.layers if layer.type == "Conv2d"]
    assert {layer.width_after for layer in convolutions} == set(widths)
    assert (plan.params[1], plan.flops[1] // 2) == basic_counts(20, widths, shortcut)


@pytest.mark.parametrize(("ratio", "widths"), [(0.5, (8, 16, 32)), (0.9, (1, 3, 6))])
def test_resnet110(ratio, widths):
    plan = plan_pruning(models.resnet110(), IMAGE, ratio=ratio)
    assert (plan.params[0], plan.flops[0] // 2) == basic_counts(110, (16, 32, 64), "A")
    assert (plan.params[1], plan.flops[1] // 2) == basic_counts(110, widths, "A")


def test_resnet164_keeps_four_times_wider_outputs():
    plan = plan_pruning(models.resnet164(), IMAGE, ratio=0.7)
    widths = {layer.name: layer.width_after for layer in plan.layers}
    assert [widths[f"stage{i}.3.conv1"] for i in (1, 2, 3)] == [4, 9, 19]
    assert [widths[f"stage{i}.3.conv3"] for i in (1, 2, 3)] == [19, 38, 76]


def test_the_wider_axis_keeps_what_the_narrow_one_tied():
    model = models.resnet8()
    plan = plan_pruning(model, IMAGE, ratio=0.7)
    narrow = plan.kept["stage1.0.conv2.weight"][0]
    wide = plan.kept["stage2.0.conv2.weight"][0]
    assert {i + 8 for i in narrow} <= set(wide)
    assert len(wide) == 9
    pad = plan.extract(model).stage2[0].shortcut.pad
    assert (pad.left, pad.right) == (sum(i < 8 for i in wide), sum(i >= 24 for i in wide))
    # The free channels of the wide axis are its best, by all their writers: stage 3 holds them from place 16 on.
    rows = torch.cat(
        [model.stage2[0].conv2.weight.flatten(1), model.stage3[0].conv2.weight[16:48].flatten(1)], 1
    )
    free = [i for i in range(32) if not 8 <= i < 24]
    best = sorted(free, key=lambda i: -rows[i].norm())[: 9 - len(narrow)]
    assert sorted(best) == [i for i in wide if i in free]


def test_a_residual_axis_is_scored_over_all_its_writers():
    model = models.resnet14(shortcut="B")
    plan = plan_pruning(model, IMAGE, ratio=0.5)
    writers = ["stage2.0.conv2", "stage2.0.shortcut.0", "stage2.1.conv2"]
    score = sum(model.get_submodule(w).weight.double().square().sum((1, 2, 3)) for w in writers)
    best = tuple(sorted(score.argsort(descending=True)[:16].tolist()))
    assert all(plan.kept[f"{w}.weight"][0] == best for w in writers)


@settings(deadline=None, max_examples=40)
@given(
    width=st.integers(1, 70),
    percent=st.integers(0, 99),
    rounding=st.sampled_from(["floor", "nearest", "ceil"]),
)
def test_kept_counts_are_exact(width, percent, rounding):
    model = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 2))
    exact = {
        "floor": math.floor,
        "ceil": math.ceil,
        "nearest": lambda x: math.floor(x + Fraction(1, 2)),
    }[rounding]
    expected = [max(1, exact(Fraction(n * (100 - percent), 100))) for n in (width, 64)]
    if percent and expected == [width, 64]:
        return  # nothing to prune is an error, tested elsewhere
    plan = plan_pruning(model, torch.zeros(1, 2), ratio=percent / 100, rounding=rounding)
    assert [layer.width_after for layer in plan.layers] == [*expected, 2]


def test_ten_channels_at_ratio_nine_tenths_keep_one():
    assert int(10 * (1 - 0.9)) == 0  # what floating point makes of it
    plan = plan_pruning(nn.Sequential(nn.Linear(2, 10), nn.Linear(10, 2)), torch.zeros(1, 2), ratio=0.9)
    assert plan.layers[0].width_after == 1


def test_a_flattened_map_counts_every_channel_once():
    model = nn.Sequential(nn.Conv2d(1, 9, 3), nn.Flatten(), nn.Linear(9 * 49, 5))
    plan = plan_pruning(model, torch.zeros(1, 1, 9, 9), ratio=0.5)
    kept = plan.kept["0.weight"][0]
    assert len(kept) == 4
    assert plan.kept["2.weight"] == {1: tuple(c * 49 + i for c in kept for i in range(49))}


def test_torchvision_vgg_by_its_shapes_alone():
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        model = torchvision.models.vgg11_bn()
        plan = plan_pruning(model, torch.zeros(1, 3, 224, 224), criterion="random")
    assert plan.params[0] == 132_868_840
    assert plan.flops[0] == 2 * 7_609_090_048
    assert [x.width_after for x in plan.layers if x.type == "Linear"] == [2048, 2048, 1000]


def test_criteria():
    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 1.5], [0.1, 0.1], [1.0, 1.0]]))
    x = torch.zeros(1, 2)
    keep = {c: plan_pruning(model, x, ratio=0.75, criterion=c).kept["0.weight"][0] for c in ("l1", "l2")}
    assert keep == {"l1": (0,), "l2": (1,)}  # of equal channels the lower index stays
    drawn = [
        plan_pruning(model, x, criterion="random", seed=s).kept["0.weight"][0] for s in (1, 1, *range(9))
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


@pytest.mark.parametrize("name", [name for name in models.names() if name not in TEXT_MODELS])
def test_every_named_model_is_pruned_to_about_a_quarter(name):
    with torch.device("meta"):
        dense = models.build(name, 10, 3)
        plan = plan_pruning(dense, IMAGE.to("meta"), criterion="random")
    assert plan.notes == ()
    # All but the first layer, which reads the image, and the last, which gives the classes, keep a quarter.
    assert 0.24 < plan.params[1] / plan.params[0] < (0.5 if name == "mlp" else 0.26)
    assert sum(p.numel() for p in plan.extract(dense).parameters()) == plan.params[1]


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("depth", [8, 14, 20, 32, 44, 56, 110])
def test_counts_of_every_depth(depth, shortcut):
    with torch.device("meta"):
        dense = getattr(models, f"resnet{depth}")(shortcut=shortcut)
        plan = plan_pruning(dense, IMAGE.to("meta"), ratio=0.8, criterion="random", rounding="ceil")
    assert (plan.params[0], plan.flops[0] // 2) == basic_counts(depth, (16, 32, 64), shortcut)
    assert (plan.params[1], plan.flops[1] // 2) == basic_counts(depth, (4, 7, 13), shortcut)
