"""Studies: runs by a grid of options that share what they have in common, and one report of all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunefuse._lazy import lazily

if TYPE_CHECKING:
    from prunefuse.experiment.study._run import forecast as forecast
    from prunefuse.experiment.study._run import run as run
    from prunefuse.experiment.study.config import Study as Study
    from prunefuse.experiment.study.config import read_study as read_study

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {"config": "Study read_study", "_run": "forecast run"},
)
