"""A training that is stopped at any step goes on to the same end, bit for bit."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from prunefuse.data import Augment, TensorImages
from prunefuse.dynamics import Recorder
from prunefuse.errors import DamagedFileError
from prunefuse.training import Adversarial, Checkpoint, Distillation, Pgd, Recipe, train

IMAGES = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 4
RECIPE = Recipe(epochs=5, batch_size=8, lr=0.05, schedule="one-cycle")


class Noisy(torch.utils.data.Dataset):
    """Items that are read one at a time, through worker processes if asked for, with augmentation from global state."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return IMAGES[index] + 0.1 * torch.randn(1), int(LABELS[index])


def network():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            *(
                nn.Conv2d(1, 4, 3),
                nn.BatchNorm2d(4),
                nn.ReLU(),
                nn.Dropout(0.3),
                nn.Flatten(),
                nn.Linear(144, 4),
            )
        )


class Stopped(BaseException):
    pass


def trained(checkpoint=None, stop=None, data=None, recipe=RECIPE, **options):
    """A network, its recorder and its history; with ``stop`` it is stopped before that step of this process."""
    model, recorder, steps = network(), Recorder(40, ("el2n", "aum"), classes=4), []

    def on_batch(*batch):
        steps.append(batch)
        if len(steps) == stop:
            raise Stopped
        recorder.update(*batch)

    if checkpoint is not None:
        checkpoint.recorder = recorder
    history = train(
        model,
        TensorImages(IMAGES, LABELS, augment=Augment(1, True)) if data is None else data,
        recipe,
        seed=3,
        on_batch=on_batch,
        on_epoch=lambda _: recorder.end_epoch(),
        checkpoint=checkpoint,
        **options,
    )
    return model, recorder, history


def same(a, b):
    return (
        all(torch.equal(x, b[0].state_dict()[name]) for name, x in a[0].state_dict().items())
        and all(torch.equal(x, b[1].scores()[name]) for name, x in a[1].scores().items())
        and [(e.epoch, e.loss, e.lr, e.train_accuracy) for e in a[2]]
        == [(e.epoch, e.loss, e.lr, e.train_accuracy) for e in b[2]]
    )


VARIANTS = {
    "in memory": {},
    "one by one": {"data": Noisy()},
    "by workers": {"data": Noisy(), "workers": 2},
    "distilled": {"distillation": Distillation(network())},
    "distilled less and less": {"distillation": Distillation(network(), annealing="cosine")},
    "with learning rates of elements": {"lr_factors": {"5.weight": torch.linspace(0, 1, 144)}},
    "attacked": {"adversarial": Adversarial(Pgd(epsilon=0.1, step_size=0.05, steps=2))},
    "channels last": {"recipe": Recipe(epochs=5, batch_size=8, lr=0.05, channels_last=True)},
    "no momentum": {"recipe": Recipe(epochs=4, batch_size=8, lr=0.05, momentum=0.0)},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_a_training_that_is_stopped_again_and_again_ends_the_same(tmp_path, options):
    whole = trained(**options)
    stops = 0
    while True:
        try:
            # Seven steps of a process: one epoch of five, and a part of the next.
            again = trained(Checkpoint(tmp_path / "c", seconds=0), stop=7, **options)
            break
        except Stopped:
            stops += 1
    assert stops == len(whole[2]) - 1
    assert same(whole, again)


def test_without_a_checkpoint_file_nothing_is_different(tmp_path):
    assert same(trained(), trained(Checkpoint(tmp_path / "c", seconds=0)))


def test_it_is_written_when_the_time_has_come_and_not_before(tmp_path):
    trained(Checkpoint(tmp_path / "late", seconds=3600))
    assert not (tmp_path / "late").exists()
    trained(Checkpoint(tmp_path / "always", seconds=0))
    assert load_file(tmp_path / "always")


def test_global_generators_are_left_as_found(tmp_path):
    with pytest.raises(Stopped):
        trained(Checkpoint(tmp_path / "c", seconds=0), stop=7)
    before = torch.get_rng_state()
    trained(Checkpoint(tmp_path / "c", seconds=0))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_changed_file_is_named(tmp_path):
    with pytest.raises(Stopped):
        trained(Checkpoint(tmp_path / "c", seconds=0), stop=7)
    content = bytearray((tmp_path / "c").read_bytes())
    for place in (3, 40, len(content) // 2, len(content) - 1):
        changed = content.copy()
        changed[place] ^= 1
        (tmp_path / "c").write_bytes(changed)
        with pytest.raises(DamagedFileError, match=f"{tmp_path / 'c'} was changed or is damaged"):
            trained(Checkpoint(tmp_path / "c", seconds=0))
    (tmp_path / "c").write_bytes(content[:-10])
    with pytest.raises(DamagedFileError, match="was changed or is damaged"):
        trained(Checkpoint(tmp_path / "c", seconds=0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": Recipe(epochs=6, batch_size=8, lr=0.05, schedule="one-cycle")}, "recipe"),
        ({"distillation": Distillation(network())}, "teacher"),
        ({"lr_factors": {"5.weight": torch.tensor(0.5)}}, "lr_factors"),
    ],
)
def test_the_checkpoint_of_another_training_is_refused(tmp_path, options, message):
    with pytest.raises(Stopped):
        trained(Checkpoint(tmp_path / "c", seconds=0), stop=7)
    with pytest.raises(ValueError, match=f"checkpoint must be of a training with {message}"):
        trained(Checkpoint(tmp_path / "c", seconds=0), **options)
