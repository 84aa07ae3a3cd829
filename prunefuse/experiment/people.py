"""Asking people for labels: what is open, what they have said, and when the labels of a round are complete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prunefuse.experiment.answers import encoded
from prunefuse.experiment.oracle import check_labels
from prunefuse.experiment.records import Cost
from prunefuse.experiment.state import Acquisition, LoopState, Pending
from prunefuse.selection._strategies import Picks
from prunefuse.tasks import Task

# Label by pool index, or in the order in which samples were asked; None is "cannot tell".
Labels = Mapping[int, Any] | Sequence[Any]


@dataclass(frozen=True)
class Asked:
    """Samples for people to label.

    Attributes:
        indices: Into the pool, best first.
        utilities: Of each; None where they are random.
        ids: What each is called; None where the loop was given no ``ids``.
        stop: Rules that propose to stop labeling before these; see `prunefuse.experiment.stopping`.
    """

    indices: tuple[int, ...]
    utilities: tuple[float, ...] | None
    ids: tuple[str, ...] | None = None
    stop: tuple[str, ...] = ()


def asked(state: LoopState) -> Asked:
    """The samples that are open: asked, and neither told nor "cannot tell"."""
    pending = state.pending or Pending()
    utilities = dict(zip(pending.picks, pending.utilities, strict=True))
    left = [index for index in pending.picks if index not in pending.told and index not in state.unclear]
    return Asked(tuple(left), _known([utilities[index] for index in left]))


def missing(state: LoopState, sizes: Sequence[int]) -> int:
    """How many samples people have to be asked beside those that are open, in the round in progress."""
    bought = sum(len(one.picks) for one in state.acquisitions)
    told = len(state.pending.told) if state.pending else 0
    return sizes[len(state.acquisitions)] - bought - told - len(asked(state).indices)


def add(state: LoopState, picks: Picks, costs: Sequence[Cost]) -> None:
    """Ask for these samples, too."""
    pending = state.pending = state.pending or Pending()
    chosen = picks.indices.tolist()
    pending.picks += chosen
    pending.utilities += [None] * len(chosen) if picks.utilities is None else picks.utilities.tolist()
    pending.unselectable += picks.unselectable
    pending.costs += costs


def take(state: LoopState, labels: Labels, sizes: Sequence[int], width: int, task: Task) -> bool:
    """Take what people say; returns whether a label of an earlier round was corrected.

    Raises:
        ValueError: an index that was not asked, or a label that is no class; nothing is taken then.
        TypeError: a label is not a whole number.
    """
    pending = state.pending or Pending()
    if isinstance(labels, Mapping):
        told = dict(labels)
    else:
        left = asked(state).indices
        if len(labels) != len(left):
            raise ValueError(
                f"labels must have one for each of the {len(left)} samples asked, got {len(labels)}"
            )
        told = dict(zip(left, labels, strict=True))
    earlier = {index: number for number, one in enumerate(state.acquisitions) for index in one.picks}
    for index, label in told.items():
        if index not in pending.picks and index not in earlier:
            raise ValueError(f"labels must be of samples that were asked, got index {index!r}")
        if label is None and index in earlier:
            raise ValueError(f"labels must be a class for a sample of a complete round, got None for {index}")
    known = {index: label for index, label in told.items() if label is not None}
    classes = check_labels("labels", list(known), list(known.values()), width, task)
    # From here on nothing can fail.
    corrected = False
    for index, label in zip(known, classes, strict=True):
        if index in earlier:
            corrected |= _correct(state.acquisitions, earlier[index], index, label)
        else:
            pending.told[index] = label
            state.unclear = [one for one in state.unclear if one != index]
    for index in told.keys() - known.keys():
        pending.told.pop(index, None)
        state.unclear = [*(one for one in state.unclear if one != index), index]
    state.pending = pending if pending.picks else None
    if state.pending and missing(state, sizes) <= 0 and not asked(state).indices:
        _acquire(state, state.pending)
    return corrected


def _correct(acquisitions: list[Acquisition], number: int, index: int, label: Any) -> bool:
    """Change a label of an earlier round; returns whether it was another."""
    one = acquisitions[number]
    labels = tuple(label if i == index else y for i, y in zip(one.picks, one.labels, strict=True))
    acquisitions[number] = replace(one, labels=labels)
    return [encoded(y) for y in labels] != [encoded(y) for y in one.labels]


def _acquire(state: LoopState, pending: Pending) -> None:
    """All labels of the round are there."""
    utilities = dict(zip(pending.picks, pending.utilities, strict=True))
    picks = tuple(index for index in pending.picks if index in pending.told)
    labels = tuple(pending.told[index] for index in picks)
    values = _known([utilities[index] for index in picks])
    costs = tuple(pending.costs)
    state.acquisitions.append(Acquisition(picks, labels, values, pending.unselectable, costs))
    state.pending = None


def _known(utilities: Sequence[float | None]) -> tuple[float, ...] | None:
    found = tuple(one for one in utilities if one is not None)
    return found if len(found) == len(utilities) and found else None
