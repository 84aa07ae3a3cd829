"""Scores of a pool from several passes over it: ensembles of networks, or one network with dropout."""

from __future__ import annotations

from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from prunefuse import ops
from prunefuse.ops.arrays import like
from prunefuse.scoring._scores import checked_logits, checked_names

# The numbers are the native operator's.
ENSEMBLE_STRATEGIES = {"bald": 0, "predictive_entropy": 1, "variation_ratio": 2, "mean_entropy": 3}
_ALL = tuple(ENSEMBLE_STRATEGIES)


@overload
def score_ensemble(
    logits: Any, strategies: str, *, probabilities: bool = False, temperature: float = 1.0
) -> Any: ...


@overload
def score_ensemble(
    logits: Any,
    strategies: tuple[str, ...] = _ALL,
    *,
    probabilities: bool = False,
    temperature: float = 1.0,
) -> dict[str, Any]: ...


def score_ensemble(
    logits: Any,
    strategies: str | tuple[str, ...] = _ALL,
    *,
    probabilities: bool = False,
    temperature: float = 1.0,
) -> Any:
    """Utilities of rows by what S passes say of them, higher = label first, for every strategy.

    >>> passes = torch.tensor([[[9.0, 0.0], [9.0, 0.0]], [[0.0, 9.0], [9.0, 0.0]]])
    >>> prunefuse.score_ensemble(passes, "bald")
    tensor([0.6919, 0.0000])

    Let p_s be the probabilities of pass s, p their mean (of probabilities, not of logits), and H(p) = −Σ p ln p in nats:

    - ``"bald"``: H(p) − mean H(p_s), what the passes disagree about. It is at least 0: what rounding leaves below is cut
      off.
    - ``"predictive_entropy"``: H(p).
    - ``"variation_ratio"``: 1 − v / S, with v the votes for the class that most passes vote for. A pass votes for its
      largest probability, the lower class of equals.
    - ``"mean_entropy"``: mean H(p_s).

    Args:
        logits: (S, N, C), one pass after the other, float16, bfloat16, float32 or float64, with any strides. A torch tensor
            (CPU or CUDA), a NumPy array or anything with DLPack. It is read once and never written.
        strategies: One name, or a tuple of names for several scores from that one read.
        probabilities: The rows are probabilities, not logits. They are rescaled to sum to 1; a negative one counts as NaN.
        temperature: Divides the logits (for probabilities: their logarithms); positive.

    Returns:
        Utilities (N,), float64 for float64 input and float32 otherwise; a tensor on the input's device, or NumPy for NumPy.
        For a tuple of strategies, a dict by name. −inf logits are masked classes, and +inf logits share the probability. A
        row that has a NaN, or no value above −inf, in any pass has utility NaN. `top_b` never picks it.

    Raises:
        TypeError: logits is not an array of a supported floating dtype, or strategies is not a name or tuple of names.
        ValueError: A strategy is unknown, the tuple is empty, or the temperature is not positive and finite.
        RuntimeError: logits is not of rank 3, or has no pass or no class.

    References:
        Houlsby et al. 2011, *Bayesian Active Learning for Classification and Preference Learning*; for dropout Gal et al.
        2017, *Deep Bayesian Active Learning with Image Data*. Freeman 1965, *Elementary Applied Statistics*.
    """
    names = checked_names("strategies", strategies, ENSEMBLE_STRATEGIES)
    x = checked_logits(logits, temperature)
    utilities = ops.score_ensemble(
        x, [ENSEMBLE_STRATEGIES[name] for name in names], bool(probabilities), float(temperature)
    )
    if isinstance(strategies, str):
        return like(logits, utilities[0])
    return {name: like(logits, row) for name, row in zip(names, utilities, strict=True)}


class EnsembleScores:
    """Utilities of passes that come one after the other, with memory for one pass whatever their number.

    >>> scores = prunefuse.EnsembleScores()
    >>> for logits in torch.tensor([[[9.0, 0.0]], [[0.0, 9.0]]]): scores.update(logits)
    >>> round(scores.result("variation_ratio").item(), 2)
    0.5

    Kept are the sums of probabilities, the votes (N, C) and the entropies (N,). Results are those of `score_ensemble` up to
    rounding. Passes may differ in their dtype: of 16-bit and 32-bit kinds, or all float64.

    Args:
        probabilities: As in `score_ensemble`, for every pass.
        temperature: Likewise.

    Attributes:
        passes: How many were added.
    """

    def __init__(self, *, probabilities: bool = False, temperature: float = 1.0) -> None:
        self.passes = 0
        self._probabilities = bool(probabilities)
        self._temperature = temperature
        self._state: tuple[Tensor, Tensor, Tensor] | None = None
        self._numpy = False  # the first pass was NumPy

    def update(self, logits: Any) -> None:
        """Add one pass: logits (N, C) of the same rows, classes and device as the others. They are never written.

        Raises:
            TypeError: logits is not an array of a supported floating dtype.
            RuntimeError: It is not of rank 2, has no class, or differs from the first pass in shape, device or precision.
        """
        x = checked_logits(logits, self._temperature)
        state = self._state
        if state is None:
            dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
            state = (
                torch.zeros(x.shape, dtype=dtype, device=x.device),
                torch.zeros(x.shape, dtype=torch.int32, device=x.device),
                torch.zeros(x.shape[:1], dtype=dtype, device=x.device),
            )
        ops.ensemble_add_(*state, x, self._probabilities, float(self._temperature))
        if self._state is None:
            self._state, self._numpy = state, isinstance(logits, np.ndarray)
        self.passes += 1

    @overload
    def result(self, strategies: str) -> Any: ...

    @overload
    def result(self, strategies: tuple[str, ...] = _ALL) -> dict[str, Any]: ...

    def result(self, strategies: str | tuple[str, ...] = _ALL) -> Any:
        """Utilities of the passes so far, as `score_ensemble` returns them.

        Raises:
            TypeError: As `score_ensemble`.
            ValueError: As `score_ensemble`.
            RuntimeError: There was no pass yet.
        """
        names = checked_names("strategies", strategies, ENSEMBLE_STRATEGIES)
        sums, votes, entropies = self._required()
        mean_entropy = entropies / self.passes
        predictive = ops.score(sums, [2], True, 1.0)[0]
        variation = (self.passes - votes.amax(1)).to(sums.dtype) / self.passes
        table = {
            "bald": (predictive - mean_entropy).clamp_min(0),
            "predictive_entropy": predictive,
            "variation_ratio": torch.where(mean_entropy.isnan(), torch.nan, variation),
            "mean_entropy": mean_entropy,
        }
        if isinstance(strategies, str):
            return self._answer(table[strategies])
        return {name: self._answer(table[name]) for name in names}

    def probabilities(self) -> Any:
        """The mean of the passes' probabilities, (N, C); NaN in rows without a distribution.

        Raises:
            RuntimeError: There was no pass yet.
        """
        return self._answer(self._required()[0] / self.passes)

    def _answer(self, result: Tensor) -> Any:
        return result.numpy() if self._numpy else result

    def _required(self) -> tuple[Tensor, Tensor, Tensor]:
        if self._state is None:
            raise RuntimeError("EnsembleScores: there is no result before the first update")
        return self._state
