"""Planning options are said once: typed, listed and checked alike by every function that plans."""

from __future__ import annotations

import inspect
from typing import get_args, get_origin, get_type_hints

import pytest
import torch
from torch import nn
from typing_extensions import Unpack

from prunefuse import plan_pruning
from prunefuse.pruning import prune_and_finetune, prune_without_finetuning
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
        (lambda: plan_pruning, {"model", "example_inputs"}, OF_MODULES),
        (lambda: prune_and_finetune, {"model", "example_inputs", "finetune", "steps"}, OF_MODULES),
        (
            lambda: prune_without_finetuning,
            {"model", "example_inputs", "calibration", "damping", "memory", "combine", "fit_to"},
            OF_MODULES - RANKED,
        ),
        (lambda: onnx("plan"), {"path"}, COMMON | {"shapes"}),
        (
            lambda: onnx("prune_without_finetuning"),
            {"path", "out", "calibration", "damping", "memory"},
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


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_no_plain_module_is_told(tmp_path):
    import torch.distributed

    net, x = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.zeros(1, 4)
    with pytest.raises(TypeError, match="must be a module of Python code, got a scripted one as '1'"):
        plan_pruning(nn.Sequential(nn.Linear(4, 4), torch.jit.script(net)), x)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(net)
        with pytest.raises(TypeError, match=r"got a DistributedDataParallel around it: plan its \.module"):
            plan_pruning(wrapped, x)
        assert plan_pruning(wrapped.module, x).params == (58, 30)
    finally:
        torch.distributed.destroy_process_group()


def test_the_example_may_be_on_another_device():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    assert plan_pruning(model, torch.zeros(1, 4), criterion="random").params == (58, 30)
