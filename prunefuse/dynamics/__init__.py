"""Importance of samples from how training treats them, recorded batch by batch in O(samples · window) memory."""

from prunefuse.dynamics.options import (
    PRESETS,
    Aum,
    Dual,
    DynamicUncertainty,
    El2n,
    Forgetting,
    Grand,
    Loss,
    Score,
    Tdds,
)
from prunefuse.dynamics.passes import record_evaluation
from prunefuse.dynamics.recorder import Recorder

__all__ = [
    "PRESETS",
    "Aum",
    "Dual",
    "DynamicUncertainty",
    "El2n",
    "Forgetting",
    "Grand",
    "Loss",
    "Recorder",
    "Score",
    "Tdds",
    "record_evaluation",
]
