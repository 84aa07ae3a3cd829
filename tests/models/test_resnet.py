"""The CIFAR ResNets have exactly the published sizes (the table in the project's notes on the method)."""

import pytest
import torch
from torch import nn

from prunefuse import models


def macs(model: nn.Module, *shape: int) -> int:
    """Multiply-adds of the convolutions and linear layers for one input, counted by hand with hooks."""
    total = 0

    def hook(module: nn.Module, _: object, out: torch.Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += out[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            total += module.weight.numel()

    handles = [m.register_forward_hook(hook) for m in model.modules()]
    with torch.no_grad():
        model.eval()(torch.zeros(1, *shape))
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize(
    ("name", "shortcut", "parameters", "multiply_adds"),
    [
        ("resnet8", "A", 75_290, 12_239_488),
        ("resnet8", "B", 78_042, 12_501_632),
        ("resnet20", "A", 269_722, 40_551_040),
        ("resnet20", "B", 272_474, 40_813_184),
        ("resnet56", "A", 853_018, 125_485_696),
        ("resnet56", "B", 855_770, 125_747_840),
    ],
)
def test_sizes(name: str, shortcut: str, parameters: int, multiply_adds: int) -> None:
    model = getattr(models, name)(10, shortcut=shortcut)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert macs(model, 3, 32, 32) == multiply_adds


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("resnet8", 8),
        ("resnet14", 14),
        ("resnet32", 32),
        ("resnet44", 44),
        ("resnet110", 110),
        ("resnet164", 164),
    ],
)
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_depth_and_shape(name: str, depth: int, shortcut: str) -> None:
    model = getattr(models, name)(7, in_channels=1, shortcut=shortcut)
    layers = [
        n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and "shortcut" not in n
    ]
    assert len(layers) == depth
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 7)


def test_shortcut_a_pads_both_sides_and_follows_its_attributes() -> None:
    pad = models.ChannelPad(1, 2)
    x = torch.ones(1, 3, 2, 2)
    assert pad(x)[0, :, 0, 0].tolist() == [0, 1, 1, 1, 0, 0]
    pad.left = 0
    assert pad(x)[0, :, 0, 0].tolist() == [1, 1, 1, 0, 0]
    block = models.resnet8().stage2[0]
    assert (block.shortcut.pad.left, block.shortcut.pad.right) == (8, 8)


def test_initialization_is_kaiming_over_the_fan_out() -> None:
    torch.manual_seed(0)
    model = models.resnet20()
    convolutions = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    norms = {n: m.weight.square().sum((1, 2, 3)).mean().item() for n, m in convolutions.items()}
    assert norms["conv1"] == pytest.approx(0.375, rel=0.2)
    assert norms["stage1.0.conv1"] == pytest.approx(2.0, rel=0.15)
    assert norms["stage2.0.conv1"] == pytest.approx(1.0, rel=0.15)


def test_bad_shortcut_is_named() -> None:
    with pytest.raises(ValueError, match=r"shortcut.*'C'"):
        models.resnet8(shortcut="C")  # type: ignore[arg-type]
