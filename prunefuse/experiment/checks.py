"""What `ActiveLearning` is given, checked before any label is asked for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from prunefuse._wrapped import place_inside
from prunefuse.data._items import check_map_style
from prunefuse.data._labels import OwnLabels, labels_at, listed_labels
from prunefuse.data._tensors import in_memory
from prunefuse.dynamics import Recorder
from prunefuse.experiment.budgets import to_samples
from prunefuse.experiment.loop_config import GIVEN, LoopConfig
from prunefuse.experiment.rounds import syncs
from prunefuse.experiment.state import LoopState
from prunefuse.experiment.trial import Names
from prunefuse.ops.arrays import as_tensor, require_floating
from prunefuse.ops.integers import class_indices, row_indices
from prunefuse.tasks import SingleLabel, Task
from prunefuse.training import read_features
from prunefuse.training._train import check_loss

_LABELS_READ = (
    1000  # labels of the test set that are looked at before any work, where images are decoded for them
)


def check_data(name: str, data: Any) -> None:
    """Raise ``TypeError`` unless ``data`` is map-style, and ``ValueError`` if it is empty."""
    check_map_style(name, data)
    if len(data) == 0:
        raise ValueError(f"{name} must have at least one sample, got none")


def starting_from(config: LoopConfig, labeled: Mapping[int, int], pool: int) -> LoopConfig:
    """The configuration of a loop that starts from labels one has: they are its first size.

    Raises:
        TypeError: ``labeled`` is not a mapping.
        ValueError: it is empty, has an index that the pool does not have, or more labels than the schedule starts with.
    """
    if not isinstance(labeled, Mapping):
        raise TypeError(f"labeled must be a mapping of pool indices to classes, got {type(labeled).__name__}")
    if not labeled:
        raise ValueError("labeled must have at least one label, got none")
    for index in labeled:
        if type(index) is not int or not 0 <= index < pool:
            raise ValueError(f"labeled must have indices in [0, {pool}), got {index!r}")
    if len(labeled) > config.sizes[0]:
        raise ValueError(
            f"schedule must start at {len(labeled)} labels or more, as there are in labeled, got {config.sizes[0]}"
        )
    rest = config.sizes[1:] if config.sizes[0] == len(labeled) else config.sizes
    return replace(config, schedule=(len(labeled), *rest))


def names_of(
    ids: Sequence[str] | None, classes: Sequence[str] | None, pool: int, num_classes: int, task: Task
) -> Names:
    """The names of samples and classes.

    Raises:
        TypeError: they are not sequences of strings.
        ValueError: not one for each.
    """
    for name, given, count, of in (
        ("ids", ids, pool, "samples"),
        ("classes", classes, num_classes, "classes"),
    ):
        if given is None:
            continue
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise TypeError(f"{name} must be a sequence of strings, got {type(given).__name__}")
        if len(given) != count:
            raise ValueError(f"{name} must have one for each of {count} {of}, got {len(given)}")
        for index, one in enumerate(given):
            if not isinstance(one, str):
                raise TypeError(f"{name} must be strings, got {one!r} for {index}")
    return Names(ids, classes, task)


def excluded(exclude: Any, config: LoopConfig, pool: int) -> Tensor:
    """Indices of the samples that are never picked.

    Raises:
        TypeError: they are neither indices nor a mask.
        ValueError: one is out of range, or too few samples are left for the schedule.
    """
    if exclude is None:
        return torch.empty(0, dtype=torch.int64)
    rows: Tensor = row_indices("exclude", exclude, pool).cpu().unique()
    if pool - len(rows) < config.budget:
        raise ValueError(
            f"exclude must leave {config.budget} samples for the schedule, got {len(rows)} of {pool} samples"
        )
    return rows


def candidates_of(config: LoopConfig, pool: int) -> int | None:
    """How many unlabeled samples a round looks at; None is all.

    Raises:
        ValueError: fewer than a round picks.
    """
    if config.candidates is None:
        return None
    found = to_samples(config.candidates, pool, "candidates")
    sizes = (0, *config.sizes) if config.chooser_of(0).needs else config.sizes  # random picks look at nothing
    most = max((after - before for before, after in pairwise(sizes)), default=0)
    if found < most:
        raise ValueError(f"candidates must be at least the {most} samples that a round picks, got {found}")
    return found


def given_features(features: Any, config: LoopConfig, pool: int) -> tuple[LoopConfig, Tensor | None]:
    """The features of the pool that no network is asked for, if there are some, and the configuration that says so.

    Raises:
        TypeError: they are not a floating array.
        ValueError: not a row for each sample, given twice, or for a strategy that compares none, or other ones.
    """
    if features is None and not config.has_features:
        return config, None
    if features is not None and config.features_from is not None:
        raise ValueError(f"features must be None with features_from={config.features_from!r}, got some")
    if features is None:
        try:
            return config, read_features(str(config.features_from), pool)
        except (OSError, ValueError) as error:
            raise ValueError(f"features_from: {error}") from error
    config = replace(config, features_from=GIVEN)
    found = as_tensor("features", features)
    require_floating("features", found)
    if found.ndim != 2 or len(found) != pool or found.shape[1] == 0:
        raise ValueError(
            f"features must have a row for each of the {pool} samples of the pool, got shape {tuple(found.shape)}"
        )
    return config, found


def check_features_from(config: LoopConfig) -> None:
    """Raise ``ValueError`` where features are to come from elsewhere, and no strategy compares any, or the last layer's."""
    if config.features_from is None:
        return
    name = "features" if config.features_from == GIVEN else "features_from"
    compares = [bool(config.chooser_of(index).needs & {"features", "all_features"}) for index in (0, 1)]
    if not any(compares):
        raise ValueError(
            f"{name} must be left out with {config.strategy} after a {config.cold_start or 'random'} start, which compare no "
            "features"
        )
    if config.strategy == "badge":
        raise ValueError(f"{name} must be left out with badge, which is made for the last layer's, got some")


def check_training(config: LoopConfig, fit: Any, evaluate: Any) -> None:
    """Raise for a training of one's own that is none, or options that do not go with it or with the task."""
    for name, given in (("fit", fit), ("evaluate", evaluate)):
        if given is not None and not callable(given):
            raise TypeError(f"{name} must be a function, got {type(given).__name__}")
        if given is not None:
            _check_signature(name, given)
    if fit is not None and config.chooser.dynamics is not None:
        raise ValueError(f"fit must be left out with {config.strategy}, which records the training, got one")
    fuses = config.selector == "prunefuse" and config.fuse
    if fit is not None and fuses and config.fused_lr != 1:
        raise ValueError(
            f"fused_lr must be 1 with fit, which is given no learning rates, got {config.fused_lr}"
        )
    if fit is not None and config.distills() and config.kd_annealing != "none":
        raise ValueError(
            f"kd_annealing must be none with fit, which has its own loss, got {config.kd_annealing}"
        )
    for recipe in (config.recipe, config.training_of_selector):
        if fit is None:
            check_loss(config.learns, recipe)
        if recipe.validation and config.chooser.dynamics is not None:
            raise ValueError(
                f"validation must be 0 with {config.strategy}, which records every label, got {recipe.validation}"
            )


_CALLS = {"fit": "(model, data, *, device, seed, teacher=None)", "evaluate": "(model, data, *, device)"}


def _check_signature(name: str, function: Any) -> None:
    """Raise ``TypeError`` unless a function can be called as a training or a test is."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of code that does not tell
        return
    named = {"device": None} if name == "evaluate" else {"device": None, "seed": 0, "teacher": None}
    try:
        signature.bind(None, None, **named)
    except TypeError as error:
        raise TypeError(f"{name} must take {_CALLS[name]}, got {signature}: {error}") from None


def own_metrics(given: Any) -> dict[str, Any]:
    """What a user's ``evaluate`` returned, by name.

    Raises:
        TypeError: it is neither a number nor a mapping of names to numbers.
    """
    if isinstance(given, Mapping) and given:
        return {str(name): _number(one) for name, one in given.items()}
    return {"score": _number(given)}


def _number(given: Any) -> float:
    try:
        return float(given)
    except (TypeError, ValueError):
        kind = type(given).__name__
        raise TypeError(f"evaluate must return a number, or numbers by name, got {kind}") from None


def check_test_labels(test: Any, num_classes: int, task: Task) -> None:
    """Raise unless ``test`` has labels in [0, num_classes): all that are in memory, else those of some samples.

    Of another task than classification those of some samples.

    Raises:
        TypeError: there are none, or one is not a whole number.
        ValueError: one is outside.
    """
    memory, samples = in_memory(test), range(len(test))
    if type(task) is not SingleLabel:
        some = range(0, len(test), -(-len(test) // _LABELS_READ))
        for index, label in zip(some, OwnLabels(test, task)(some), strict=True):
            task.label("test", index, label, width=num_classes)
        return
    if memory is not None:
        if memory.labels is None:
            raise TypeError("test must have items (image, label), got images alone")
        labels = class_indices("test", memory.labels, torch.arange(len(test))).tolist()
    else:
        if listed_labels(test) is None:
            samples = samples[:: max(1, len(test) // _LABELS_READ)]
        labels = labels_at(test, "test", samples)
    for index, label in zip(samples, labels, strict=True):
        if not 0 <= label < num_classes:
            raise ValueError(
                f"test must have labels in [0, {num_classes}), as the model of factory has {num_classes} outputs, "
                f"got {label} for sample {index}"
            )


def check_dynamics(config: LoopConfig, num_classes: int) -> None:
    """Raise ``ValueError`` if a selector is trained for fewer epochs than the score that is recorded needs."""
    score = config.chooser.dynamics
    if score is None:
        return
    least = Recorder(1, (score,), classes=num_classes).least
    # The last size is reached by picking with the selector of the round before.
    epochs = min(map(config.training_of_selector.epochs_for, config.sizes[:-1]), default=least)
    if epochs < least:
        raise ValueError(
            f"strategy: {config.strategy} needs {least} epochs of training the selector, but its recipe gives {epochs}"
        )


def make(name: str, factory: Callable[[], nn.Module]) -> nn.Module:
    """What ``factory`` makes.

    Raises:
        TypeError: it is a model itself, cannot be called, or makes something else than a model.
    """
    if isinstance(factory, nn.Module) or not callable(factory):
        kind = type(factory).__name__
        raise TypeError(f"{name} must be a function without arguments that makes a model, got {kind}")
    model = factory()
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} must return an nn.Module, got {type(model).__name__}")
    kind = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"{name} must return a model in Python, got {kind}: leave out torch.jit")
    if (place := place_inside(model)) is not None:
        around = "leave out torch.compile" if place == "_orig_mod" else f"return its .{place}"
        raise TypeError(
            f"{name} must return the model itself, which is copied and pruned, got it in {kind}: {around}"
        )
    return model


def check_state(state: LoopState, origin: Mapping[str, int | str], config: LoopConfig) -> None:
    """Raise ``ValueError`` unless a loop of ``origin`` and ``config`` can go on from ``state``."""
    for name, mine in origin.items():
        theirs = state.origin.get(name, mine)
        grown = name == "pool" and int(theirs) < int(mine)  # at its end
        if theirs != mine and not grown:
            raise ValueError(f"state must be of a loop with {name} {mine}, got one with {name} {theirs}")
    rounds, sizes = len(state.rounds), tuple(accumulate(len(a.picks) for a in state.acquisitions))
    if sizes != config.sizes[: len(sizes)]:
        raise ValueError(
            f"state must have labeled sets of the schedule {config.sizes}, got {', '.join(map(str, sizes))} samples: the "
            "schedule does not go on from there"
        )
    if not rounds <= len(sizes) <= rounds + 1:
        raise ValueError(f"state must have labels for {rounds} rounds, or one more, got {len(sizes)}")
    if rounds and syncs(config, rounds - 1) and not state.fused:
        raise ValueError(
            f"state must have the fused network that the next selector is cut from with t_sync={config.t_sync}, got one that "
            f"ends at {config.sizes[rounds - 1]} labels, its last size: a longer schedule cannot go on from it"
        )


def check_weights(part: str, weights: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raise ``ValueError`` unless ``weights``, of the state, are those of a model like ``model``."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"state must have weights of this {part} network, got those of another model: {name} has shape "
                f"{found.get(name, 'none')}, expected {expected.get(name, 'none')}"
            )
