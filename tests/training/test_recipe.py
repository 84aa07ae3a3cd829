"""Learning-rate schedules and what a recipe refuses."""

from typing import Any

import pytest

from prunefuse.training import RECIPES, Recipe


def test_cifar_recipe_is_svp_s() -> None:
    recipe = RECIPES["cifar"]
    assert (recipe.epochs, recipe.batch_size, recipe.momentum, recipe.weight_decay) == (181, 128, 0.9, 5e-4)
    per_epoch = 7
    rates = [recipe.lr_at(step, 181 * per_epoch) for step in range(181 * per_epoch)]
    expected = [0.01] * 1 + [0.1] * 90 + [0.01] * 45 + [0.001] * 45
    assert rates == pytest.approx([rate for rate in expected for _ in range(per_epoch)], rel=1e-12)


def test_step_pieces_scale_with_the_epochs() -> None:
    recipe = Recipe(epochs=4, lr=2.0, steps=((1, 1.0), (1, 0.5)))
    assert [recipe.lr_at(step, 8) for step in range(8)] == [2.0] * 4 + [1.0] * 4


def test_one_cycle_rises_then_falls_to_zero() -> None:
    recipe = Recipe(epochs=10, lr=0.5, schedule="one-cycle", warmup=0.3)
    rates = [recipe.lr_at(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(0.02)
    assert max(rates) == rates[300] == 0.5
    assert rates[:301] == sorted(rates[:301])
    assert rates[300:] == sorted(rates[300:], reverse=True)
    assert rates[650] == pytest.approx(0.25)
    assert 0 < rates[-1] < 1e-5


@pytest.mark.parametrize(
    ("samples", "epochs"),
    [(28, 50), (64, 25), (1000, 10)],
)
def test_small_sets_get_more_epochs(samples: int, epochs: int) -> None:
    assert Recipe(epochs=10, min_steps=100, batch_size=16).epochs_for(samples) == epochs
    assert Recipe(epochs=10, batch_size=16).epochs_for(samples) == 10


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", -1),
        ("min_steps", -1),
        ("batch_size", 0),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("momentum", 1.0),
        ("weight_decay", -0.1),
        ("schedule", "cosine"),
        ("steps", ()),
        ("steps", ((0, 1.0),)),
        ("warmup", 1.0),
    ],
)
def test_wrong_values_are_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be .*got"):
        Recipe(**{field: value})


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(ValueError, match="nesterov"):
        Recipe(nesterov=True, momentum=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 1.5),
        ("epochs", True),
        ("batch_size", "16"),
        ("lr", "0.1"),
        ("lr", None),
        ("nesterov", 1),
        ("steps", 5),
        ("steps", (1, 2)),
        ("steps", (("1", 0.1),)),
    ],
)
def test_wrong_types_are_named(field: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"^{field} must be .*got"):
        Recipe(**{field: value})
