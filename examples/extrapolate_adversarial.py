"""Scores of all samples from adversarial training on a third: dynamic uncertainty of attacked images, then neighbors."""

import torch

from prunefuse import Recipe, features, top_b
from prunefuse._seeds import isolated
from prunefuse.data import TensorImages, load
from prunefuse.dynamics import Recorder
from prunefuse.extrapolation import KNN, extrapolate
from prunefuse.models import mlp
from prunefuse.training import Adversarial, Pgd, evaluate, evaluate_attacked, train

data = load("digits")
recipe = Recipe(epochs=25, min_steps=500, batch_size=64, schedule="one-cycle")
attack = Pgd(epsilon=0.1, step_size=0.05, steps=3)
strong = Pgd(epsilon=0.1, step_size=0.02, steps=20)


def trained(rows, adversarial=None, **told):
    with isolated(0):
        model = mlp(in_channels=1, image_size=(8, 8), hidden=(128, 128))
    samples = TensorImages(data.train.images[rows], data.train.labels[rows], augment=data.train.augment)
    train(model, samples, recipe, adversarial=adversarial, **told)
    accuracy, attacked = evaluate(model, data.test), evaluate_attacked(model, data.test, strong)
    print(f"{len(rows):4} samples: accuracy {accuracy:.3f}, under attack {attacked:.3f}")
    return model


subset = torch.randperm(len(data.pool), generator=torch.Generator().manual_seed(0))[:480]
print("ordinary training")
trained(subset)

print("adversarial training (TRADES; without beta Madry et al.'s)")
trades = Adversarial(attack, beta=6.0, logits="adversarial")  # or of the clean images
recorder = Recorder(len(subset), ("du",))
model = trained(subset, trades, on_batch=recorder.update, on_epoch=lambda _: recorder.end_epoch())

scores = torch.full((len(data.pool),), torch.nan, dtype=torch.float64)
scores[subset] = recorder.scores()["du"]
result = extrapolate(KNN(k=20), features(model, data.pool), scores)
print(f"held-out scores: Pearson {result.held_out.pearson:.2f}")
classes = [(data.pool.labels == c).nonzero()[:, 0] for c in range(data.num_classes)]
kept = torch.cat([rows[top_b(result.scores[rows], len(rows) // 2)[0]] for rows in classes])
print("adversarial training on the better half of every class, and on a random half")
trained(kept, trades)
trained(torch.randperm(len(data.pool), generator=torch.Generator().manual_seed(1))[: len(kept)], trades)
