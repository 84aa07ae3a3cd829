"""What tasks say of outputs: losses, divergences and metrics against their definitions and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as truth

from prunefuse.tasks import Loss, MultiLabel, Regression, Segmentation, SingleLabel, Tokens

G = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(shape, generator=G) * 2


def integers(high, *shape):
    return torch.randint(high, shape, generator=G)


def binary(*shape):
    return (torch.rand(shape, generator=G) < 0.4).float()


CASES = {
    "single": (SingleLabel(), normal(40, 5), integers(5, 40)),
    "multi": (MultiLabel(), normal(40, 6), binary(40, 6)),
    "pixels": (Segmentation(), normal(6, 3, 4, 5), integers(3, 6, 4, 5)),
    "tokens": (Tokens(), normal(6, 7, 4), integers(4, 6, 7)),
    "numbers": (Regression(), normal(40, 2), normal(40, 2)),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def test_metrics_add_up_over_batches(case):
    task, outputs, targets = case
    whole = task.metrics(task.measure(outputs, targets))
    parts = sum(task.measure(outputs[a:b], targets[a:b]) for a, b in ((0, 1), (1, 4), (4, len(outputs))))
    for name, value in task.metrics(parts).items():
        assert np.allclose(value, whole[name], rtol=1e-9, equal_nan=True), name


def test_a_teacher_that_says_the_same_teaches_nothing(case):
    task, outputs, targets = case
    student = outputs.clone().requires_grad_()
    distance = task.divergence(student, outputs, targets, 3.0)
    assert abs(distance.item()) < 1e-6
    distance.backward()
    assert float(student.grad.abs().max()) < 1e-6
    assert float(task.divergence(outputs + normal(*outputs.shape), outputs, targets, 3.0)) > 1e-3


def test_learning_lowers_the_loss_and_betters_the_first_metric(case):
    task, outputs, targets = case
    said = outputs.clone().requires_grad_()
    optimizer = torch.optim.Adam([said], lr=0.1)
    losses = []
    for _ in range(200):
        loss = task.loss(said, targets, Loss())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    first = next(iter(task.metrics(task.measure(outputs, targets))))
    before, after = (task.metrics(task.measure(x.detach(), targets))[first] for x in (outputs, said))
    assert losses[-1] < losses[0] / 4
    assert after > before
    assert after > 0.95


def test_classes_are_counted_as_scikit_learn_counts_them():
    task, outputs, targets = CASES["single"]
    found, predicted = task.metrics(task.measure(outputs, targets)), outputs.argmax(1)
    assert found["accuracy"] == truth.accuracy_score(targets, predicted)
    assert math.isclose(found["balanced_accuracy"], truth.balanced_accuracy_score(targets, predicted))
    assert math.isclose(found["f1"], truth.f1_score(targets, predicted, average="macro"))
    assert np.allclose(found["recall"], truth.recall_score(targets, predicted, average=None))


def test_calibration_error_of_a_network_that_is_always_sure():
    logits = torch.tensor([[50.0, 0.0]]).repeat(10, 1)
    measured = SingleLabel().measure(logits, torch.tensor([0] * 7 + [1] * 3))
    assert math.isclose(SingleLabel().metrics(measured)["ece"], 0.3, rel_tol=1e-6)


def test_labels_are_counted_as_scikit_learn_counts_them():
    task, outputs, targets = CASES["multi"]
    found, predicted = task.metrics(task.measure(outputs, targets)), (outputs > 0).float()
    assert math.isclose(found["f1"], truth.f1_score(targets, predicted, average="micro"))
    assert math.isclose(found["f1_macro"], truth.f1_score(targets, predicted, average="macro"))
    assert math.isclose(found["exact_match"], truth.accuracy_score(targets, predicted))


def test_overlap_of_pixels_leaves_out_those_that_do_not_count():
    task, outputs, targets = CASES["pixels"]
    targets = targets.clone()
    targets[0, 0] = task.ignored
    found = task.metrics(task.measure(outputs, targets))
    counted = targets != task.ignored
    truly = truth.jaccard_score(targets[counted], outputs.argmax(1)[counted], average=None)
    assert np.allclose(found["iou"], truly)
    assert math.isclose(found["mean_iou"], truly.mean())


def test_small_outputs_are_brought_to_the_size_of_the_labels():
    targets = integers(3, 2, 8, 8)
    assert math.isfinite(float(Segmentation().loss(normal(2, 3, 4, 4), targets, Loss())))
    assert math.isfinite(float(Segmentation().loss(normal(2, 3, 4, 4), targets, Loss(name="dice"))))


def test_tokens_that_do_not_count_change_nothing():
    task, outputs, targets = CASES["tokens"]
    ignored = targets.clone()
    ignored[:, 4:] = -100
    other = outputs.clone()
    other[:, 4:] = 99.0
    more = {"loss": (ignored, Loss()), "measure": (ignored,), "divergence": (outputs, ignored, 2.0)}
    for name, rest in more.items():
        one, two = (getattr(task, name)(x, *rest) for x in (outputs, other))
        assert torch.allclose(one, two), name
    shorter = targets[:, :4]
    assert torch.allclose(task.loss(outputs, shorter, Loss()), task.loss(outputs, ignored, Loss()))


def test_entities_leave_out_what_is_none():
    task, outputs, targets = Tokens(outside=0), *CASES["tokens"][1:]
    predicted = outputs.argmax(2).flatten()
    found = task.metrics(task.measure(outputs, targets))
    assert math.isclose(
        found["entity_f1"], truth.f1_score(targets.flatten(), predicted, labels=[1, 2, 3], average="micro")
    )
    assert next(iter(found)) == "entity_f1"


def test_explained_variance_and_errors():
    task, outputs, targets = CASES["numbers"]
    found = task.metrics(task.measure(outputs, targets))
    assert math.isclose(found["r2"], truth.r2_score(targets, outputs), rel_tol=1e-6)
    assert math.isclose(found["mae"], truth.mean_absolute_error(targets, outputs), rel_tol=1e-6)
    assert math.isclose(found["rmse"] ** 2, truth.mean_squared_error(targets, outputs), rel_tol=1e-6)


def test_mnlp_is_the_mean_log_probability_of_what_is_predicted():
    logits = normal(3, 5, 4)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    found = Tokens().utilities(logits, "mnlp", {"attention_mask": mask})
    best = logits.double().log_softmax(2).amax(2)
    truly = [-float(best[i, : int(mask[i].sum())].mean()) for i in range(3)]
    assert np.allclose(found.double(), truly, atol=1e-6)


@pytest.mark.parametrize(
    ("task", "value", "said"),
    [
        (SingleLabel(), 5, r"oracle must have a class in \[0, 5\) for sample 3, got 5"),
        (SingleLabel(), 1.0, "an integer label for sample 3"),
        (MultiLabel(), [0, 1, 2, 0, 0], "zeros and ones for sample 3"),
        (MultiLabel(), [0, 1], r"\(5,\) zeros and ones for sample 3"),
        (MultiLabel(), "cat", "numbers for sample 3"),
        (Segmentation(), [[0, 9]], r"classes in \[0, 5\) or 255 for sample 3"),
        (Segmentation(), [0.5, 1.0], r"\(H, W\) whole numbers"),
        (Tokens(), [0, 7], r"classes in \[0, 5\) or -100 for sample 3"),
        (Tokens(), [[0], [1]], r"\(T,\) whole numbers"),
        (Regression(), [1.0], "5 numbers for sample 3"),
        (Regression(), [1.0, 2.0, float("nan"), 1.0, 1.0], "finite numbers for sample 3"),
    ],
)
def test_wrong_labels_are_named(task, value, said):
    with pytest.raises((TypeError, ValueError), match=said):
        task.label("oracle", 3, value, width=5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_weights_and_smoothing_of_the_recipe_reach_the_loss(smoothing):
    _, outputs, targets = CASES["single"]
    weights = torch.rand(5, generator=G)
    found = SingleLabel().loss(outputs, targets, Loss(class_weights=weights, label_smoothing=smoothing))
    truly = torch.nn.CrossEntropyLoss(weights, label_smoothing=smoothing)(outputs, targets)
    assert torch.equal(found, truly)
