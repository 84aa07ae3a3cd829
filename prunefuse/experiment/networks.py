"""Networks by name for the images or texts of a data set, and the weights that the dense one starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunefuse import models
from prunefuse._checkpoints import Unmatched, put_weights_, read_weights
from prunefuse._names import MODELS, TEXT_MODELS
from prunefuse.data import Data
from prunefuse.experiment.budgets import ConfigError
from prunefuse.experiment.config import DataOptions, is_own
from prunefuse.experiment.steps import digest
from prunefuse.selection._custom import load_function


@dataclass(frozen=True)
class Dense:
    """Makes the dense network; ``weights`` are those of its file, which ``sha256`` is of, or nothing."""

    make: Callable[[], nn.Module]
    path: str = ""
    sha256: str = ""
    weights: Mapping[str, Any] | None = None
    unmatched: Unmatched | None = None

    def __call__(self) -> nn.Module:
        """A new one, drawn from the global generators where it has no weights."""
        network = self.make()
        if self.weights is not None:
            put_weights_(network, self.weights, self.path, strict=False)
        return network

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be told of the weights."""
        if self.unmatched is None:
            return ()
        prefix = f", whose names begin with {self.unmatched.prefix}" if self.unmatched.prefix else ""
        told = (f"weights: those of {self.path}{prefix}",)
        return (*told, f"weights: {self.unmatched}") if self.unmatched else told

    @property
    def facts(self) -> dict[str, Any] | None:
        """What config.json says of the weights."""
        if self.unmatched is None:
            return None
        told = str(self.unmatched) if self.unmatched else ""
        return {"file": self.path, "sha256": self.sha256, "unmatched": told}

    @property
    def setting(self) -> dict[str, str]:
        """What tells an arm from others in a report."""
        return {"weights": f"{Path(self.path).name} {self.sha256[:8]}"} if self.path else {}


def dense(name: str, data: Data, config: DataOptions) -> Dense:
    """Makes the dense network of a configuration, with its weights.

    Args:
        name: Of the model.
        data: The images.
        config: Its options and weights.

    Raises:
        ConfigError: there is no such model, it does not take such images, or the weights do not fit it.
        OSError: the weights cannot be read.
    """
    make = factory(name, data, **options(name, config))
    if config.weights is None:
        return Dense(make)
    try:
        weights = read_weights(config.weights)
        with torch.random.fork_rng(devices=[]):
            unmatched = put_weights_(make(), weights, config.weights, strict=False)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return Dense(make, config.weights, digest(Path(config.weights).expanduser()), weights, unmatched)


def factory(name: str, data: Data, **options: Any) -> Callable[[], nn.Module]:
    """Makes networks of this name, from the global generators; ``options`` as `prunefuse.models.build`.

    Raises:
        ConfigError: there is no such model, or it does not take images of this shape, or texts.
    """
    if data.vocabulary is None:
        channels, height, width = data.input_shape
        sizes: dict[str, Any] = {"in_channels": channels, "image_size": (height, width)}
        example, what = torch.zeros(1, *data.input_shape), f"{'x'.join(map(str, data.input_shape))} images"
    else:
        sizes = {"vocabulary": data.vocabulary, "length": data.input_shape[0]}
        example, what = torch.ones(1, *data.input_shape, dtype=torch.int32), "texts"
    if (name in TEXT_MODELS) != (data.vocabulary is not None) and not is_own(name):
        fitting = TEXT_MODELS if name not in TEXT_MODELS else tuple(n for n in MODELS if n not in TEXT_MODELS)
        raise ConfigError(
            f"model must be one of {', '.join(fitting)}, or FILE.py:FUNCTION, for {what}, got {name}"
        )
    try:
        build = load_function(name, "model") if is_own(name) else partial(models.build, name)
        make = partial(build, num_classes=data.num_classes, **sizes, **options)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            make().eval()(example)
    except (ValueError, TypeError, RuntimeError, AssertionError, IndexError, AttributeError) as error:
        told = " ".join(str(error).split())
        raise ConfigError(f"model {name} does not work on {what}: {told}") from error
    return make


def options(name: str, config: DataOptions) -> dict[str, Any]:
    """What a configuration asks of a model of this name."""
    options: dict[str, Any] = {"dropout": config.dropout} if config.dropout else {}
    if config.shortcut is not None and name.startswith("resnet"):
        options["shortcut"] = config.shortcut
    return options
