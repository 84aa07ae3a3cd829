"""Attacks by their definition; training that withstands them; scores from it that extrapolate."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunefuse._seeds import generator, isolated
from prunefuse.data import TensorImages, load
from prunefuse.dynamics import DynamicUncertainty, Recorder
from prunefuse.extrapolation import KNN, extrapolate
from prunefuse.models import mlp, resnet8
from prunefuse.training import (
    Adversarial,
    Distillation,
    Pgd,
    Recipe,
    evaluate,
    evaluate_attacked,
    features,
    perturb,
    trades_loss,
    train,
)

ATTACK = Pgd(epsilon=0.1, step_size=0.05, steps=3)
QUICK = Recipe(epochs=2, batch_size=16, lr=0.05, schedule="one-cycle")


def small_mlp(seed: int = 0) -> nn.Module:
    with isolated(seed):
        return mlp(in_channels=1, image_size=(8, 8), hidden=(128, 128))


def convolutional() -> nn.Module:
    with isolated(0):
        return nn.Sequential(resnet8(in_channels=1), nn.Dropout(0.5))


@pytest.fixture(scope="module")
def digits() -> TensorImages:
    return load("digits").pool


def batch(digits: TensorImages, count: int = 32) -> tuple[Tensor, Tensor]:
    return digits.images[:count].clone(), digits.labels[:count].clone()


def by_definition(model: nn.Module, images: Tensor, labels: Tensor, attack: Pgd) -> Tensor:
    """Step, back into the ball, back into the range; one image at a time, in evaluation mode."""
    model.eval()
    x = images.clone()
    if attack.random_start:
        draw = torch.rand(images.shape, generator=generator(0, "attack"))
        x = (x + (2 * draw - 1) * attack.epsilon).clamp(attack.low, attack.high)
    for _ in range(attack.steps):
        slopes = []
        for image, label in zip(x, labels, strict=True):
            point = image[None].clone().requires_grad_()
            functional.cross_entropy(model(point), label[None]).backward()
            slopes.append(point.grad[0])
        x = x + attack.step_size * torch.stack(slopes).sign()
        x = images + (x - images).clamp(-attack.epsilon, attack.epsilon)
        x = x.clamp(attack.low, attack.high)
    return x


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("make", [small_mlp, convolutional])
def test_it_is_projected_gradient_descent(digits, make, random_start):
    images, labels = batch(digits)
    attack = replace(ATTACK, random_start=random_start)
    expected = by_definition(make(), images, labels, attack)
    attacked = perturb(make(), images, labels, attack)
    # The sign of a slope that is nearly 0 may differ between one image and a batch.
    assert (attacked - expected).abs().le(1e-6).float().mean() > 0.995


@pytest.mark.parametrize("make", [small_mlp, convolutional])
def test_it_stays_near_in_range_and_raises_the_loss(digits, make):
    images, labels = batch(digits)
    model = make().eval()
    for attack in (ATTACK, Pgd(epsilon=0.3, step_size=1.0, steps=2), replace(ATTACK, low=-1, high=2)):
        attacked = perturb(model, images, labels, attack)
        assert (attacked - images).abs().max() <= attack.epsilon + 1e-6
        assert attacked.min() >= attack.low
        assert attacked.max() <= attack.high
        with torch.no_grad():
            before, after = (
                functional.cross_entropy(model(x), labels, reduction="none") for x in (images, attacked)
            )
        assert (after > before).float().mean() > 0.95


def test_fgsm_of_a_linear_model_is_the_closed_form():
    torch.manual_seed(0)
    model = nn.Linear(6, 2)
    images, labels = torch.rand(40, 6), torch.arange(40) % 2
    attacked = perturb(model, images, labels, Pgd(epsilon=0.1, step_size=0.1, steps=1, random_start=False))
    # The loss rises along (weights of the other class) - (weights of the label), whatever the image.
    slope = (model.weight[1 - labels] - model.weight[labels]).sign()
    assert torch.equal(attacked, (images + 0.1 * slope).clamp(images - 0.1, images + 0.1).clamp(0, 1))


def test_without_steps_there_is_the_start_alone(digits):
    images, labels = batch(digits)
    model = small_mlp()
    same = perturb(model, images, labels, replace(ATTACK, steps=0, random_start=False))
    assert torch.equal(same, images)
    assert same.data_ptr() != images.data_ptr()
    start = perturb(model, images, labels, replace(ATTACK, steps=0, low=-1, high=2))
    change = (start - images) / ATTACK.epsilon
    assert change.abs().max() <= 1 + 1e-5
    assert abs(float(change.mean())) < 0.05
    assert abs(float(change.var()) - 1 / 3) < 0.05  # of a uniform draw
    drawn = [
        perturb(model, images, labels, replace(ATTACK, steps=0), rng=torch.Generator().manual_seed(s))
        for s in (1, 1, 2)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_nothing_but_the_attack_comes_of_it(digits):
    images, labels = batch(digits)
    model = convolutional().train()
    model[0].fc.eval()
    functional.cross_entropy(model(images), labels).backward()
    modes = [m.training for m in model.modules()]
    state = [t.clone() for t in model.state_dict().values()]
    slopes = [p.grad.clone() for p in model.parameters()]
    kept, drawn = images.clone(), torch.get_rng_state()
    with torch.no_grad():
        first = perturb(model, images, labels, ATTACK)
    assert torch.equal(first, perturb(model, images, labels, ATTACK))
    assert not first.requires_grad
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.equal(images, kept)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(state, model.state_dict().values(), strict=True))
    assert all(torch.equal(a, p.grad) for a, p in zip(slopes, model.parameters(), strict=True))


class Normalized(nn.Module):
    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model
        self.mean, self.std = (torch.tensor(v)[:, None, None] for v in (mean, std))

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x - self.mean) / self.std)


def test_pixels_of_normalized_images():
    with isolated(0):
        model = mlp(in_channels=3, image_size=(4, 4)).eval()
        images, labels = torch.rand(16, 3, 4, 4), torch.arange(16) % 10
    images[0], images[1] = 0, 1
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    attack = Pgd(epsilon=0.1, step_size=0.03, steps=4)
    expected = perturb(Normalized(model, mean, std), images, labels, attack)
    given = TensorImages(images, mean=mean, std=std).read(torch.arange(16))
    attacked = perturb(model, given, labels, replace(attack, mean=mean, std=std))
    shape = (3, 1, 1)
    in_pixels = attacked * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
    torch.testing.assert_close(in_pixels, expected, atol=1e-5, rtol=0)


def test_from_probabilities_it_raises_the_divergence(digits):
    images, _ = batch(digits)
    model = small_mlp().eval()
    with torch.no_grad():
        clean = model(images)
    attacked, start = (perturb(model, images, clean.softmax(1), replace(ATTACK, steps=s)) for s in (5, 0))

    def divergence(x: Tensor) -> Tensor:
        with torch.no_grad():
            return (clean.softmax(1) * (clean.log_softmax(1) - model(x).log_softmax(1))).sum(1)

    assert (divergence(attacked) > 4 * divergence(start)).float().mean() > 0.9


def test_trades_loss_is_the_formula():
    rng = np.random.default_rng(0)
    clean, attacked, labels = rng.normal(size=(7, 5)), rng.normal(size=(7, 5)) * 3, rng.integers(5, size=7)
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (clean, attacked))
    expected = -np.log(p[np.arange(7), labels]).mean() + 6 * (p * np.log(p / q)).sum(1).mean()
    tensors = [torch.tensor(x, requires_grad=True) for x in (clean, attacked)]
    loss = trades_loss(*tensors, torch.tensor(labels), 6.0)
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-12)
    loss.backward()
    # By hand: d/d attacked = 6 (q - p) / 7; the divergence has a slope in the clean logits too.
    np.testing.assert_allclose(tensors[1].grad, 6 * (q - p) / 7, rtol=1e-9, atol=1e-15)
    logs = np.log(p / q)
    by_divergence = 6 * p * (logs - (p * logs).sum(1, keepdims=True)) / 7
    np.testing.assert_allclose(tensors[0].grad, (p - np.eye(5)[labels]) / 7 + by_divergence, rtol=1e-9)


@pytest.mark.parametrize("make", [small_mlp, lambda: convolutional()[0]], ids=["mlp", "batch norm"])
@pytest.mark.parametrize("beta", [None, 6.0])
def test_the_loss_of_a_step_is_its_definition(digits, make, beta):
    images, labels = batch(digits)
    other = make().eval()
    with torch.no_grad():
        target = labels if beta is None else other(images).softmax(1)
    attacked = by_definition(other, images, target, ATTACK)
    other.train()
    # Batch norm takes clean and attacked images as batches of their own.
    clean, said = (other(images) if beta else None), other(attacked)
    expected = functional.cross_entropy(said, labels)
    if beta:
        p, q = clean.softmax(1), said.softmax(1)
        expected = functional.cross_entropy(clean, labels) + beta * (p * (p / q).log()).sum(1).mean()
    model = make().train()
    loss, logits = Adversarial(ATTACK, beta=beta).loss(model, images, labels, QUICK, generator(0, "attack"))
    assert loss.item() == pytest.approx(expected.item(), rel=2e-3)
    torch.testing.assert_close(logits, said, atol=0.02, rtol=0.02)
    for a, b in zip(model.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_on_a_device_it_is_the_same_attack(digits, device):
    images, labels = batch(digits)
    expected = perturb(small_mlp(), images, labels, ATTACK)
    model = small_mlp().to(device)
    attacked = perturb(model, images.to(device), labels.to(device), ATTACK)
    assert attacked.device.type == device
    assert (attacked.cpu() - expected).abs().le(1e-5).float().mean() > 0.99
    data = TensorImages(images, labels)
    history = train(model, data, QUICK, adversarial=Adversarial(ATTACK, beta=1.0))
    assert np.isfinite(history[-1].loss)
    with torch.no_grad():
        moved = perturb(model, images.to(device), labels.to(device), ATTACK)
        right = model.eval()(moved).argmax(1).cpu() == labels
    # The same starts: both are drawn from the seed's first numbers.
    assert evaluate_attacked(model, data, ATTACK) == pytest.approx(float(right.float().mean()), abs=0.04)


@pytest.mark.parametrize("beta", [None, 0.0])
def test_without_an_attack_it_is_ordinary_training(digits, beta):
    data = TensorImages(digits.images[:64], digits.labels[:64])
    plain, other = small_mlp(), small_mlp()
    expected = train(plain, data, QUICK)
    # Without beta nothing is attacked; with beta 0 the attack weighs nothing.
    attack = Pgd(epsilon=0, random_start=False) if beta is None else Pgd()
    history = train(other, data, QUICK, adversarial=Adversarial(attack, beta=beta))
    assert [e.loss for e in history] == pytest.approx([e.loss for e in expected], rel=1e-6)
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("beta", [None, 6.0])
def test_which_logits_are_told_changes_nothing_else(digits, beta):
    data = TensorImages(digits.images[:64], digits.labels[:64])
    told: dict[str, list[Tensor]] = {}
    models = []
    for logits in ("adversarial", "clean", "adversarial"):
        told[logits] = []
        model = convolutional()
        drawn = torch.get_rng_state()
        train(
            model,
            data,
            QUICK,
            adversarial=Adversarial(ATTACK, beta=beta, logits=logits),
            on_batch=lambda said, *_, to=told[logits]: to.append(said),
        )
        assert torch.equal(torch.get_rng_state(), drawn)
        models.append(model.state_dict())
    for other in models[1:]:
        assert all(torch.equal(models[0][name], other[name]) for name in other)
    assert not torch.equal(told["clean"][0], told["adversarial"][0])
    assert not any(said.requires_grad for said in told["clean"] + told["adversarial"])


def test_errors(digits):
    images, labels = batch(digits)
    for options, message in (
        ({"epsilon": -1}, "epsilon"),
        ({"step_size": float("nan")}, "step_size"),
        ({"steps": -1}, "steps"),
        ({"low": 1.0}, "high"),
        ({"mean": (0.5,)}, "std must be given with mean, or neither"),
        ({"mean": (0.5,), "std": (0.5, 0.5)}, "std"),
        ({"mean": (0.5,), "std": (0.0,)}, "std"),
    ):
        with pytest.raises(ValueError, match=message):
            Pgd(**options)
    with pytest.raises(TypeError, match="steps"):
        Pgd(steps=1.5)
    for options, message in (
        ({"beta": -1.0}, "beta"),
        ({"beta": 1.0, "attack": Pgd(random_start=False)}, "random start"),
        ({"logits": "both"}, "logits"),
    ):
        with pytest.raises(ValueError, match=message):
            Adversarial(**options)
    with pytest.raises(ValueError, match="range"):
        perturb(small_mlp(), images * 2, labels, ATTACK)
    with pytest.raises(TypeError, match="floating"):
        perturb(small_mlp(), images.byte(), labels, ATTACK)
    with pytest.raises(ValueError, match="adversarial"):
        train(small_mlp(), digits, QUICK, distillation=Distillation(small_mlp()), adversarial=Adversarial())


@pytest.mark.parametrize(("beta", "logits"), [(None, "adversarial"), (6.0, "clean")], ids=["madry", "trades"])
def test_on_digits_it_withstands_and_its_scores_extrapolate(beta, logits):
    data = load("digits")
    # As many steps for the subset as for all.
    recipe = Recipe(epochs=25, min_steps=575, batch_size=64, lr=0.1, schedule="one-cycle")
    order = torch.randperm(len(data.pool), generator=torch.Generator().manual_seed(0))
    subset, found = order[:480], {}
    for name, rows in (("subset", subset), ("all", order.sort().values)):
        model = small_mlp()
        recorder = Recorder(len(rows), {"du": DynamicUncertainty(window=10)})
        samples = TensorImages(data.train.images[rows], data.train.labels[rows], augment=data.train.augment)
        adversarial = Adversarial(ATTACK, beta=beta, logits=logits)
        train(
            model,
            samples,
            recipe,
            adversarial=adversarial,
            on_batch=recorder.update,
            on_epoch=lambda _, recorder=recorder: recorder.end_epoch(),
        )
        found[name] = model, recorder.scores()["du"]
    model, known = found["subset"]
    plain = small_mlp()
    train(plain, samples, recipe)
    strong = Pgd(epsilon=0.1, step_size=0.02, steps=20)
    ordinary = evaluate_attacked(plain, data.test, strong)
    assert ordinary < evaluate(plain, data.test) - 0.4
    assert evaluate_attacked(found["all"][0], data.test, strong) > ordinary + 0.3

    scores = torch.full((len(data.pool),), torch.nan, dtype=torch.float64)
    scores[subset] = known
    result = extrapolate(KNN(k=20), features(model, data.pool), scores, full_scores=found["all"][1])
    assert result.unscored.samples == len(data.pool) - 480
    assert result.unscored.spearman > 0.25
    assert result.unscored.overlap > 0.55
