"""A pruned data set from scores of a fraction of it: the whole way, with what it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunefuse._lazy import lazily

if TYPE_CHECKING:
    from prunefuse.experiment.extrapolate._run import resume as resume
    from prunefuse.experiment.extrapolate._run import run as run
    from prunefuse.experiment.extrapolate.config import ExtrapolateConfig as ExtrapolateConfig
    from prunefuse.experiment.extrapolate.kept import read_kept as read_kept

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "config": "ExtrapolateConfig",
        "kept": "read_kept",
        "_run": "resume run",
    },
)
