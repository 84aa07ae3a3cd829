"""Training: it learns, repeats bit for bit, restores what it borrows, and fails loudly."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunefuse import models
from prunefuse._seeds import isolated
from prunefuse.data import Augment, Labeled, TensorImages, load
from prunefuse.training import Distillation, EpochResult, Recipe, TrainingDivergedError, evaluate, train

QUICK = Recipe(epochs=2, batch_size=16, lr=0.05, schedule="one-cycle")


def fresh(factory: Callable[[], nn.Module]) -> nn.Module:
    with isolated(0):
        return factory()


def resnet8() -> nn.Module:
    return fresh(lambda: models.resnet8(in_channels=1))


def weights(model: nn.Module) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def digits() -> TensorImages:
    train = load("digits").train
    return TensorImages(train.images[:64], train.labels[:64], augment=train.augment)


def test_it_learns(digits: TensorImages) -> None:
    model = resnet8()
    recipe = Recipe(epochs=20, batch_size=16, lr=0.05, schedule="one-cycle")
    seen: list[EpochResult] = []
    history = train(model, digits, recipe, test=digits.plain(), on_epoch=seen.append)
    assert seen == history
    assert [e.epoch for e in history] == list(range(1, 21))
    assert {e.epochs for e in history} == {20}
    assert history[-1].loss < 0.5 * history[0].loss
    assert history[-1].test_accuracy == evaluate(model, digits.plain())
    assert history[-1].train_accuracy > 0.8
    assert history[-1].lr == recipe.lr_at(79, 80)
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize("in_memory", [True, False])
def test_one_seed_repeats_bit_for_bit_and_leaves_the_generators(
    digits: TensorImages, in_memory: bool
) -> None:
    data = digits if in_memory else torch.utils.data.Subset(digits, range(40))
    runs = []
    for seed, disturbance in ((3, 1), (3, 2), (4, 1)):
        torch.manual_seed(disturbance)
        before = torch.get_rng_state()
        # Dropout draws from the global generator.
        model = nn.Sequential(resnet8(), nn.Dropout(0.5))
        with isolated(0):
            model.append(nn.Linear(10, 10))
        train(model, data, QUICK, seed=seed)
        runs.append(weights(model))
        assert torch.equal(torch.get_rng_state(), before)
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_last_odd_sample_does_not_break_batch_norm() -> None:
    data = TensorImages(torch.randn(17, 6), torch.arange(17) % 3)
    model = fresh(lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)))
    history = train(model, data, replace(QUICK, batch_size=16))
    assert history[-1].loss < 3


def test_reported_loss_and_accuracy_are_means_over_the_samples() -> None:
    x = torch.randn(10, 4)
    y = torch.arange(10) % 2
    model = fresh(lambda: nn.Linear(4, 2))
    with torch.no_grad():
        logits = model(x)
        loss, accuracy = (
            functional.cross_entropy(logits, y).item(),
            (logits.argmax(1) == y).float().mean().item(),
        )
    # A learning rate too small to change anything: the epoch sees the initial weights. Batches of 4, 3 and 3.
    [epoch] = train(model, TensorImages(x, y), Recipe(epochs=1, batch_size=4, lr=1e-30))
    assert epoch.loss == pytest.approx(loss, rel=1e-5)
    assert epoch.train_accuracy == pytest.approx(accuracy)


def test_one_plain_sgd_step_is_the_textbook_s() -> None:
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    model = nn.Linear(3, 2)
    reference = nn.Linear(3, 2)
    reference.load_state_dict(model.state_dict())
    functional.cross_entropy(reference(x), y).backward()
    recipe = Recipe(epochs=1, batch_size=4, lr=0.5, momentum=0.0, weight_decay=0.01, steps=((1, 1.0),))
    train(model, TensorImages(x, y), recipe)
    for value, before in zip(model.parameters(), reference.parameters(), strict=True):
        assert before.grad is not None
        expected = before - 0.5 * (before.grad + 0.01 * before)
        torch.testing.assert_close(value, expected)


def test_autocast_and_channels_last_train_too(digits: TensorImages) -> None:
    model = resnet8()
    recipe = replace(QUICK, epochs=15, autocast=True, channels_last=True)
    history = train(model, digits, recipe)
    assert history[-1].loss < 0.6 * history[0].loss
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    convolution = model.get_parameter("stage1.0.conv1.weight")
    assert convolution.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(digits: TensorImages) -> None:
    """Up to the last bits, and in evaluation mode, too, which is not compiled."""
    plain, compiled = resnet8(), resnet8()
    expected = train(plain, digits, QUICK, test=digits)
    found = train(compiled, digits, replace(QUICK, compile=True), test=digits)
    assert [one.loss for one in found] == pytest.approx([one.loss for one in expected], rel=1e-3)
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict(), rtol=1e-2, atol=1e-3)
    assert compiled.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.slow
def test_a_network_that_cannot_be_compiled_is_told(
    digits: TensorImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("/no/such/compiler",))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(ValueError, match="compile must be False for this model on this machine, got True"):
        train(model, digits, replace(QUICK, compile=True))


def test_divergence_is_an_error_that_says_where(digits: TensorImages) -> None:
    with pytest.raises(TrainingDivergedError, match=r"epoch \d of 5.*learning rate"):
        train(resnet8(), digits, Recipe(epochs=5, batch_size=16, lr=1e30, schedule="one-cycle"))


def test_no_data_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        train(resnet8(), TensorImages(torch.zeros(0, 1, 8, 8), torch.zeros(0)), QUICK)


def test_labels_given_are_the_ones_learned(digits: TensorImages) -> None:
    shifted = (digits.labels + 1) % 10  # type: ignore[operator]
    model = resnet8()
    train(model, Labeled(digits, range(64), shifted), replace(QUICK, epochs=20))
    assert evaluate(model, TensorImages(digits.images, shifted)) > 0.8
    assert evaluate(model, digits.plain()) < 0.2


class Spy(nn.Module):
    """A teacher that records its inputs and modes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.inputs: list[Tensor] = []
        self.modes: set[bool] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.inputs.append(x.clone())
        self.modes.add(self.training)
        return self.model(x)  # type: ignore[no-any-return]


def test_teacher_sees_the_student_s_batches_in_evaluation_mode(digits: TensorImages) -> None:
    teacher, student = Spy(resnet8()), Spy(resnet8())
    teacher.train()
    before = weights(teacher)
    train(student, digits, QUICK, distillation=Distillation(teacher))
    assert teacher.modes == {False}
    assert student.modes == {True}
    assert same(teacher.inputs, student.inputs)
    assert teacher.training
    assert same(weights(teacher), before)
    assert all(p.grad is None for p in teacher.parameters())


def test_student_follows_its_teacher_without_labels(digits: TensorImages) -> None:
    data = TensorImages(digits.images, digits.labels, augment=Augment(1, False))
    teacher = resnet8()
    train(teacher, data, replace(QUICK, epochs=15))
    with isolated(9):
        student: nn.Module = models.resnet8(in_channels=1)
    wrong = Labeled(data, range(64), [0] * 64)
    recipe = replace(QUICK, epochs=15)
    history = train(student, wrong, recipe, distillation=Distillation(teacher, weight=0.0))
    assert evaluate(student, data.plain()) > 0.6
    assert all(e.teacher_seconds > 0 for e in history)


@pytest.mark.parametrize("augmented", [False, True])
def test_a_teacher_sees_what_does_not_change_once(augmented: bool) -> None:
    images, labels = torch.rand(20, 1, 8, 8), torch.arange(20) % 10
    data = TensorImages(images, labels, augment=Augment(pad=1, flip=False) if augmented else None)
    teacher, seen = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), []
    teacher.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    before = deepcopy(student)
    recipe = Recipe(epochs=3, batch_size=5, lr=0.1, schedule="constant", momentum=0.0, weight_decay=0.0)
    train(student, data, recipe, distillation=Distillation(teacher))
    # Once, after the first sample that tells how much there is to keep; else in every epoch.
    assert sum(seen) == (60 if augmented else 1 + 20)
    if not augmented:  # and what it says of each sample is what the sample is trained with
        listed = [(image, int(label)) for image, label in zip(images, labels, strict=True)]
        train(before, listed, recipe, distillation=Distillation(teacher))
        torch.testing.assert_close(student[1].weight, before[1].weight)


def test_outputs_that_are_too_many_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from prunefuse.training import _train

    images, said = torch.rand(20, 1, 8, 8), torch.zeros(1, 10)
    data = TensorImages(images, torch.arange(20) % 10)
    assert _train.most_taught_once(data, None, lambda: said) >= 20
    assert _train.most_taught_once(data, lambda items: items, lambda: said) == 0
    assert _train.most_taught_once([(image, 0) for image in images], None, lambda: said) == 0
    monkeypatch.setattr(_train, "_KEPT_BYTES", 19 * said.nbytes)
    assert _train.most_taught_once(data, None, lambda: said) == 19
    teacher, seen = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), []
    teacher.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    recipe = Recipe(epochs=3, batch_size=5, lr=0.1)
    train(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), data, recipe, distillation=Distillation(teacher))
    assert sum(seen) == 1 + 60


def test_distillation_loss_by_hand() -> None:
    student, teacher = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0])
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    kl = (p * (p.log() - q.log())).sum(1).mean()
    ce = -student.softmax(1).log()[torch.arange(5), labels].mean()
    loss = Distillation(nn.Identity(), weight=0.3, temperature=3.0).loss(student, teacher, labels)
    torch.testing.assert_close(loss, 0.3 * ce + 0.7 * 9 * kl)
    only_labels = Distillation(nn.Identity(), weight=1.0).loss(student, teacher, labels)
    torch.testing.assert_close(only_labels, ce)


def test_a_teacher_fades_by_hand(digits: TensorImages) -> None:
    """Of four steps the parts done are 0, 1/4, 1/2 and 3/4."""
    rates = {"linear": [0.2, 0.4, 0.6, 0.8], "cosine": [0.2, 0.3171573, 0.6, 0.8828427], "none": [0.2] * 4}
    for annealing, expected in rates.items():
        distillation = Distillation(resnet8(), weight=0.2, annealing=annealing)  # type: ignore[arg-type]
        found = [distillation.weight_at(step / 4) for step in range(4)]
        assert found == pytest.approx(expected)
        assert distillation.weight_at(1.0) == pytest.approx(0.2 if annealing == "none" else 1.0)
    student, teacher, labels = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    faded = Distillation(resnet8(), weight=0.2, temperature=2.0, annealing="linear")
    fixed = Distillation(resnet8(), weight=0.6, temperature=2.0)
    torch.testing.assert_close(
        faded.loss(student, teacher, labels, progress=0.5), fixed.loss(student, teacher, labels)
    )
    with pytest.raises(ValueError, match="annealing must be one of none, linear, cosine, got 'step'"):
        Distillation(resnet8(), annealing="step")  # type: ignore[arg-type]


def test_training_goes_through_the_weights_of_a_teacher_that_fades() -> None:
    """A linear student from zeros: what it is taught in the second step depends on the part of the training that is done."""
    images, labels = torch.rand(8, 1, 2, 2), torch.arange(8) % 3
    teacher = fresh(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    student = fresh(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    by_hand = deepcopy(student)
    recipe = Recipe(epochs=4, batch_size=8, lr=0.3, schedule="constant", momentum=0.0, weight_decay=0.0)
    distillation = Distillation(teacher, weight=0.1, temperature=2.0, annealing="linear")
    train(student, TensorImages(images, labels), recipe, distillation=distillation)
    for weight in (0.1, 0.325, 0.55, 0.775):
        fixed = Distillation(teacher, weight=weight, temperature=2.0)
        by_hand.zero_grad()
        fixed.loss(by_hand(images), teacher(images).detach(), labels).backward()
        with torch.no_grad():
            for parameter in by_hand.parameters():
                assert parameter.grad is not None
                parameter -= 0.3 * parameter.grad
    for one, other in zip(student.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("field", "value"), [("weight", 1.5), ("weight", -0.1), ("temperature", 0.0)])
def test_wrong_distillation_is_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        Distillation(nn.Identity(), **{field: value})


@pytest.mark.parametrize(("samples", "batch_size"), [(1, 16), (4, 1)])
def test_batch_norm_over_one_sample_is_explained(samples: int, batch_size: int) -> None:
    data = TensorImages(torch.rand(samples, 1, 2, 2), torch.zeros(samples, dtype=torch.int64))
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    with pytest.raises(
        ValueError, match=rf"^data and batch_size must be two .* batch norm.*batch_size {batch_size}\)"
    ):
        train(model, data, replace(QUICK, batch_size=batch_size))
