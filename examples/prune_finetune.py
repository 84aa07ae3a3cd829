"""Prune a trained network to half its FLOPs in two steps, with a few epochs of training after each."""

import torch

from prunefuse import Recipe
from prunefuse.data import load
from prunefuse.models import resnet8
from prunefuse.pruning import Target, prune_and_finetune
from prunefuse.training import evaluate, train

torch.manual_seed(0)
data = load("digits")
dense = resnet8(in_channels=1)
train(dense, data.train, Recipe(epochs=4, batch_size=64, schedule="one-cycle"))
print(f"dense: accuracy {evaluate(dense, data.test):.3f}")


def finetune(small):
    before = evaluate(small, data.test)
    train(small, data.train, Recipe(epochs=2, batch_size=64, lr=0.02, schedule="one-cycle"))
    print(f"after a step: accuracy {before:.3f}, trained on {evaluate(small, data.test):.3f}")


image, _ = data.pool[0]
batches = torch.utils.data.DataLoader(data.pool, batch_size=256)  # what Taylor scores are taken from
small, plan = prune_and_finetune(
    dense, image[None], finetune, steps=2, target=Target("flops", 0.5), criterion="taylor", batches=batches
)
print(f"FLOPs {plan.flops[0]:,} -> {plan.flops[1]:,}, parameters {plan.params[0]:,} -> {plan.params[1]:,}")
