"""Networks by name for the images of a data set."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from prunefuse import models
from prunefuse.data import Data
from prunefuse.experiment.budgets import ConfigError
from prunefuse.experiment.config import DataOptions


def factory(name: str, data: Data, **options: Any) -> Callable[[], nn.Module]:
    """Makes networks of this name, from the global generators; ``options`` as `prunefuse.models.build`.

    Raises:
        ConfigError: there is no such model, or it does not take images of this shape.
    """
    channels, height, width = data.input_shape
    make = partial(models.build, name, data.num_classes, channels, image_size=(height, width), **options)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            make().eval()(torch.zeros(1, *data.input_shape))
    except (ValueError, TypeError, RuntimeError) as error:
        shape = "x".join(map(str, data.input_shape))
        raise ConfigError(f"model {name} does not work on {shape} images: {error}") from error
    return make


def options(name: str, config: DataOptions) -> dict[str, Any]:
    """What a configuration asks of a model of this name."""
    options: dict[str, Any] = {"dropout": config.dropout} if config.dropout else {}
    if config.shortcut is not None and name.startswith("resnet"):
        options["shortcut"] = config.shortcut
    return options
