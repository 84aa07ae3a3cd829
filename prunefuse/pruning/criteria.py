"""What a coupled channel is worth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prunefuse.pruning.coupling import Ids

_ORDERS = {"l2": 2, "l1": 1}
CRITERIA = (*_ORDERS, "random")


def channel_scores(
    criterion: str, seed: int, count: int, writers: Mapping[str, tuple[Tensor, int, Ids]]
) -> npt.NDArray[np.float64]:
    """Score every coupled channel; the largest are kept.

    ``l2`` is the norm of the channel's output slices, ``|W[j, ...]|`` for a channel j with a single writer, as
    in PruneFuse. A channel with several writers (a residual axis) is scored by the norm over the slices of
    all of them, which is ours. Biases and norm layers do not count. ``l1`` likewise; ``random`` is uniform.

    Args:
        criterion: One of ``CRITERIA``.
        seed: For ``random``.
        count: The number of coupled channels.
        writers: Weight name -> (weight, axis of its output channels, coupled channel of each index there).

    Returns:
        (count,) float64.

    Raises:
        ValueError: a weight has no values (meta device), or is not finite.
    """
    if criterion == "random":
        return np.random.default_rng(seed).random(count)
    order = _ORDERS[criterion]
    scores = np.zeros(count)
    for name, (weight, axis, channels) in writers.items():
        if weight.is_meta:
            raise ValueError(f"model: {name} is on the meta device and has no values to rank by {criterion}")
        slices = weight.detach().cpu().movedim(axis, 0).flatten(1)
        amounts = torch.linalg.vector_norm(slices, order, dim=1, dtype=torch.float64).pow(order).numpy()
        if not np.isfinite(amounts).all():
            raise ValueError(
                f"model: {name} has values that are not finite, so its channels cannot be ranked"
            )
        scores += np.bincount(channels, weights=amounts, minlength=count)
    total: npt.NDArray[np.float64] = scores ** (1 / order)
    return total
