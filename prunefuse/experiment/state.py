"""Everything a run of the loop has to remember between two rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from prunefuse.experiment.answers import decoded, encoded
from prunefuse.experiment.records import Cost, Round, round_from_dict


@dataclass(frozen=True)
class Acquisition:
    """Labels bought for one round: pool indices in pick order, the oracle's answers, and how they were chosen."""

    picks: tuple[int, ...]
    labels: tuple[Any, ...]
    utilities: tuple[float, ...] | None
    unselectable: int
    costs: tuple[Cost, ...]


@dataclass
class Pending:
    """What people are asked in the round in progress, and what they have said so far.

    ``picks`` are pool indices in pick order, those that are "cannot tell" included. ``told`` has the classes by index.
    """

    picks: list[int] = field(default_factory=list)
    utilities: list[float | None] = field(default_factory=list)
    unselectable: int = 0
    costs: list[Cost] = field(default_factory=list)
    told: dict[int, Any] = field(default_factory=dict)


@dataclass
class LoopState:
    """The state of `ActiveLearning` between rounds; with the same configuration a new loop goes on from it exactly.

    So does one whose schedule is longer: a finished loop can be extended (not with T_sync, where the last size is
    one after which the selector is pruned anew: the network to prune was not kept).

    ``acquisitions`` has one entry per round whose labels were bought; it is one longer than ``rounds`` if the
    loop was interrupted after the oracle answered and before the round was complete, so that no label is asked
    for twice. ``selector`` holds the weights that score the pool next, if the last round trained such a network.
    With T_sync, ``dense`` holds the weights that the current selector was pruned from, once they are not the
    initial ones, and ``fused`` those that replace them after the next labels are bought. With a strategy that
    extrapolates scores, ``scores`` holds those of the labeled samples by preset. All are CPU tensors, the weights by
    parameter name. ``origin`` says what the state belongs to: size of the pool, seed, kind of selector, and the
    dense model's fingerprint.

    ``signals`` has what stopping rules look at, by the round in whose picking it was measured. ``classes`` are the classes
    that the last selector predicted (under the key ``predicted``; -1: none). ``stopped`` is the number of rounds that a
    loop had when it stopped by a rule, else None.

    With the criterion obspa, ``plan`` has the plan of the current selector as text, and ``cut`` the weights that it starts
    from. So a loop that goes on calibrates nothing again.

    Where people are asked, ``pending`` is what they are asked now, and ``unclear`` are the samples of which they said that
    they cannot tell; those are not asked again.
    """

    acquisitions: list[Acquisition] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    selector: dict[str, Tensor] = field(default_factory=dict)
    dense: dict[str, Tensor] = field(default_factory=dict)
    cut: dict[str, Tensor] = field(default_factory=dict)
    fused: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, Tensor] = field(default_factory=dict)
    origin: dict[str, int | str] = field(default_factory=dict)
    pending: Pending | None = None
    unclear: list[int] = field(default_factory=list)
    signals: dict[int, dict[str, float]] = field(default_factory=dict)
    classes: dict[str, Tensor] = field(default_factory=dict)
    stopped: int | None = None
    plan: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """All but the tensors, for ``json.dumps``."""
        return {
            "acquisitions": [_plain(a, labels=[encoded(y) for y in a.labels]) for a in self.acquisitions],
            "rounds": [asdict(r) for r in self.rounds],
            "origin": dict(self.origin),
            "pending": None
            if self.pending is None
            else _plain(self.pending, told={i: encoded(y) for i, y in self.pending.told.items()}),
            "unclear": list(self.unclear),
            "signals": {str(index): dict(found) for index, found in self.signals.items()},
            "stopped": self.stopped,
            **({"plan": self.plan} if self.plan else {}),
        }

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, for ``safetensors.torch.save_file``."""
        names = ("selector", "dense", "cut", "fused", "scores", "classes")
        parts = {name: getattr(self, name) for name in names}
        return {f"{part}.{name}": value for part, named in parts.items() for name, value in named.items()}

    @classmethod
    def restore(cls, data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LoopState:
        """The inverse of `to_json` (also after a way through JSON) and `tensors`."""
        state = cls(
            [
                Acquisition(
                    tuple(a["picks"]),
                    tuple(map(decoded, a["labels"])),
                    None if a["utilities"] is None else tuple(a["utilities"]),
                    a["unselectable"],
                    tuple(Cost(**c) for c in a["costs"]),
                )
                for a in data["acquisitions"]
            ],
            [round_from_dict(r) for r in data["rounds"]],
            origin=dict(data["origin"]),
            pending=_pending(data.get("pending")),
            unclear=list(data.get("unclear", ())),
            signals={int(index): dict(found) for index, found in data.get("signals", {}).items()},
            stopped=data.get("stopped"),
            plan=data.get("plan"),
        )
        for name, value in tensors.items():
            part, _, key = name.partition(".")
            getattr(state, part)[key] = value
        return state


def _plain(record: Acquisition | Pending, **labels: Any) -> dict[str, Any]:
    """A record as plain data, with labels that are."""
    empty = {name: type(getattr(record, name))() for name in labels}
    return {**asdict(replace(record, **empty)), **labels}


def _pending(data: Mapping[str, Any] | None) -> Pending | None:
    if data is None:
        return None
    costs = [Cost(**cost) for cost in data["costs"]]
    told = {int(index): decoded(label) for index, label in data["told"].items()}  # keys are text in JSON
    return Pending(list(data["picks"]), list(data["utilities"]), data["unselectable"], costs, told)
