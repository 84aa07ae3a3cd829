"""What the adapters share: utilities of the class probabilities that other packages' classifiers give."""

from __future__ import annotations

from typing import Any

import numpy as np

from prunefuse.ops.arrays import as_tensor
from prunefuse.scoring import score

# What `score` knows of probabilities; energy and the margin of logits are about logits.
STRATEGIES = ("least_confidence", "margin", "entropy")


def utilities(probabilities: Any, strategy: str) -> np.ndarray:
    """Utilities (N,) of probabilities (N, C), an array of any kind on any device, as NumPy; NaN where a row has none."""
    scores = score(as_tensor("probabilities", probabilities), strategy, probabilities=True)
    return np.asarray(scores.cpu())
