"""Importance of samples from how training treats them, recorded batch by batch in O(samples · window) memory."""

from prunefuse.dynamics._options import (
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
from prunefuse.dynamics._passes import record_evaluation
from prunefuse.dynamics._recorder import Recorder

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
