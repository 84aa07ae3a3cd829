"""The folder of one loop: what its rounds found, committed as one after every round.

::

    manifest.json         SHA-256 of every file below; what the loop is, to compare with when it goes on
    state.json            labels bought, rounds with epochs and ledger: `LoopState` without its tensors
    state.safetensors     those
    picks.csv             round, order, index (into the data set), utility, label, class (its name), id (the sample's name)
    plan.json             what the pruning removed, if something is pruned
    selector.safetensors, final.safetensors
    .steps/               what the steps of the round in progress found, and the training in progress; gone afterwards
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prunefuse import _commit
from prunefuse import _files as files
from prunefuse.data._fingerprint import differences, fingerprint
from prunefuse.errors import DamagedFileError
from prunefuse.experiment.loop_config import LoopConfig
from prunefuse.experiment.records import Round
from prunefuse.experiment.state import LoopState
from prunefuse.pruning import PruningPlan
from prunefuse.tasks import SingleLabel, Task
from prunefuse.training._recipe import completed_recipe

STEPS = ".steps"
_SINGLE_LABEL = SingleLabel()
PICKS = ("round", "order", "index", "utility", "label", "class", "id")
STATE = "state.json"
# A loop goes on with more sizes, with another number of processes that read, and beyond where a rule stopped it.
_FREE = ("schedule", "workers", "stop_when", "stop")


@dataclass(frozen=True)
class Names:
    """What samples of the pool and classes are called; None where that is their index."""

    ids: Sequence[str] | None = None
    classes: Sequence[str] | None = None
    task: Task = _SINGLE_LABEL


def identity(config: LoopConfig, pool: Any, test: Any, features: Tensor | None) -> dict[str, Any]:
    """What a loop is, apart from its networks; plain data. ``features`` are those given beside the pool."""
    names = [one.name for one in fields(config) if one.name not in (*_FREE, "task")]
    known = {name: _plain(getattr(config, name)) for name in names}
    if callable(config.strategy):
        known["strategy"] = getattr(config.strategy, "__qualname__", type(config.strategy).__qualname__)
    known["task"] = "single-label" if type(config.learns) is SingleLabel else config.learns.described()
    # Through JSON, as it is compared with what comes from there.
    plain: dict[str, Any] = json.loads(json.dumps(known))
    data = {"pool": pool, "test": test, "features": features}
    return {"config": plain} | {name: {} if one is None else fingerprint(one) for name, one in data.items()}


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def restore(folder: Path, now: Mapping[str, Any], pool: Any) -> LoopState | None:
    """The state of the loop that a folder is of; None where no round was committed. Every file is checked.

    The pool may have grown: its first samples are those that it had.

    Raises:
        DamagedFileError: a file is not what was written.
        ValueError: the folder is of another loop, or of other data; says what differs.
    """
    from safetensors.torch import load

    _commit.settle(folder)
    manifest = _commit.manifest(folder)
    if manifest is None:
        return None
    manifest.check()
    before = manifest.facts
    usual = {one.name: one.default for one in fields(LoopConfig)}  # of options that were not there yet
    for name, value in now["config"].items():
        had = before["config"].get(name, usual[name])
        if name in ("recipe", "selector_recipe") and had is not None:
            had = completed_recipe(had)
        if had != value:
            raise ValueError(f"folder: {folder} is of a loop with {name} {had!r}, and this one has {value!r}")
    for name in ("pool", "test", "features"):
        had, has = before.get(name, {}), now[name]
        if name == "pool" and had["samples"] < has["samples"]:
            has = fingerprint(pool, had["samples"])
        for difference in differences(had, has):
            raise ValueError(f"{name}: {difference}; {folder} cannot go on with it")
    return LoopState.restore(json.loads(manifest.read(STATE)), load(manifest.read("state.safetensors")))


def version(folder: Path) -> Mapping[str, str]:
    """What a folder holds, to see whether that has changed: SHA-256 by file name."""
    found = _commit.manifest(folder)
    return {} if found is None else found.files


def commit(
    folder: Path,
    identity: Mapping[str, Any],
    state: LoopState,
    plan: PruningPlan | None,
    selector: nn.Module | None,
    final: nn.Module | None,
    names: Names,
) -> None:
    """Write all that a finished round changes, as one.

    Raises:
        OSError: it cannot be written; the folder keeps what it had.
    """
    contents = {
        STATE: (json.dumps(state.to_json(), allow_nan=True) + "\n").encode(),
        "state.safetensors": files.tensor_bytes(state.tensors()),
        "picks.csv": files.utf8(picks_table(state, names)),
    }
    if plan is not None:
        contents["plan.json"] = plan.to_text().encode()
    for name, network in (("selector", selector), ("final", final)):
        if network is not None:
            contents[f"{name}.safetensors"] = files.tensor_bytes(network.state_dict())
    _commit.commit(folder, contents, identity)


def read_state(folder: Path) -> LoopState:
    """The state that a folder has, without tensors; an empty one where no round was committed.

    Raises:
        DamagedFileError: a file that is read is not what was written.
    """
    manifest = _commit.manifest(folder)
    if manifest is None:
        return LoopState()
    try:
        return LoopState.restore(json.loads(manifest.read(STATE)), {})
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DamagedFileError):
            raise
        raise DamagedFileError(f"{folder / STATE} cannot be read: {type(error).__name__}: {error}") from error


def read_rounds(folder: Path) -> tuple[Round, ...]:
    """The rounds that a folder has; none where none was committed.

    Raises:
        DamagedFileError: a file that is read is not what was written.
    """
    return tuple(read_state(folder).rounds)


def picks_table(state: LoopState, names: Names) -> str:
    """The content of picks.csv: every sample whose label was bought, also those of a round in progress."""
    rows = [
        dict(zip(PICKS, (number, order, index, utility, told, named, name), strict=True))
        for number, bought in enumerate(state.acquisitions)
        for order, (index, label, utility) in enumerate(
            zip(bought.picks, bought.labels, bought.utilities or [None] * len(bought.picks), strict=True)
        )
        for told in (label if isinstance(label, int) else names.task.text(label, None),)
        for named in (names.task.text(label, names.classes),)
        for name in (index if names.ids is None else names.ids[index],)
    ]
    return files.csv_text(PICKS, rows)
