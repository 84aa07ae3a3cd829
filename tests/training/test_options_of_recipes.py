"""Optimizers, schedules, weighted losses, clipping, validation and early stopping of a recipe."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from prunefuse.data import Labeled, TensorImages
from prunefuse.tasks import MultiLabel
from prunefuse.training import Checkpoint, Recipe, best_epoch, train

G = torch.Generator().manual_seed(0)
X = torch.randn(60, 5, generator=G)
Y = (X[:, 0] + 0.5 * torch.randn(60, generator=G) > 0.8).long()  # few of class 1
DATA = TensorImages(X, Y)
PLAIN = Recipe(epochs=4, batch_size=60, lr=0.01, schedule="constant", weight_decay=0.1)


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))


def trained(recipe, **options):
    model = network()
    history = train(model, DATA, recipe, **options)
    return model, history


def by_hand(optimizer, steps, loss_of=None, clip=None):
    """The same training, written out."""
    model = network()
    optimizer = optimizer(model.parameters())
    for _ in range(steps):
        loss = (loss_of or nn.functional.cross_entropy)(model(X), Y)
        optimizer.zero_grad()
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return model


def same(one, other):
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


def test_adamw_is_torchs():
    model, _ = trained(replace(PLAIN, optimizer="adamw"))
    assert same(model, by_hand(lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1), 4))


def test_gradients_are_clipped_to_the_norm():
    model, _ = trained(replace(PLAIN, clip_norm=0.05))
    sgd = lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1)  # noqa: E731
    assert same(model, by_hand(sgd, 4, clip=0.05))
    assert not same(model, by_hand(sgd, 4))


@pytest.mark.parametrize(
    ("fields", "loss"),
    [
        ({"class_weights": (1.0, 3.0)}, nn.CrossEntropyLoss(torch.tensor([1.0, 3.0]))),
        ({"label_smoothing": 0.2}, nn.CrossEntropyLoss(label_smoothing=0.2)),
        ({"balance_classes": True}, nn.CrossEntropyLoss(60 / (2 * Y.bincount().float()))),
    ],
)
def test_losses_are_torchs(fields, loss):
    model, _ = trained(replace(PLAIN, **fields))
    sgd = lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1)  # noqa: E731
    assert same(model, by_hand(sgd, 4, loss))


def test_classes_are_balanced_by_the_labels_that_were_bought():
    rows = torch.arange(0, 60, 2)
    labeled = Labeled(X, rows, Y[rows])
    one, other = network(), network()
    train(one, labeled, replace(PLAIN, balance_classes=True))
    weights = tuple((30 / (2 * Y[rows].bincount().float())).tolist())
    train(other, labeled, replace(PLAIN, class_weights=weights))
    assert same(one, other)


def test_a_class_without_labels_has_weight_one():
    model = nn.Linear(5, 4)
    train(model, DATA, replace(PLAIN, balance_classes=True))


def test_linear_rises_and_falls():
    recipe = Recipe(schedule="linear", lr=1.0, warmup=0.2)
    rates = [recipe.lr_at(step, 100) for step in range(100)]
    assert np.isclose(rates[0], 0.05)
    assert np.isclose(max(rates), 1.0)
    assert np.argmax(rates) == 19
    assert 0 < rates[-1] < 0.02
    assert Recipe(schedule="linear", lr=1.0, warmup=0.0).lr_at(0, 10) == 1.0
    assert Recipe(schedule="constant", lr=0.3).lr_at(7, 10) == 0.3


def test_the_best_epoch_on_what_is_held_out_is_left():
    recipe = replace(PLAIN, epochs=30, lr=0.5, validation=0.3)
    model, history = trained(recipe)
    best = best_epoch(history)
    assert best.validation == max(one.validation for one in history)
    short, _ = trained(replace(recipe, epochs=best.epoch))
    assert same(model, short)  # whose last epoch is the best one


def test_what_is_held_out_is_not_trained_on():
    seen = []
    trained(
        replace(PLAIN, validation=0.3), on_batch=lambda outputs, labels, positions: seen.append(positions)
    )
    assert len(torch.cat(seen).unique()) == 42


def test_training_stops_after_epochs_without_a_better_one():
    recipe = replace(PLAIN, epochs=200, lr=0.05, validation=0.3, patience=3)
    _, history = trained(recipe)
    assert len(history) < 200
    assert len(history) == best_epoch(history).epoch + 3


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_killed_training_goes_on_to_the_same_bits(optimizer, tmp_path):
    recipe = replace(
        PLAIN, epochs=8, optimizer=optimizer, batch_size=16, validation=0.2, patience=4, clip_norm=1.0
    )
    whole, history = trained(recipe)

    class Killed(Exception):
        pass

    def stop(result):
        if result.epoch == 5:
            raise Killed

    checkpoint = Checkpoint(tmp_path / "training.safetensors", seconds=0)
    with pytest.raises(Killed):
        trained(recipe, checkpoint=checkpoint, on_epoch=stop)
    went_on, again = trained(recipe, checkpoint=checkpoint)
    assert [(e.loss, e.validation) for e in again] == [(e.loss, e.validation) for e in history]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), went_on.parameters(), strict=True))


def test_samples_held_out_are_read_without_augmentation():
    class Read(torch.utils.data.Dataset):
        def __init__(self):
            self.seen = set()

        def __len__(self):
            return 60

        def __getitem__(self, index):
            self.seen.add(index)
            return X[index], int(Y[index])

    augmented, plain = Read(), Read()
    train(network(), augmented, replace(PLAIN, epochs=2, validation=0.5), plain=plain)
    assert len(augmented.seen) == len(plain.seen) == 30
    assert not augmented.seen & plain.seen


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"optimizer": "adam"}, "optimizer must be one of sgd, adamw, got 'adam'"),
        ({"patience": 3}, "patience must be 0 without validation, got 3"),
        ({"validation": 1.0}, "validation must be"),
        ({"optimizer": "adamw", "nesterov": True}, "nesterov must be False with adamw"),
        (
            {"class_weights": (1.0,), "balance_classes": True},
            "balance_classes must be False with class_weights",
        ),
        ({"class_weights": (-1.0,)}, "class_weights must be numbers of 0 or more"),
        ({"clip_norm": -1.0}, "clip_norm must be"),
    ],
)
def test_options_out_of_range_are_named(fields, said):
    with pytest.raises(ValueError, match=said):
        replace(PLAIN, **fields)


@pytest.mark.parametrize(
    ("recipe", "options", "said"),
    [
        (
            replace(PLAIN, class_weights=(1.0, 1.0, 1.0)),
            {},
            "class_weights must be one for each of 2 classes, got 3",
        ),
        (
            replace(PLAIN, class_weights=(1.0,)),
            {},
            "class_weights must be one for each of 2 classes, got 1",
        ),
        (replace(PLAIN, loss="dice"), {}, "loss must be one of cross_entropy of SingleLabel, got 'dice'"),
    ],
)
def test_losses_that_do_not_fit_are_named(recipe, options, said):
    with pytest.raises(ValueError, match=said):
        trained(recipe, **options)


def test_one_sample_cannot_be_held_out():
    with pytest.raises(ValueError, match="two samples or more, of which one is held out, got 1"):
        train(network(), TensorImages(X[:1], Y[:1]), replace(PLAIN, validation=0.5))


def test_weights_of_several_labels_are_those_of_what_a_sample_has():
    targets = (torch.rand(60, 2, generator=G) < 0.3).float()
    model = network()
    [result] = train(
        model, TensorImages(X, targets), replace(PLAIN, epochs=1, class_weights=(1.0, 5.0)), task=MultiLabel()
    )
    before = network()
    truly = nn.functional.binary_cross_entropy_with_logits(
        before(X), targets, pos_weight=torch.tensor([1.0, 5.0]), reduction="none"
    )
    assert np.isclose(result.loss, truly.sum(1).mean().item())
