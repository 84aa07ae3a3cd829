"""Planning options are said once: typed, listed and checked alike by every function that plans."""

from __future__ import annotations

import inspect
from typing import get_args, get_origin, get_type_hints

import pytest
import torch
from torch import nn
from typing_extensions import Unpack

from prunefuse import plan_pruning
from prunefuse.pruning import Target, prune_and_finetune, prune_without_finetuning
from prunefuse.pruning.options import ModulePlanOptions, PlanOptions, keys

COMMON = set(keys(PlanOptions))
OF_MODULES = set(keys(ModulePlanOptions))
RANKED = {"criterion", "scores", "preset"}


def onnx(name):
    module = pytest.importorskip("prunefuse.onnx", exc_type=ImportError)
    return getattr(module, name)


@pytest.mark.parametrize(
    ("function", "own", "expected"),
    [
        (lambda: plan_pruning, {"model", "example_inputs", "example_kwargs"}, OF_MODULES),
        (
            lambda: prune_and_finetune,
            {"model", "example_inputs", "example_kwargs", "finetune", "steps"},
            OF_MODULES,
        ),
        (
            lambda: prune_without_finetuning,
            {
                "model",
                "example_inputs",
                "example_kwargs",
                "calibration",
                "damping",
                "memory",
                "combine",
                "fit_to",
            },
            OF_MODULES - RANKED,
        ),
        (lambda: onnx("plan"), {"path"}, COMMON | {"shapes"}),
        (
            lambda: onnx("prune_without_finetuning"),
            {"path", "out", "calibration", "damping", "memory", "combine", "fit_to"},
            COMMON - RANKED | {"shapes"},
        ),
    ],
    ids=["plan", "steps", "obspa", "onnx", "onnx obspa"],
)
def test_functions_that_plan_list_the_options_in_signature_docstring_and_types(function, own, expected):
    function = function()
    parameters = inspect.signature(function).parameters
    assert set(parameters) == own | expected
    for name in expected:
        assert f"\n        {name}: " in function.__doc__
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
    declared = get_type_hints(function)["options"]
    assert get_origin(declared) is Unpack  # which mypy and completion read
    assert expected <= set(keys(get_args(declared)[0]))


def test_defaults_are_those_of_the_keys():
    parameters = inspect.signature(plan_pruning).parameters
    assert {name: parameters[name].default for name in ("ratio", "criterion", "ignore", "round_to")} == {
        "ratio": None,
        "criterion": "l2",
        "ignore": (),
        "round_to": 1,
    }
    model, x = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.zeros(1, 4)
    assert plan_pruning(model, x, ratio=0.5, preset="prunefuse", rounding="floor", seed=0) == plan_pruning(
        model, x
    )


def test_an_option_that_there_is_not_is_named():
    model, x = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.zeros(1, 4)
    with pytest.raises(
        TypeError, match=r"options of plan_pruning must be of ratio, target, .*, got 'ration'"
    ):
        plan_pruning(model, x, ration=0.5)
    with pytest.raises(TypeError, match=r"options of plan_pruning must be of ratio, .*, got 'ration'"):
        prune_and_finetune(model, x, lambda small: None, ration=0.5)


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)
        self.gate = nn.Parameter(torch.rand(6))

    def forward(self, x):
        return self.c(self.b(self.a(x)) * self.gate)


@pytest.mark.parametrize(
    ("ignore", "widths"), [("a.weight", [8, 3]), ("gate", [4, 6]), (["ga*", "a"], [8, 6]), ("*.b?as", [8, 6])]
)
def test_parameters_that_keep_their_channels(ignore, widths):
    model, x = Gated(), torch.zeros(1, 4)
    if widths == [8, 6]:
        with pytest.raises(ValueError, match="is ignored"):
            plan_pruning(model, x, ignore=ignore)
    else:
        plan = plan_pruning(model, x, ignore=ignore)
        assert [layer.width_after for layer in plan.layers if layer.name in ("a", "b")] == widths


def test_the_example_may_be_on_another_device():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    assert plan_pruning(model, torch.zeros(1, 4), criterion="random").params == (58, 30)


class Blocks(nn.Module):
    """Layers that repeat, of attention with heads of 4 channels, and of a wider pair of layers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 8, dim_feedforward=48, batch_first=True) for _ in range(3)
        )

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return x


@pytest.mark.parametrize(
    "options", [{}, {"preset": "spa"}, {"target": Target("flops", 0.5)}, {"round_to": 8}]
)
def test_axes_that_are_equally_long_keep_equally_many(options):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(7, 32), nn.Linear(32, 3)
            self.blocks = Blocks()

        def forward(self, x):
            return self.last(self.blocks(self.first(x)))

    options = options if "target" in options else {"ratio": 0.3, **options}
    torch.manual_seed(0)
    model, x = Net(), torch.zeros(1, 5, 7)
    plan = plan_pruning(model, x, uniform=True, **options)
    shapes = dict(model.named_parameters())
    counts: dict[int, set[int]] = {}
    for name, axes in plan.kept.items():
        for axis, indices in axes.items():
            counts.setdefault(shapes[name].shape[axis], set()).add(len(indices))
    assert counts.keys() == {32, 48, 96}
    assert all(len(count) == 1 for count in counts.values())
    assert plan.ranking == "local"
    plan.extract(model)(x)


def test_uniform_is_true_or_false_and_has_no_global_ranking():
    model, x = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.zeros(1, 4)
    with pytest.raises(ValueError, match="ranking must be local with uniform=True, got 'global'"):
        plan_pruning(model, x, uniform=True, ranking="global")
    with pytest.raises(TypeError, match="uniform must be True or False, got str"):
        plan_pruning(model, x, uniform="yes")
