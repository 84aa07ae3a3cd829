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
    """The mean over windows of the standard deviation of p_t, the probability of the true class at epoch t.

    Windows of ``window`` epochs slide by one. After T epochs there are T − window + 1 of them. The last ``omitted`` do not
    count. Published forms differ in this, in ``ddof``, and in where p_t comes from. Their constant factors are left out.

    >>> from prunefuse.dynamics import DynamicUncertainty, Recorder
    >>> recorder = Recorder(samples=50, scores={"du5": DynamicUncertainty(window=5)})

    Attributes:
        window: Epochs in a window, two or more.
        ddof: 1 divides by window − 1, as the paper's formula does; 0 divides by window.
        omitted: 0 or more. The paper's formula has T − window windows, which is 1; some codes have 2.
        forward: ``training`` (augmented, as the network is trained) or ``evaluation`` (a pass of its own). A recorder of
            the other kind of forward pass is then refused. None takes both.

    References:
        He et al. 2024, *Large-scale Dataset Pruning with Dynamic Uncertainty*.
    """

    window: int = field(default=10, metadata=checked(at_least(2)))
    ddof: int = field(default=1, metadata=checked(_DDOF))
    omitted: int = field(default=1, metadata=checked(at_least(0)))
    forward: Forward | None = field(default=None, metadata=checked(one_of("training", "evaluation")))

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Dual:
    """The mean over windows of std(p) · (1 − mean(p)), with p the probability of the true class.

    The score is high for samples that are difficult and uncertain, and can be told from early epochs.

    >>> from prunefuse.dynamics import Dual, Recorder
    >>> recorder = Recorder(samples=50, scores={"dual": Dual(trajectory=30)})

    Attributes:
        window, ddof, omitted: As in `DynamicUncertainty`. Published: 10, 1, 0.
        trajectory: Only the first so many epochs count. None takes all. Published for CIFAR: 30.

    References:
        Cho et al. 2025, *Lightweight Dataset Pruning without Full Training via Example Difficulty and Prediction
        Uncertainty*.
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
    """How much the change from epoch to epoch changes, with most weight on late windows.

    Let q_t be the softmax at epoch t, and D_t = Σ_c |q_{t+1,c} (log(q_{t+1,c} + epsilon) − log(q_{t,c} + epsilon))|. A
    window of ``window`` epochs gives V_k = ‖(D_k … D_{k+window−2}) − their mean‖₂. The score after T epochs is Σ_k V_k ·
    beta · (1 − beta)^(T − window − k).

    >>> from prunefuse.dynamics import Recorder, Tdds
    >>> recorder = Recorder(samples=50, scores={"tdds": Tdds(window=5)}, classes=10)

    Attributes:
        window: Epochs in a window, three or more.
        beta: In (0, 1].
        trajectory: Only the first T epochs count. None takes all. Published pairs with the window are in `PRESETS`.
        epsilon: Added inside the logarithms.
        dtype: The type in which log(q + epsilon) of the last epoch is kept, for samples × classes: float16, bfloat16,
            float32 or float64. Logarithms tell sure rows apart where float32 probabilities do not.

    References:
        Zhang et al. 2024, *Spanning Training Progress: Temporal Dual-Depth Scoring for Enhanced Dataset Pruning*.
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
    """How often the sample went from right to wrong between epochs. It is infinite if the sample never was right.

    >>> from prunefuse.dynamics import Forgetting, Recorder
    >>> recorder = Recorder(samples=50, scores={"forgetting": Forgetting()})

    References:
        Toneva et al. 2019, *An Empirical Study of Example Forgetting during Deep Neural Network Learning*.
    """


@dataclass(frozen=True)
class El2n:
    """The mean over epochs of ‖softmax − one-hot label‖₂.

    >>> from prunefuse.dynamics import El2n, Recorder
    >>> recorder = Recorder(samples=50, scores={"early": El2n(epochs=(10,))})

    Attributes:
        epochs: The epochs that count, from 1. None takes all. Published: one of the first 10 to 20.

    References:
        Paul et al. 2021, *Deep Learning on a Data Diet*.
    """

    epochs: tuple[int, ...] | None = field(default=None, metadata=checked(_EPOCHS))

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Grand:
    """The mean over epochs of the norm of the loss's gradient by the last linear layer: EL2N · √(‖h‖² + 1), with h its input.

    >>> from prunefuse.dynamics import Grand, Recorder
    >>> recorder = Recorder(samples=50, scores={"grand": Grand(bias=False)})

    Attributes:
        epochs: As in `El2n`.
        bias: Whether the layer has a bias. Without one the norm is EL2N · ‖h‖.

    References:
        Paul et al. 2021, *Deep Learning on a Data Diet*.
    """

    epochs: tuple[int, ...] | None = field(default=None, metadata=checked(_EPOCHS))
    bias: bool = True

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Aum:
    """The mean over epochs of the margin, which is the true class's logit minus the largest other.

    A low margin means a wrong label or a hard sample, and the authors remove the lowest. So for cleaning labels higher is
    to keep. Where hard samples are to be kept, the negative of this score is the utility.

    >>> from prunefuse.dynamics import Aum, Recorder
    >>> recorder = Recorder(samples=50, scores={"aum": Aum()})

    References:
        Pleiss et al. 2020, *Identifying Mislabeled Data using the Area Under the Margin Ranking*.
    """


@dataclass(frozen=True)
class Loss:
    """The cross-entropy of the true class.

    >>> from prunefuse.dynamics import Loss, Recorder
    >>> recorder = Recorder(samples=50, scores={"loss": Loss("last")})

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
