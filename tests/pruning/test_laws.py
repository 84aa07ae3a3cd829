"""The laws of pruning and fusing, for every family that is served, at ratios 0.5 to 0.9."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
import torchvision
from pruning_oracle import assert_pruning_is_masking, assert_same_function, scramble_
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from prunefuse import models
from prunefuse.fusion import fuse_
from prunefuse.pruning import PruningPlan, plan_pruning


def torchvision_vgg() -> nn.Module:
    """torchvision's VGG-11 with its 7x7 flattening, the two hidden classifier layers narrowed to fit a test."""
    with torch.device("meta"):
        model = torchvision.models.vgg11_bn(num_classes=10)
    model.classifier[0] = nn.Linear(512 * 7 * 7, 48)
    model.classifier[3] = nn.Linear(48, 32)
    model.classifier[6] = nn.Linear(32, 10)
    model.features = model.features.to_empty(device="cpu")
    return model


FAMILIES = {
    "resnet8-A": (lambda: models.resnet8(), 16),
    "resnet8-B": (lambda: models.resnet8(shortcut="B"), 16),
    "resnet20-A": (lambda: models.resnet20(in_channels=1), 8),
    "resnet20-B": (lambda: models.resnet20(shortcut="B"), 8),
    "resnet56-A": (lambda: models.resnet56(), 8),
    "resnet56-B": (lambda: models.resnet56(shortcut="B"), 8),
    "resnet164-A": (lambda: models.resnet164(), 8),
    "wide-resnet": (lambda: models.wide_resnet(10, 2), 8),
    "vgg11": (lambda: models.vgg11(), 32),
    "vgg11-bn": (lambda: models.vgg11_bn(), 32),
    "mlp": (lambda: models.mlp(in_channels=3), 32),
    "torchvision-resnet18": (lambda: torchvision.models.resnet18(num_classes=10), 32),
    "torchvision-resnet50": (lambda: torchvision.models.resnet50(num_classes=10), 32),
    "torchvision-vgg11-bn": (torchvision_vgg, 32),
}
FEW = {
    "resnet20-A": (0.7,),
    "resnet20-B": (0.7,),
    "resnet56-A": (0.6, 0.9),
    "resnet56-B": (0.5,),
    "resnet164-A": (0.7,),
    "torchvision-resnet50": (0.5, 0.8),
}
CASES = [(name, ratio) for name in FAMILIES for ratio in FEW.get(name, (0.5, 0.6, 0.7, 0.8, 0.9))]


@dataclass
class Case:
    dense: nn.Module
    plan: PruningPlan
    image: Tensor
    small: nn.Module  # other values than the dense model's, as after training


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request) -> Case:
    name, ratio = request.param
    factory, size = FAMILIES[name]
    dense = scramble_(factory()).double()
    channels = 1 if name == "resnet20-A" else 3
    image = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1)).double()
    plan = plan_pruning(dense, image, ratio=ratio)
    small = scramble_(plan.extract(dense), seed=2)
    return Case(dense, plan, image, small)


def test_pruning_is_masking(case):
    small = assert_pruning_is_masking(case.dense, case.plan, case.image)
    assert all(x.is_contiguous() for x in small.parameters())


def test_extracting_what_was_fused_gives_the_small_model_bit_for_bit(case):
    for complement in ("keep", "reinit", "zero"):
        dense = copy.deepcopy(case.dense)
        assert fuse_(dense, case.small, case.plan, complement) is dense
        back = case.plan.extract(dense).state_dict()
        expected = case.small.state_dict()
        assert back.keys() == expected.keys()
        assert all(torch.equal(back[name], expected[name]) for name in expected)


def test_complement_zero_computes_the_small_models_function(case):
    dense = fuse_(copy.deepcopy(case.dense), case.small, case.plan, "zero")
    assert_same_function(dense, case.small, case.image)


def test_counts_are_those_of_the_models(case):
    for model, at in ((case.dense, 0), (case.small, 1)):
        assert case.plan.params[at] == sum(x.numel() for x in model.parameters())
        with FlopCounterMode(display=False) as counter:
            model.eval()(case.image)
        assert case.plan.flops[at] == counter.get_total_flops() // len(case.image)


def test_module_attributes_say_the_small_sizes(case):
    for module in case.small.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels)
        elif isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.num_features == len(module.weight) == len(module.running_var)


def test_the_small_model_trains(case):
    small = copy.deepcopy(case.small).train()
    small(case.image).square().mean().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in small.parameters())


def test_a_saved_plan_cuts_the_same_model(case, tmp_path):
    case.plan.save(tmp_path / "plan.json")
    plan = PruningPlan.load(tmp_path / "plan.json")
    assert plan == case.plan
    one, other = plan.extract(case.dense).state_dict(), case.plan.extract(case.dense).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
