"""Wide ResNet, VGG, MLP and building by name."""

import pytest
import torch
from torch import nn

from prunefuse import models, plan_pruning
from prunefuse._names import TEXT_MODELS


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_wide_resnet_sizes_are_the_published_ones() -> None:
    # Zagoruyko and Komodakis, table 3: WRN-16-4 has 2.7 M, WRN-28-10 36.5 M parameters.
    assert round(parameters(models.wide_resnet16_4()) / 1e6, 1) == 2.7
    with torch.device("meta"):
        assert round(parameters(models.wide_resnet28_10()) / 1e6, 1) == 36.5
    assert models.wide_resnet(10, 1, 4, in_channels=1)(torch.randn(2, 1, 8, 8)).shape == (2, 4)


@pytest.mark.parametrize(("depth", "width", "name"), [(15, 1, "depth"), (4, 1, "depth"), (10, 0, "width")])
def test_wide_resnet_says_which_argument_is_wrong(depth: int, width: int, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        models.wide_resnet(depth, width)


@pytest.mark.parametrize(("depth", "convolutions"), [(11, 8), (13, 10), (16, 13), (19, 16)])
@pytest.mark.parametrize("norm", [False, True])
def test_vgg_layers(depth: int, convolutions: int, norm: bool) -> None:
    with torch.device("meta"):
        model = models.build(f"vgg{depth}_bn" if norm else f"vgg{depth}")
    kinds = [type(m) for m in model.modules()]
    assert kinds.count(nn.Conv2d) == convolutions
    assert kinds.count(nn.BatchNorm2d) == (convolutions if norm else 0)
    assert kinds.count(nn.MaxPool2d) == 5


@pytest.mark.parametrize("size", [8, 32])
def test_vgg_takes_small_images(size: int) -> None:
    model = models.vgg11_bn(5, in_channels=1).eval()
    assert model(torch.randn(2, 1, size, size)).shape == (2, 5)


def test_every_name_builds_a_model_with_the_asked_ends() -> None:
    for name in models.names():
        if name in ("wide_resnet28_10", "vgg19", "vgg19_bn", "vgg16", "vgg16_bn", "resnet164"):
            continue  # covered above; slow to initialize
        if name in TEXT_MODELS:
            continue  # below
        model = models.build(name, 6, 1, image_size=(8, 8)).eval()
        assert model(torch.randn(2, 1, 8, 8)).shape == (2, 6), name


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_networks_for_texts_are_pruned_and_see_nothing_that_fills_a_text(name: str) -> None:
    torch.manual_seed(0)
    model = models.build(name, 3, vocabulary=50, length=20, dropout=0.1).eval()
    words = torch.randint(1, 50, (4, 20))
    words[1, 7:], words[2, 1:], words[3] = 0, 0, 0
    logits = model(words)
    assert logits.isfinite().all()
    for row, length in ((1, 7), (1, 12), (2, 1), (3, 5)):
        torch.testing.assert_close(model(words[row : row + 1, :length].int())[0], logits[row])
    assert not torch.allclose(model(words.flip(1))[0], logits[0])  # their order counts
    plan = plan_pruning(model, words[:1], ratio=0.5)
    small = plan.extract(model)
    assert plan.notes == ()
    assert parameters(small) == plan.params[1] < 0.3 * parameters(model)
    assert small.get_submodule("words").weight.shape == (50, 32)
    plan.fuse_(model, small)
    assert model(words).shape == (4, 3)


def test_options_reach_the_model() -> None:
    assert parameters(models.build("resnet8", shortcut="B")) == 78_042
    assert models.build("mlp", 3, 1, image_size=(4, 5), hidden=(7,)).layers[0].weight.shape == (7, 20)
    with pytest.raises(TypeError, match="shortcut"):
        models.build("mlp", shortcut="B")


def test_timm_by_name() -> None:
    pytest.importorskip("timm")
    for name, size in (("test_resnet", 24), ("test_vit", 32), ("resnet18.a1_in1k", 32)):
        model = models.build(f"timm:{name}", 5, 2, image_size=(size, size)).eval()
        assert model(torch.randn(2, 2, size, size)).shape == (2, 5)
    rates = [m.p for m in models.build("timm:test_vit", dropout=0.25).modules() if isinstance(m, nn.Dropout)]
    assert 0.25 in rates
    with pytest.raises(ValueError, match=r"model must be a classifier of timm, such as .*, got 'resnet_18'"):
        models.build("timm:resnet_18")
    with pytest.raises(TypeError, match="width"):
        models.build("timm:test_resnet", width=3)


def test_torchvision_by_name() -> None:
    model = models.build("torchvision:resnet18", 4)
    assert model.fc.weight.shape == (4, 512)
    with pytest.raises(ValueError, match="in_channels"):
        models.build("torchvision:resnet18", 4, 1)
    with pytest.raises(ValueError, match="resnet19"):
        models.build("torchvision:resnet19")


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"resnet8.*'resnet9'"):
        models.build("resnet9")
