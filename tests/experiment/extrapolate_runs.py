"""Small runs of score extrapolation: a part of the digits, and a perceptron."""

from prunefuse import data
from prunefuse.data import Data
from prunefuse.data._tensors import TensorImages
from prunefuse.experiment.extrapolate import ExtrapolateConfig
from prunefuse.training import Recipe

TOTAL, SUBSET, KEEP = 300, 60, 60
RECIPE = Recipe(epochs=2, batch_size=32, lr=0.05, schedule="one-cycle")


def small_digits(monkeypatch):
    """300 digits to train on and 100 to test with, in the place of all."""
    whole = data.load("digits")
    train = TensorImages(whole.train.images[:TOTAL], whole.train.labels[:TOTAL], augment=whole.train.augment)
    test = TensorImages(whole.test.images[:100], whole.test.labels[:100])
    part = Data(train, train.plain(), test, 10, (1, 8, 8), "digits")
    monkeypatch.setattr(data, "load", lambda *_, **__: part)
    return part


def config(out, **changes):
    settings = {
        "model": "mlp",
        "score": "el2n",
        "keep": ("20%",),
        "recipe": RECIPE,
        "device": "cpu",
        "jobs": 1,
    }
    return ExtrapolateConfig(**(settings | {"threads": 1, "out": str(out)} | changes))
