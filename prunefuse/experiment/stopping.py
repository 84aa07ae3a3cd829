"""When to stop labeling: rules that look at what successive selectors say of the pool, or at what it costs.

``kappa:X``        Cohen's kappa between the classes that the last two selectors predict for the samples that are unlabeled
                   now. It holds where the mean of the last three is X or more: predictions have become stable.
``uncertainty:X``  Mean entropy of the predictions over the unlabeled samples, 1 being that of equal probabilities. It holds
                   at X or less: nothing is left that the selector is unsure of.
``cost:X``         FLOPs of all rounds so far and of the next. It holds above X: the next round is too expensive.

References:
    Bloodgood and Vijay-Shanker 2009, *A Method for Stopping Active Learning Based on Stabilizing Predictions*, of which
    kappa is, with 0.99 as the threshold. There the samples compared are a fixed set; here they are those of the pool that
    are scored anyway, so that it costs no forward pass.
    Zhu, Wang and Hovy 2008, *Multi-Criteria-Based Strategy to Stop Active Learning for Data Annotation*: uncertainty.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunefuse.experiment.loop_config import stopping_rules
from prunefuse.scoring import score, statistics
from prunefuse.selection._strategies import Pool

_KAPPAS = 3  # comparisons that have to agree
_NOT_SEEN = -1


@dataclass(frozen=True)
class Measured:
    """What rules look at in a round: ``signals`` by name, and the ``classes`` predicted, -1 where there are none."""

    signals: Mapping[str, float]
    classes: Tensor


def measure(pool: Pool, samples: int, before: Tensor | None) -> Measured:
    """Look at what a selector says of the unlabeled samples; rows that are NaN count for nothing.

    Args:
        pool: With logits, or the passes of an ensemble.
        samples: How many the pool has, labeled ones included.
        before: The classes that the selector of the round before predicted.
    """
    if pool.ensemble is not None:
        probabilities = pool.ensemble.probabilities()
        entropy, predicted = score(probabilities, "entropy", probabilities=True), probabilities.argmax(1)
        classes = probabilities.shape[1]
    else:
        assert pool.logits is not None
        entropy, predicted = score(pool.logits, "entropy"), statistics(pool.logits).argmax
        classes = pool.logits.shape[1]
    entropy, predicted = entropy.double().cpu(), predicted.long().cpu()
    seen = ~entropy.isnan()
    found = torch.full((samples,), _NOT_SEEN)
    found[pool.unlabeled[seen]] = predicted[seen]
    signals = {}
    if classes > 1 and bool(seen.any()):
        signals["uncertainty"] = float(entropy[seen].mean()) / math.log(classes)
    if before is not None:
        then = found[: len(before)]  # the pool may have grown
        both = (then >= 0) & (before >= 0)
        if bool(both.any()):
            signals["kappa"] = cohens_kappa(before[both], then[both], classes)
    return Measured(signals, found)


def cohens_kappa(a: Tensor, b: Tensor, classes: int) -> float:
    """Agreement of two lists of class indices, less what chance gives, as a part of what is possible.

    1 where both are the same, also where there is one class alone.
    """
    table = torch.bincount(a * classes + b, minlength=classes * classes).reshape(classes, classes).double()
    table /= table.sum()
    observed = float(table.diagonal().sum())
    chance = float(table.sum(0) @ table.sum(1))
    return 1.0 if chance >= 1 else (observed - chance) / (1 - chance)


def proposing(rules: Iterable[str], signals: Sequence[Mapping[str, float]]) -> tuple[str, ...]:
    """The rules that hold, given the signals of every round so far, the last one last."""
    held = []
    for name, threshold in stopping_rules(rules):
        values = [one[name] for one in signals if name in one]
        now = bool(signals) and name in signals[-1]
        if name == "kappa":
            values = values[-_KAPPAS:]
            holds = now and len(values) == _KAPPAS and sum(values) / _KAPPAS >= threshold
        elif name == "uncertainty":
            holds = now and values[-1] <= threshold
        else:
            holds = now and values[-1] > threshold
        if holds:
            held.append(f"{name}:{threshold:g}")
    return tuple(held)
