"""Recording in passes of evaluation and in training."""

import numpy as np
import pytest
import torch
from dynamics_dump import el2n
from torch import nn

from prunefuse import Recipe
from prunefuse.dynamics import DynamicUncertainty, El2n, Grand, Recorder, record_evaluation
from prunefuse.training import features, predict, train


class Items(torch.utils.data.Dataset):
    """Images and labels, one by one."""

    def __init__(self, samples=50):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(samples, 1, 4, 4, generator=generator)
        self.labels = torch.randint(3, (samples,), generator=generator)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, position):
        return self.images[position], int(self.labels[position])


def network():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(24, 3)
    )


def modes(model):
    return [module.training for module in model.modules()]


def test_an_evaluation_pass_is_what_the_network_predicts(device):
    data, model = Items(), network().to(device).train()
    model[1].eval()  # a frozen batch norm stays frozen
    before, statistics = modes(model), model[1].running_mean.clone()
    recorder = Recorder(50, ("el2n", "grand"), device=device, forward="evaluation")
    record_evaluation(recorder, model, data, batch_size=16)
    assert modes(model) == before
    assert torch.equal(model[1].running_mean, statistics)
    assert recorder.epoch == 1
    logits, h = predict(model, data).cpu().double(), features(model, data).cpu().double().numpy()
    norms = el2n(logits[None].numpy(), data.labels.numpy())[0]
    scores = recorder.scores()
    np.testing.assert_allclose(scores["el2n"].cpu(), norms, rtol=1e-5)
    np.testing.assert_allclose(scores["grand"].cpu(), norms * np.sqrt(np.square(h).sum(1) + 1), rtol=1e-5)


def test_an_interrupted_pass_restores_the_modes_and_goes_on():
    data, model = Items(), network().train()
    whole, cut = (Recorder(50, ("el2n",), forward="evaluation") for _ in range(2))
    record_evaluation(whole, model, data, batch_size=16)

    def interrupt(done, total):
        assert total == 50
        if done == 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record_evaluation(cut, model, data, batch_size=16, on_progress=interrupt)
    assert modes(model) == [True] * len(modes(model))
    assert cut.unseen().tolist() == list(range(32, 50))
    told = []
    record_evaluation(cut, model, data, batch_size=16, on_progress=lambda *numbers: told.append(numbers))
    assert told == [(48, 50), (50, 50)]
    torch.testing.assert_close(cut.scores()["el2n"], whole.scores()["el2n"])


def test_what_a_pass_refuses():
    data, model = Items(), network()
    with pytest.raises(ValueError, match="forward='evaluation', got 'training'"):
        record_evaluation(Recorder(50), model, data)
    with pytest.raises(ValueError, match="the 50 samples of data, got 49"):
        record_evaluation(Recorder(49, forward="evaluation"), model, data)
    linear_free = nn.Sequential(nn.Flatten(), nn.LazyBatchNorm1d())
    linear_free(torch.zeros(2, 1, 4, 4))
    with pytest.raises(ValueError, match=r"ran no nn\.Linear"):
        record_evaluation(Recorder(50, ("grand",), forward="evaluation"), linear_free, data)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_records_what_it_trains_on(workers):
    data, seen = Items(), []
    recorder = Recorder(50, {"du": DynamicUncertainty(2, omitted=0), "el2n": El2n()})

    def on_batch(logits, labels, positions):
        assert torch.equal(labels, data.labels[positions])
        assert not logits.requires_grad
        seen.append((positions, logits))
        recorder.update(logits, labels, positions)

    ended = []
    recipe = Recipe(epochs=3, batch_size=16, lr=0.05)
    torch.manual_seed(1)
    model = network()
    train(
        model,
        data,
        recipe,
        workers=workers,
        on_batch=on_batch,
        on_epoch=lambda _: ended.append(recorder.end_epoch().tolist()),
    )
    assert ended == [[], [], []]
    steps = len(seen) // 3
    logits = torch.empty(3, 50, 3)
    for number, (positions, rows) in enumerate(seen):
        logits[number // steps, positions] = rows
    p = torch.softmax(logits.double(), 2)[:, torch.arange(50), data.labels]
    expected = torch.stack([p[k : k + 2].std(0) for k in range(2)]).mean(0)
    torch.testing.assert_close(recorder.scores()["du"], expected, rtol=1e-5, atol=1e-7)
    assert recorder.options["el2n"] == El2n()
    torch.manual_seed(1)
    same = network()
    train(same, data, recipe, workers=workers)
    for one, other in zip(model.parameters(), same.parameters(), strict=True):
        assert torch.equal(one, other)  # to look on changes nothing


def test_training_and_evaluation_record_grand_alike():
    """In training the features come from the caller's own hook."""
    recorder = Recorder(50, {"grand": Grand(epochs=(2,))}, forward="training")
    assert not recorder.needs_features()
    recorder.update(torch.zeros(50, 3), torch.zeros(50, dtype=torch.int64), torch.arange(50))
    recorder.end_epoch()
    assert recorder.needs_features()
