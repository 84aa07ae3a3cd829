"""Scoring in bfloat16 on a CPU, with batch norms folded: how far utilities are off, and what is left as it was."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunefuse
from prunefuse import models
from prunefuse.data import TensorImages, load
from prunefuse.training import Recipe, evaluate, measure, predict, train
from prunefuse.training._folding import folded

CAST = Recipe(autocast=True)
IMAGES = torch.rand(200, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, TensorImages]:
    digits = load("digits")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.resnet8(in_channels=1)
    recipe = Recipe(epochs=3, batch_size=32, lr=0.05, schedule="one-cycle", channels_last=None)
    train(model, digits.train, recipe)
    return model, digits.pool


def test_utilities_are_as_near_as_those_of_autocast_alone(trained: tuple[nn.Module, TensorImages]) -> None:
    """One batch is too few to fold. The root mean square of the error is at most 0.01, of a range of 1 and more."""
    model, pool = trained
    exact = predict(model, pool)
    found = {
        "folded": predict(model, pool, recipe=CAST, batch_size=64),
        "cast": predict(model, pool, recipe=CAST, batch_size=2000),
    }
    assert not torch.equal(found["folded"], found["cast"])
    for strategy in ("margin", "entropy", "least_confidence"):
        truth: Any = prunefuse.score(exact, strategy)
        errors = {
            name: (prunefuse.score(logits, strategy) - truth).square().mean().sqrt()
            for name, logits in found.items()
        }
        assert errors["folded"] < 0.01
        assert errors["folded"] < 1.5 * errors["cast"]


def test_the_network_is_left_as_it_was(trained: tuple[nn.Module, TensorImages]) -> None:
    model, pool = trained
    before, exact = {name: value.clone() for name, value in model.state_dict().items()}, predict(model, pool)
    parameters = dict(model.named_parameters())
    predict(model, pool, recipe=CAST, batch_size=64)
    assert evaluate(model, pool, recipe=CAST, batch_size=64) == pytest.approx(evaluate(model, pool), abs=0.02)

    def fail(done: int, total: int) -> None:
        if done > 600:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(model, pool, recipe=CAST, batch_size=64, on_progress=fail)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert torch.equal(predict(model, pool), exact)
    assert not any("forward" in vars(module) for module in model.modules())


def norm(channels: int) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(channels)
    for value in (made.weight, made.bias, made.running_mean, made.running_var):
        assert value is not None
        nn.init.uniform_(value, 2.0, 4.0)
    return made


class Block(nn.Module):
    """A convolution and a batch norm, put together in some way."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1, bias=way != "no bias"), norm(3)
        self.fc = nn.Linear(3, 2)
        if way == "no gains":
            self.norm = nn.BatchNorm2d(3, affine=False)
        if way == "no statistics":
            self.norm = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, images: Tensor) -> Any:
        made = self.conv(images)
        if self.way == "changed between":
            made.add_(1.0)
        if self.way == "a relu between":
            made = made.relu()
        out = self.norm(made)
        if self.way == "read twice":
            out = out + made
        if self.way == "convolved twice":
            out = out + self.conv(images * 2)
        if self.way == "normed twice":
            out = out + self.norm(images)
        logits = self.fc(out.mean((2, 3)))
        return (logits, made) if self.way == "given out" else logits


WAYS = {"usual": 1, "no bias": 1, "no gains": 1}
NEVER = (
    *(
        "no statistics",
        "changed between",
        "a relu between",
        "read twice",
        "convolved twice",
        "normed twice",
        "given out",
    ),
    "listened to",
)


@pytest.mark.parametrize("way", [*WAYS, *NEVER])
def test_only_what_alone_reads_a_convolution_is_folded(way: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Block(way).eval()
    heard: list[Tensor] = []
    if way == "listened to":
        model.conv.register_forward_hook(lambda module, given, output: heard.append(output))
    with folded(model, lambda: model(IMAGES[:1])) as count:
        assert count == WAYS.get(way, 0)
    exact, found = predict(model, IMAGES, batch_size=40), predict(model, IMAGES, recipe=CAST, batch_size=40)
    torch.testing.assert_close(found, exact, rtol=0.05, atol=0.1)
    kinds = {module.training for module in model.modules()}
    assert kinds == {False}


def test_measures_and_passes_of_one_batch_agree() -> None:
    model = Block("usual")
    data = TensorImages(IMAGES, torch.arange(200) % 2)
    found = [measure(model, data, recipe=CAST, batch_size=size)["accuracy"] for size in (40, 200)]
    assert found[0] == pytest.approx(found[1], abs=0.03)
