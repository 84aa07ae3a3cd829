"""What a strategy is told of the pool: what the selector says of it, and features that are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from prunefuse.selection._strategies import Need, Pool, Strategy
from prunefuse.tasks import Task
from prunefuse.training import features, predict, predict_dropout, predict_with_features
from prunefuse.training._modes import device_of
from prunefuse.training._predict import features_of, utilities

_FEATURES = frozenset({"features", "all_features"})


def looked_at(
    selector: nn.Module,
    data: Any,
    pool: Pool,
    chooser: Strategy,
    asks: frozenset[Need],
    *,
    given: Tensor | None,
    module: str | None,
    scores: Mapping[str, Tensor],
    seed: int,
    **options: Any,
) -> Pool:
    """``pool`` with what the strategy and stopping rules need to know, as tensors also for a NumPy pool.

    Args:
        selector: The network that is asked, if anything.
        data: The samples that the pool is of.
        pool: Which are labeled, and which are not.
        chooser: The strategy.
        asks: What the selector is asked; see `LoopConfig.asks`.
        given: Features of all samples, that no network is asked for.
        module: Whose output features are; None is what enters the last linear layer.
        scores: Of the labeled samples by preset, from the selector's training.
        seed: Of the passes with dropout.
        options: As `prunefuse.training.predict` has them.
    """
    whole = "all_features" in chooser.needs
    rows = torch.cat((pool.labeled, pool.unlabeled)) if whole else pool.unlabeled
    if chooser.dynamics is not None:
        pool = replace(pool, scores=scores[chooser.dynamics])
    if "ensemble" in asks:
        ensemble = predict_dropout(
            selector,
            data,
            passes=chooser.passes,
            seed=seed,
            indices=pool.unlabeled,
            scores=None if chooser.ensemble is None else chooser.ensemble(),
            **options,
        )
        pool = replace(pool, ensemble=ensemble)
    logits = seen = None
    if "utilities" in asks:
        assert chooser.of_outputs is not None
        wanted = bool(_FEATURES & asks)
        found, seen = utilities(
            selector, data, chooser.of_outputs, features=wanted, module=module, indices=rows, **options
        )
        pool = replace(pool, utilities=found[len(found) - len(pool.unlabeled) :])
    elif _FEATURES & asks:
        if "logits" in asks:
            logits, seen = predict_with_features(selector, data, module=module, indices=rows, **options)
            logits = logits[len(logits) - len(pool.unlabeled) :]
        else:
            seen = features(selector, data, module=module, indices=rows, **options)
    elif "logits" in asks:
        logits = predict(selector, data, indices=pool.unlabeled, **options)
    if logits is not None:
        pool = replace(pool, logits=torch.as_tensor(logits))
    if given is not None and _FEATURES & chooser.needs:
        seen = given[rows].to(device_of(selector))
    return pool if seen is None else replace(pool, features=torch.as_tensor(seen))


def width_of_features(
    selector: nn.Module, example: Any, given: Tensor | None, module: str | None, task: Task
) -> int:
    """How many features a sample has.

    Raises:
        ValueError: ``module`` is none of the selector.
    """
    if given is not None:
        return given.shape[1]
    named = [name for name, _ in selector.named_modules() if name]
    if module is not None and module not in named:
        raise ValueError(
            f"features_from must be a .npy file or a module of the selector, such as {', '.join(named[-5:])}, got {module!r}"
        )
    return features_of(selector, example, module, task).shape[1]
