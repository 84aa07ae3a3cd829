"""Which scores there are, what they are, and their published settings by name.

Every score is higher = more useful to keep, as its authors use it; `Aum` says what that means for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from prunefuse._options import Check, at_least, check_fields, checked, one_of, require

Forward = Literal["training", "evaluation"]
_DDOF = Check("0 or 1", lambda value: value in (0, 1))
_EPOCHS = Check("one epoch or more, counted from 1", lambda value: min(value, default=0) >= 1)


@dataclass(frozen=True)
class DynamicUncertainty:
    """Mean over windows of the standard deviation of p_t, the probability of the true class at epoch t (He et al. 2024).

    Windows of ``window`` epochs slide by one: after T epochs there are T − window + 1, of which the last ``omitted`` do not
    count. Published forms differ in this, in ``ddof``, and in where p_t comes from. Their constant factors are left out.

    Attributes:
        window: Epochs in a window.
        ddof: 1: divides by window − 1 (the paper's formula), 0: by window.
        omitted: 0, 1 (the paper's formula: T − window windows) or 2 (T − window − 1, in some codes), or more.
        forward: If given, a recorder of the other kind of forward pass is refused: ``training`` (augmented, as the network
            is trained) or ``evaluation`` (a pass of its own).
    """

    window: int = field(default=10, metadata=checked(at_least(2)))
    ddof: int = field(default=1, metadata=checked(_DDOF))
    omitted: int = field(default=1, metadata=checked(at_least(0)))
    forward: Forward | None = field(default=None, metadata=checked(one_of("training", "evaluation")))

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Dual:
    """Mean over windows of std(p) · (1 − mean(p)): difficult and uncertain, from early epochs (Cho et al. 2025).

    Attributes:
        window, ddof, omitted: As in `DynamicUncertainty`; published: 10, 1, 0.
        trajectory: Only the first so many epochs count; None: all. Published for CIFAR: 30.
    """

    window: int = field(default=10, metadata=checked(at_least(2)))
    ddof: int = field(default=1, metadata=checked(_DDOF))
    omitted: int = field(default=0, metadata=checked(at_least(0)))
    trajectory: int | None = field(default=None, metadata=checked())

    def __post_init__(self) -> None:
        check_fields(self)
        _check_trajectory(self.trajectory, self.window + self.omitted)


@dataclass(frozen=True)
class Tdds:
    """How much the change from epoch to epoch changes, late windows weighted most (Zhang et al. 2024).

    With q_t the softmax at epoch t and D_t = Σ_c |q_{t+1,c} (log(q_{t+1,c} + epsilon) − log(q_{t,c} + epsilon))|, a window
    of ``window`` epochs gives V_k = ‖(D_k … D_{k+window−2}) − their mean‖₂, and the score after T epochs is
    Σ_k V_k · beta · (1 − beta)^(T − window − k).

    Attributes:
        window: Epochs in a window, three or more.
        beta: In (0, 1].
        trajectory: Only the first T epochs count; None: all. Published pairs with the window: `PRESETS`.
        epsilon: Inside the logarithms.
        dtype: Of what is kept of the last epoch, samples × classes: float16, bfloat16, float32 or float64. What is kept are
            log(q + epsilon), which tell sure rows apart where float32 probabilities do not.
    """

    window: int = field(default=10, metadata=checked(at_least(3)))
    beta: float = field(default=0.9, metadata=checked(Check("in (0, 1]", lambda value: 0 < value <= 1)))
    trajectory: int | None = field(default=None, metadata=checked())
    epsilon: float = field(
        default=1e-8, metadata=checked(Check("in [1e-30, 1)", lambda value: 1e-30 <= value < 1))
    )
    dtype: str = field(
        default="float32", metadata=checked(one_of("float16", "bfloat16", "float32", "float64"))
    )

    def __post_init__(self) -> None:
        check_fields(self)
        _check_trajectory(self.trajectory, self.window)


@dataclass(frozen=True)
class Forgetting:
    """How often the sample went from right to wrong between epochs; infinite if it never was right (Toneva et al. 2019)."""


@dataclass(frozen=True)
class El2n:
    """‖softmax − one-hot‖₂, the mean over epochs (Paul et al. 2021).

    Attributes:
        epochs: Those that count, from 1; None: all. Published: one of the first 10 to 20.
    """

    epochs: tuple[int, ...] | None = field(default=None, metadata=checked(_EPOCHS))

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Grand:
    """Norm of the loss's gradient by the last linear layer: EL2N · √(‖h‖² + 1) with h its input (Paul et al. 2021).

    Attributes:
        epochs: As in `El2n`.
        bias: The layer has one; without, EL2N · ‖h‖.
    """

    epochs: tuple[int, ...] | None = field(default=None, metadata=checked(_EPOCHS))
    bias: bool = True

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Aum:
    """Mean over epochs of the margin, the true class's logit minus the largest other (Pleiss et al. 2020).

    Low means wrongly labeled or hard, and the authors remove the lowest: for cleaning labels higher = keep. Where hard
    samples are what to keep, its negative is the utility.
    """


@dataclass(frozen=True)
class Loss:
    """Cross-entropy of the true class.

    Attributes:
        of: ``mean`` over all epochs, or of the ``last`` in which the sample was seen.
    """

    of: Literal["mean", "last"] = field(default="mean", metadata=checked(one_of("mean", "last")))

    def __post_init__(self) -> None:
        check_fields(self)


def _check_trajectory(trajectory: int | None, least: int) -> None:
    if trajectory is not None:
        enough = f"at least the {least} epochs of a window"
        require(trajectory >= least, "trajectory", enough, trajectory)


Score = DynamicUncertainty | Dual | Tdds | Forgetting | El2n | Grand | Aum | Loss

# By name: the scores as they are by default, and settings of published codes where these differ.
PRESETS: dict[str, Score] = {
    "du": DynamicUncertainty(),
    # As DUAL's authors compute it for comparison: every window.
    "du:every-window": DynamicUncertainty(omitted=0, forward="training"),
    # The formula and the authors' code for ImageNet.
    "du:paper": DynamicUncertainty(forward="training"),
    "dual": Dual(),
    "dual:cifar": Dual(trajectory=30),
    "tdds": Tdds(),
    # CIFAR-100, by the share of samples that is removed.
    "tdds:cifar100-30%": Tdds(window=10, trajectory=90),
    "tdds:cifar100-50%": Tdds(window=10, trajectory=70),
    "tdds:cifar100-70%": Tdds(window=20, trajectory=60),
    "tdds:cifar100-80%": Tdds(window=10, trajectory=20),
    "tdds:cifar100-90%": Tdds(window=5, trajectory=10),
    "forgetting": Forgetting(),
    "el2n": El2n(),
    "grand": Grand(),
    "aum": Aum(),
    "loss": Loss(),
}
