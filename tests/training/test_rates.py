"""Learning rates of single elements: each learns as in a parameter group with its rate."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunefuse import models
from prunefuse.data import TensorImages
from prunefuse.training import Recipe, train

IMAGES = torch.rand(8, 1, 2, 2, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 3
DATA = TensorImages(IMAGES, LABELS)
FACTORS = torch.tensor([[0.1, 1.0, 0.0, 0.5], [1.0] * 4, [0.1] * 4])


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))


def trained(recipe: Recipe, factors: Any) -> dict[str, Tensor]:
    model = network()
    train(model, DATA, recipe, lr_factors=factors)
    return model.state_dict()


@pytest.mark.parametrize("clip_norm", [0.0, 0.1])
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_by_hand(nesterov: bool, clip_norm: float) -> None:
    """Whole batches, so that a step does not depend on the order of samples."""
    recipe = Recipe(
        epochs=6,
        batch_size=8,
        lr=0.2,
        schedule="one-cycle",
        weight_decay=0.1,
        nesterov=nesterov,
        clip_norm=clip_norm,
    )
    model = network()
    weight, bias = model[1].weight, model[1].bias
    momenta = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for step in range(6):
        model.zero_grad()
        nn.functional.cross_entropy(model(IMAGES), LABELS).backward()
        if clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        with torch.no_grad():
            for one, momentum, factor in zip((weight, bias), momenta, (FACTORS, 1.0), strict=True):
                gradient = one.grad + 0.1 * one
                momentum.mul_(0.9).add_(gradient)
                change = gradient + 0.9 * momentum if nesterov else momentum
                one -= recipe.lr_at(step, 6) * factor * change
    found = trained(recipe, {"1.weight": FACTORS})
    torch.testing.assert_close(found, model.state_dict(), rtol=1e-5, atol=1e-6)
    assert torch.equal(found["1.weight"][0, 2], network()[1].weight[0, 2])  # factor 0


def test_adamw_as_in_groups_of_the_optimizer() -> None:
    recipe = Recipe(epochs=6, batch_size=8, lr=0.02, schedule="constant", optimizer="adamw", weight_decay=0.3)
    model = network()
    groups = [{"params": [model[1].weight], "lr": 0.02 * 0.1}, {"params": [model[1].bias]}]
    optimizer = torch.optim.AdamW(groups, lr=0.02, weight_decay=0.3, betas=(0.9, 0.999))
    for _ in range(6):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(IMAGES), LABELS).backward()
        optimizer.step()
    found = trained(recipe, {"1.weight": torch.tensor(0.1)})
    torch.testing.assert_close(found, model.state_dict(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_factors_of_one_change_no_bit(optimizer: Any, channels_last: bool) -> None:
    recipe = Recipe(epochs=3, batch_size=4, lr=0.05, optimizer=optimizer, channels_last=channels_last)
    images = TensorImages(
        torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 4
    )
    model = models.resnet8(num_classes=4)
    without, ones, some = (deepcopy(model) for _ in range(3))
    train(without, images, recipe)
    train(ones, images, recipe, lr_factors={name: torch.ones(()) for name, _ in model.named_parameters()})
    train(some, images, recipe, lr_factors={"conv1.weight": torch.zeros(3, 1, 1)})
    assert all(
        torch.equal(a, b)
        for a, b in zip(without.state_dict().values(), ones.state_dict().values(), strict=True)
    )
    assert torch.equal(some.conv1.weight, model.conv1.weight)
    assert not torch.equal(some.fc.weight, without.fc.weight)


@pytest.mark.parametrize(
    ("factors", "kind", "message"),
    [
        (
            {"2.weight": torch.ones(())},
            ValueError,
            "lr_factors must be of parameters of the model, got '2.weight'",
        ),
        (
            {"1.weight": torch.ones(5)},
            ValueError,
            r"must broadcast to shape \(3, 4\) for '1.weight', got \(5,\)",
        ),
        (
            {"1.weight": torch.tensor(-1.0)},
            ValueError,
            "must be finite numbers, 0 or more, got others for '1.weight'",
        ),
        ({"1.weight": torch.tensor(float("nan"))}, ValueError, "must be finite numbers"),
        ({"1.weight": "0.1"}, TypeError, "lr_factors"),
        ([0.1], TypeError, "lr_factors must be factors by name of a parameter, got list"),
    ],
)
def test_wrong_factors_are_named(factors: Any, kind: type[Exception], message: str) -> None:
    before = network().state_dict()
    model = network()
    with pytest.raises(kind, match=message):
        train(model, DATA, Recipe(epochs=1), lr_factors=factors)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
