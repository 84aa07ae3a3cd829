"""The data set of a configuration."""

from __future__ import annotations

import warnings

from prunefuse import data
from prunefuse.errors import ConfigError, DataWarning
from prunefuse.experiment.config import DataOptions, TextOptions
from prunefuse.selection._custom import load_function


def load_data(config: DataOptions, *, seed: int, models: tuple[str, ...], verify: bool = False) -> data.Data:
    """The data set, for these models; what was left out is in its notes.

    Args:
        config: What to read and how.
        seed: What is held out where there is no test part.
        models: Names of the models that read it: torchvision's take three channels.
        verify: Read every image file once.

    Raises:
        ConfigError: the data set has no such option, or is not laid out as expected.
        OSError: it is not there, or a file cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # the notes say it
        try:
            texts = {}
            if isinstance(config, TextOptions):
                own = None if config.tokenizer is None else load_function(config.tokenizer, "tokenizer")
                named = {name: getattr(config, name) for name in ("text", "id", "vocabulary", "length")}
                texts = {**named, "tokenizer": own}
            return data.load(
                config.data,
                root=config.root,
                download=config.download,
                image_size=config.image_size,
                flip=config.flip,
                crop=config.crop,
                channels=3 if any(model.startswith("torchvision:") for model in models) else None,
                skip_broken=config.skip_broken,
                verify=verify,
                test_fraction=config.test_fraction,
                long_tail=config.long_tail,
                duplicates=config.duplicates,
                seed=seed,
                task=getattr(config, "task", "single-label"),
                **texts,
            )
        except (ValueError, TypeError) as error:
            raise ConfigError(str(error)) from error
