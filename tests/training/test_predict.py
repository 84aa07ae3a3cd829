"""Logits, penultimate features and accuracy."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunefuse import models
from prunefuse.data import TensorImages
from prunefuse.experiment.machine import describe_machine
from prunefuse.training import (
    Recipe,
    evaluate,
    features,
    predict,
    predict_dropout,
    predict_with_features,
)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return models.resnet8(in_channels=1)


IMAGES = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(1))


class ImagesOnly:
    """A data set that is not in memory and has no labels."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> Tensor:
        return IMAGES[i]


def test_logits_are_those_of_evaluation_mode_in_order(model: nn.Module) -> None:
    expected = model.eval()(IMAGES).detach()
    model.train()
    logits = predict(model, IMAGES, batch_size=3)
    torch.testing.assert_close(logits, expected)
    assert not logits.requires_grad
    some = predict(model, IMAGES, indices=[7, 2])
    torch.testing.assert_close(some, expected[[7, 2]])


@pytest.mark.parametrize("call", [predict, features])
def test_every_kind_of_input_gives_the_same(model: nn.Module, call: Any) -> None:
    expected = call(model, IMAGES)
    assert isinstance(expected, Tensor)
    labels = torch.zeros(10, dtype=torch.int64)
    for data in (TensorImages(IMAGES), torch.utils.data.TensorDataset(IMAGES, labels), ImagesOnly()):
        torch.testing.assert_close(call(model, data), expected)
    array = call(model, IMAGES.numpy())
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.float32
    np.testing.assert_allclose(array, expected.numpy(), rtol=1e-5)


@pytest.mark.parametrize("call", [predict, features])
def test_modes_and_running_statistics_are_left_as_found(model: nn.Module, call: Any) -> None:
    model.train()
    model.get_submodule("stage2").eval()  # a user's frozen part
    modes = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    call(model, IMAGES)
    evaluate(model, TensorImages(IMAGES, torch.zeros(10)))
    with pytest.raises(RuntimeError):
        call(model, torch.zeros(2, 3, 8, 8))  # three channels: the forward pass fails
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_progress_is_reported(model: nn.Module) -> None:
    seen: list[tuple[int, int]] = []
    predict(model, IMAGES, batch_size=4, on_progress=lambda *p: seen.append(p))
    assert seen == [(4, 10), (8, 10), (10, 10)]


def test_features_enter_the_classifier(model: nn.Module) -> None:
    found = features(model, IMAGES, batch_size=4)
    assert found.shape == (10, 64)
    torch.testing.assert_close(model.get_submodule("fc")(found), predict(model, IMAGES))
    torch.testing.assert_close(features(model, IMAGES, indices=[3]), found[[3]])


def test_logits_and_features_of_one_pass_are_those_of_two(model: nn.Module) -> None:
    logits, found = predict_with_features(model, IMAGES, batch_size=4, indices=[3, 1, 8, 0, 7])
    torch.testing.assert_close(logits, predict(model, IMAGES, indices=[3, 1, 8, 0, 7]))
    torch.testing.assert_close(found, features(model, IMAGES, indices=[3, 1, 8, 0, 7]))


def test_dropout_passes_are_random_by_their_seed_alone() -> None:
    torch.manual_seed(0)
    net = models.build("resnet8", 10, 1, dropout=0.5).train()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    before = torch.get_rng_state()
    counted: list[tuple[int, int]] = []
    utilities = [
        predict_dropout(
            net, IMAGES, passes=3, seed=seed, batch_size=4, on_progress=lambda *p: counted.append(p)
        ).result("bald")
        for seed in (0, 0, 1)
    ]
    assert torch.equal(utilities[0], utilities[1])
    assert not torch.equal(utilities[0], utilities[2])
    assert (utilities[0] > 0).all()
    assert counted[:9] == [(pass_ * 10 + n, 30) for pass_ in range(3) for n in (4, 8, 10)]
    # Left as found: modes, running statistics, global generators.
    assert all(m.training for m in net.modules())
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_passes_are_an_average_over_masks_in_evaluation_mode() -> None:
    """With dropout before the last layer, the mean of many passes' logits is the plain logit; probabilities are near."""
    torch.manual_seed(0)
    net = models.build("resnet8", 10, 1, dropout=0.1)
    mean = predict_dropout(net, IMAGES, passes=300, seed=0).probabilities()
    torch.testing.assert_close(mean, predict(net, IMAGES).softmax(1), atol=0.02, rtol=0)


def test_dropout_passes_need_dropout(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"model must have dropout layers .* got ResNet without"):
        predict_dropout(model, IMAGES, passes=2, seed=0)


def test_features_come_from_the_last_linear_layer_that_runs() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)  # defined first, runs last
            self.body = nn.Linear(3, 4)
            self.unused = nn.Linear(7, 7)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x).relu())  # type: ignore[no-any-return]

    net, x = Backwards(), torch.randn(5, 3)
    torch.testing.assert_close(features(net, x), net.body(x).relu().detach())
    with pytest.raises(ValueError, match="one that the model runs, got 'unused'"):
        features(net, x, module="unused")


def test_features_of_a_named_module_are_its_output(model: nn.Module) -> None:
    found = features(model, IMAGES, module="stage3")
    assert found.shape == (10, 64 * 2 * 2)
    pooled = found.view(10, 64, 4).mean(2)
    torch.testing.assert_close(pooled, features(model, IMAGES))


def test_logits_and_the_output_of_a_named_module_of_one_pass(model: nn.Module) -> None:
    logits, found = predict_with_features(model, IMAGES, module="stage3", batch_size=4, indices=[3, 1, 8])
    torch.testing.assert_close(logits, predict(model, IMAGES, indices=[3, 1, 8]))
    torch.testing.assert_close(found, features(model, IMAGES, module="stage3", indices=[3, 1, 8]))
    with pytest.raises(ValueError, match=r"a submodule of the model, .*stage3.*got 'stage9'"):
        predict_with_features(model, IMAGES, module="stage9")


def test_features_are_a_row_for_each_sample() -> None:
    class Parts(nn.Module):
        """Looks at the quarters of an image one by one, as windows of a transformer are."""

        def __init__(self) -> None:
            super().__init__()
            self.part, self.one, self.head = nn.Linear(16, 3), nn.Flatten(0), nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            parts = self.part(x.reshape(-1, 16))  # (4 B, 3)
            self.one(parts[::4, 0])
            return self.head(parts.reshape(len(x), 12))  # type: ignore[no-any-return]

    net = Parts()
    assert features(net, IMAGES, module="one").shape == (10, 1)
    for found in (features, predict_with_features):
        with pytest.raises(
            ValueError, match=r"a row for each of the 10 samples .*got shape \(40, 3\) from 'part'"
        ):
            found(net, IMAGES, module="part")


def test_features_errors(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"a submodule of the model, .*stage3.*got 'stage9'"):
        features(model, IMAGES, module="stage9")
    with pytest.raises(ValueError, match=r"nn\.Linear"):
        features(nn.Sequential(nn.AvgPool2d(8), nn.Flatten()), IMAGES)
    recurrent = nn.Sequential(nn.LSTM(4, 4))
    with pytest.raises(TypeError, match=r"tuple from '0'"):
        features(recurrent, torch.randn(3, 5, 4), module="0")
    assert predict(recurrent, torch.randn(3, 5, 4)).shape == (3, 5, 4)  # the first of a tuple


class Said(nn.Module):
    """Returns what is given, of the images."""

    def __init__(self, said: object) -> None:
        super().__init__()
        self.said = said

    def forward(self, images: torch.Tensor) -> object:
        return self.said(images.flatten(1))  # type: ignore[operator]


@pytest.mark.parametrize(
    "said",
    [
        lambda x: (x, None),
        lambda x: {"out": x, "aux": 2 * x},
        lambda x: {"logits": x, "loss": x.sum()},
        lambda x: SimpleNamespace(logits=x),
    ],
)
def test_logits_are_found_in_what_models_return(said: object) -> None:
    x = torch.rand(3, 1, 2, 2)
    assert torch.equal(predict(Said(said), x), x.flatten(1))


@pytest.mark.parametrize("said", [lambda x: {"a": x, "b": x}, lambda x: None, lambda x: ()])
def test_no_logits_are_an_error_that_names_them(said: object) -> None:
    with pytest.raises(TypeError, match="model must return a tensor of logits"):
        predict(Said(said), torch.rand(3, 1, 2, 2))


def test_accuracy_counts_correct_answers() -> None:
    data = TensorImages(torch.eye(4), torch.tensor([0, 1, 2, 0]))
    model = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.eye(4))
    assert evaluate(model, data, batch_size=3) == 0.75


def test_autocast_returns_float32(model: nn.Module) -> None:
    plain = predict(model, IMAGES)
    cast = predict(model, IMAGES, recipe=Recipe(autocast=True, channels_last=True))
    assert cast.dtype == torch.float32
    assert not torch.equal(cast, plain)
    torch.testing.assert_close(cast, plain, atol=0.1, rtol=0.1)


def test_images_go_through_a_cpu_in_parts_that_are_the_same_samples() -> None:
    network, sizes = models.resnet8(in_channels=1), []
    network.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    images = torch.rand(300, 1, 32, 32)
    said = predict(network, images)
    assert sizes == [64, 64, 64, 64, 44]
    sizes.clear()
    whole = predict(network, images, batch_size=300)
    assert sizes == [300]
    torch.testing.assert_close(said, whole)
    sizes.clear()
    data = TensorImages(images, torch.arange(300) % 10)
    assert evaluate(network, data) == float((whole.argmax(1) == data.labels).double().mean())
    assert sizes == [64, 64, 64, 64, 44]


@pytest.mark.parametrize(("side", "parts"), [(8, [512, 88]), (16, [256, 256, 88]), (128, [32] * 18 + [24])])
def test_a_part_has_so_many_pixels_or_at_least_32_images(side: int, parts: list[int]) -> None:
    network, sizes = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), []
    network.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    progress: list[tuple[int, int]] = []
    predict(network, torch.zeros(600, 1, side, side), on_progress=lambda *done: progress.append(done))
    assert sizes == parts
    assert progress[-1] == (600, 600)


class Viewing(nn.Module):
    """As much code is written: view(), which takes contiguous images alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.fc(x.view(x.shape[0], -1))


def test_code_that_needs_contiguous_images_is_told() -> None:
    images = torch.rand(10, 3, 8, 8)
    predict(Viewing(), images)
    with pytest.raises(ValueError, match="channels_last must be False for Viewing, which calls view"):
        predict(Viewing(), images, recipe=Recipe(channels_last=None))
    with pytest.raises(ValueError, match=r"channels_last must be False for Viewing.*got True"):
        predict(Viewing(), images, recipe=Recipe(channels_last=True))


def test_narrow_networks_are_in_channels_last_where_that_is_left_open() -> None:
    def layout(network: nn.Module, open_: bool | None) -> bool:
        seen: list[bool] = []
        network.register_forward_pre_hook(
            lambda _, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
        )
        predict(network, torch.rand(4, 3, 32, 32), recipe=Recipe(channels_last=open_))
        return seen[0]

    assert layout(models.resnet8(), None)
    assert not layout(models.resnet8(), False)
    assert not layout(nn.Sequential(nn.Conv2d(3, 65, 3), nn.Flatten()), None)
    assert layout(nn.Sequential(nn.Conv2d(3, 65, 3), nn.Flatten()), True)
    assert not layout(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2)), None)


@pytest.mark.parametrize("has", ["amx", "avx512_bf16", ""])
def test_auto_computes_in_bfloat16_where_the_processor_does(
    model: nn.Module, has: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: has == "amx")
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: has == "avx512_bf16")
    found = predict(model, IMAGES, recipe=Recipe(autocast="auto"))
    assert torch.equal(found, predict(model, IMAGES, recipe=Recipe(autocast=bool(has))))
    assert describe_machine(torch.device("cpu"))["bfloat16"] == has or not has
    assert Recipe(autocast="auto").autocast == "auto"
    with pytest.raises(ValueError, match="autocast must be True, False or auto, got 'yes'"):
        Recipe(autocast="yes")  # type: ignore[arg-type]
