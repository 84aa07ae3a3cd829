"""What the loop tells the world: plain frozen records, JSON-able by ``dataclasses.asdict``.

A listener receives, in order of time: a :class:`Phase` at the start of every phase, an :class:`Epoch` after
every epoch, a :class:`Progress` now and then while the pool is scored, a :class:`Round` after a round, and a :class:`Stop`
where a stopping rule holds.
FLOPs are FLOPs everywhere (2 per multiply-add), seconds are wall clock, indices point into the pool data set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

PhaseName: TypeAlias = Literal[
    "plan",  # score the channels of the dense network and plan the pruning
    "train_selector",  # train the network that scores the pool (with T_sync also what it is cut from)
    "score_pool",  # forward passes over the unlabeled pool
    "select",  # pick the batch: k-center distances, top-b; with score extrapolation, what is kept
    "fuse",  # copy the selector's weights into the dense network
    "teacher",  # the teacher's forward passes during distillation
    "train_final",  # train the network that is the result
    "evaluate",  # forward passes over the test set; never part of the cost of selection
    # Of score extrapolation, where F_s is the network trained on the subset:
    "train_subset",  # train F_s, recording
    "record",  # the evaluation passes whose outputs are scored, if it is they
    "embed",  # F_s over all samples, for their embeddings
    "answer",  # F_s over all samples, for `direct`
    "neighbors",  # searches
    "extrapolate",  # all else of fitting and asking the extrapolator
    "train_full",  # train the model on all samples, recording
]
Network: TypeAlias = Literal["selector", "final"]


@dataclass(frozen=True)
class Cost:
    """One line of the ledger: what one phase of one round took.

    ``labels`` is |L_r|, the number of labeled samples the phase worked with: in the phases that pick the next
    batch it is the number known before the picks, and in ``plan`` that of the round whose selector it makes.
    ``detail`` is empty or says what is special about the line.
    """

    phase: PhaseName
    network: Network
    round: int
    labels: int
    flops: float
    seconds: float
    detail: str = ""


@dataclass(frozen=True)
class Phase:
    """A phase is about to start: ``flops`` is the work planned for it, ``epochs`` is 0 without training."""

    round: int
    phase: PhaseName
    network: Network
    labels: int
    epochs: int
    flops: float


@dataclass(frozen=True)
class Epoch:
    """One epoch of training is done (``epoch`` counts from 1 to ``epochs``).

    ``lr`` is the learning rate of its last step, ``loss`` and ``train_accuracy`` are means over the training
    batches as they were seen, ``test_accuracy`` is None unless evaluation after every epoch was asked for.
    """

    round: int
    network: Network
    epoch: int
    epochs: int
    lr: float
    loss: float
    train_accuracy: float
    test_accuracy: float | None
    seconds: float


@dataclass(frozen=True)
class Progress:
    """``done`` of ``total`` samples of a long scoring pass."""

    done: int
    total: int
    description: str


@dataclass(frozen=True)
class Round:
    """One complete round: the labels bought, and what the networks trained on all labels so far achieve.

    ``labels`` is the size of the labeled set, ``picks`` the pool indices acquired to reach it, in pick order,
    with their ``utilities`` (None where the strategy has none; round 0 is the random initial pool).
    ``unselectable`` counts the pool rows whose utility was NaN when these picks were made. Accuracies are
    those of the last epoch on the test set, in [0, 1]; None where the network was not trained. Of another task than
    classification they are its first metric. ``metrics`` has all of them, by network and name; those of each class are
    tuples. ``signals`` has what stopping rules look at, measured with the selector that chose these picks, by name.
    """

    index: int
    labels: int
    picks: tuple[int, ...]
    utilities: tuple[float, ...] | None
    selector_accuracy: float | None
    final_accuracy: float | None
    unselectable: int
    epochs: tuple[Epoch, ...]
    costs: tuple[Cost, ...]
    signals: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, float | tuple[float, ...]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Stop:
    """Rules hold that propose to stop at ``labels`` labels, after ``round``; ``stopped``: it was asked for, and is done."""

    round: int
    labels: int
    rules: tuple[str, ...]
    stopped: bool


Event: TypeAlias = Phase | Epoch | Progress | Round | Stop
Listener: TypeAlias = Callable[[Event], None]


def round_from_dict(data: Mapping[str, Any]) -> Round:
    """The inverse of ``dataclasses.asdict(round)``, also after a way through JSON (lists for tuples)."""
    utilities = data["utilities"]
    return Round(
        index=data["index"],
        labels=data["labels"],
        picks=tuple(data["picks"]),
        utilities=None if utilities is None else tuple(utilities),
        selector_accuracy=data["selector_accuracy"],
        final_accuracy=data["final_accuracy"],
        unselectable=data["unselectable"],
        epochs=tuple(Epoch(**e) for e in data["epochs"]),
        costs=tuple(Cost(**c) for c in data["costs"]),
        signals=dict(data.get("signals", {})),
        metrics={
            network: {name: tuple(one) if isinstance(one, list) else one for name, one in found.items()}
            for network, found in data.get("metrics", {}).items()
        },
    )
