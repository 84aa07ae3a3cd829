"""Uncertainty scores of a pool, all from one read of its logits."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, NamedTuple, overload

from torch import Tensor

from prunefuse import ops
from prunefuse.ops.arrays import as_tensor, like, require_floating, require_number

# The strategies that need logits alone; the numbers are the native operator's.
LOGIT_STRATEGIES = {"least_confidence": 0, "margin": 1, "entropy": 2, "energy": 3, "logit_margin": 4}


class Statistics(NamedTuple):
    """What `statistics` returns: arrays of shape (N,), NaN (argmax: −1) where a row has no distribution.

    >>> prunefuse.statistics(torch.zeros(1, 2)).p1.item()
    0.5
    """

    argmax: Any
    logsumexp: Any
    p1: Any
    p2: Any


@overload
def score(
    logits: Any, strategy: str = "entropy", *, probabilities: bool = False, temperature: float = 1.0
) -> Any: ...


@overload
def score(
    logits: Any, strategy: tuple[str, ...], *, probabilities: bool = False, temperature: float = 1.0
) -> dict[str, Any]: ...


def score(
    logits: Any,
    strategy: str | tuple[str, ...] = "entropy",
    *,
    probabilities: bool = False,
    temperature: float = 1.0,
) -> Any:
    """Utilities of the rows of a pool by their logits, higher = label first, for every strategy.

    >>> logits = torch.tensor([[9.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    >>> prunefuse.score(logits, "margin").round(decimals=3).tolist()
    [0.0, 1.0]

    Let p₁ ≥ p₂ be the two largest probabilities of a row:

    - ``"least_confidence"``: 1 − p₁.
    - ``"margin"``: 1 − (p₁ − p₂).
    - ``"entropy"``: −Σ p ln p, in nats.
    - ``"energy"``: −T ln Σ exp(x / T) of logits x and temperature T. It is high for rows unlike the training data.
    - ``"logit_margin"``: x₂ − x₁ of the two largest logits, at most 0. Unlike ``"margin"`` it tells sure rows apart without
      limit. The temperature plays no part. It is −inf where only one class is left.

    Args:
        logits: (N, C), float16, bfloat16, float32 or float64, with any strides. A torch tensor (CPU or CUDA), a NumPy array
            or anything with DLPack. It is read once and never written.
        strategy: One name, or a tuple of names for several scores from that one read.
        probabilities: The rows are probabilities, not logits. They are rescaled to sum to 1; a negative one counts as NaN.
        temperature: Divides the logits (for probabilities: their logarithms); positive.

    Returns:
        Utilities (N,), float64 for float64 input and float32 otherwise; a tensor on the input's device, or NumPy for NumPy.
        For a tuple of strategies, a dict by name. A −inf logit is a masked class, and +inf logits share the probability
        among themselves. A row with a NaN, or with no value above −inf, has utility NaN. `top_b` never picks it.

    Raises:
        TypeError: logits is not an array of a supported floating dtype, or strategy is not a name or tuple of names.
        ValueError: A strategy is unknown, the tuple is empty, or the temperature is not positive and finite.
        RuntimeError: logits is not of rank 2 or has no class.

    References:
        Settles 2009, *Active Learning Literature Survey*, section 3.1. Liu et al. 2020, *Energy-based Out-of-distribution
        Detection*.
    """
    names = checked_names("strategy", strategy, LOGIT_STRATEGIES)
    x = checked_logits(logits, temperature)
    utilities = ops.score(
        x, [LOGIT_STRATEGIES[name] for name in names], bool(probabilities), float(temperature)
    )
    if isinstance(strategy, str):
        return like(logits, utilities[0])
    return {name: like(logits, row) for name, row in zip(names, utilities, strict=True)}


def statistics(logits: Any, *, probabilities: bool = False, temperature: float = 1.0) -> Statistics:
    """`Statistics`: arg-max, log-sum-exp and the two largest probabilities of each row, from one read.

    >>> prunefuse.statistics(torch.tensor([[0.0, 3.0], [2.0, 1.0]])).argmax.tolist()
    [1, 0]

    Args, errors and the treatment of NaN and infinities are those of `score`.

    Returns:
        argmax: (N,) int64, the lowest of equal classes, −1 for a row without a distribution.
        logsumexp: (N,), ln Σ exp(logit / temperature), in nats.
        p1, p2: (N,), the two largest probabilities. p2 is 0 where there is one class.
    """
    x = checked_logits(logits, temperature)
    results = ops.statistics(x, bool(probabilities), float(temperature))
    return Statistics(*(like(logits, result) for result in results))


def checked_names(argument: str, names: str | tuple[str, ...], known: Collection[str]) -> tuple[str, ...]:
    """One name or several different ones as a tuple; TypeError or ValueError, naming `argument`, otherwise."""
    wanted = (names,) if isinstance(names, str) else names
    if not isinstance(wanted, tuple) or not all(isinstance(name, str) for name in wanted):
        raise TypeError(f"{argument} must be a name or a tuple of names, got {names!r}")
    if not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(f"{argument} must name one or more different strategies, got {names!r}")
    for name in wanted:
        if name not in known:
            raise ValueError(f"{argument} must be one of {', '.join(known)}, got {name!r}")
    return wanted


def checked_logits(logits: Any, temperature: float, argument: str = "logits") -> Tensor:
    """`logits` as a floating tensor; TypeError or ValueError where it or the temperature is none."""
    x = as_tensor(argument, logits)
    require_floating(argument, x)
    temperature = require_number("temperature", temperature)
    # Below 1e-30 its reciprocal times a float32 logit is no longer a number that means anything.
    if not (1e-30 <= temperature < math.inf):
        raise ValueError(f"temperature must be positive (at least 1e-30) and finite, got {temperature}")
    return x
