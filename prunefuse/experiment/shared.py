"""Which steps of several loops are the same step, so that it is done once.

A step has a key: a hash of all that its result depends on, the keys of the steps before it included. Options that a step does
not look at are not in its key. So two loops that differ in how they fuse select by the same steps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any

from prunefuse.experiment.loop_config import REFITTED, LoopConfig, SelectionOptions
from prunefuse.experiment.rounds import syncs

# What no result depends on, or what is in the keys by other ways.
_ELSEWHERE = ("schedule", "workers", "task", "finals")
# Options that are told only where they say something, so that steps keep the keys that they had before there were such.
_LATER = ("fused_lr", "shrink_fused", "kd_annealing")


def step_keys(config: LoopConfig, base: Mapping[str, Any]) -> dict[str, str]:
    """Keys of the steps that a loop may share, by the names of steps.

    Args:
        config: Of the loop, with a schedule in samples.
        base: What else results depend on: data, networks, device. Plain data.
    """
    if not _can_share(config):
        return {}
    base = {**base, "seed": config.seed, "tested": config.test_every_epoch, "task": str(config.task)}
    keys: dict[str, str] = {}

    def add(what: str, index: int, facts: Mapping[str, Any], *inputs: str) -> None:
        told = [what, index, base, facts, [keys[name] for name in inputs if name in keys]]
        text = json.dumps(told, sort_keys=True, default=_plain)
        keys[f"{index}/{what}"] = hashlib.sha256(text.encode()).hexdigest()[:32]

    for index in range(len(config.sizes)):
        label = f"{index}/label"
        before = (f"{index - 1}/label", f"{index - 1}/train_selector")
        add("label", index, _choosing(config, index), *(before if _looks(config, index) else before[:1]))
        add("train_selector", index, _selecting(config, index), label)
        final = _finishing(config, index)
        inputs = (label, f"{index}/train_selector") if final.get("from selector") else (label,)
        add("train_final", index, final, *inputs)
    return keys


def _can_share(config: LoopConfig) -> bool:
    """Whether all that steps depend on is plain: no rule that stops, no code or file of the user's."""
    plain = isinstance(config.strategy, str) and ":" not in config.strategy and isinstance(config.task, str)
    return plain and not config.stop_when and config.features_from is None


def _looks(config: LoopConfig, index: int) -> bool:
    return bool(config.asks(index))


def _choosing(config: LoopConfig, index: int) -> dict[str, Any]:
    facts: dict[str, Any] = {"size": config.sizes[index]}
    if config.chooser_of(index).needs:
        names = [one.name for one in fields(SelectionOptions) if one.name not in _ELSEWHERE]
        facts |= {name: getattr(config, name) for name in names}
        if index == 0:  # by the network before any training
            facts |= _cut_of(config)
    return facts


def _cut_of(config: LoopConfig) -> dict[str, Any]:
    """Which network the selector is, before it is trained."""
    facts: dict[str, Any] = {"selector": config.selector}
    if config.selector == "prunefuse":
        names = ["prune_ratio", "criterion", "rounding"]
        names += ["calibration"] if config.criterion in REFITTED else []
        facts |= {name: getattr(config, name) for name in names}
    return facts


def _selecting(config: LoopConfig, index: int) -> dict[str, Any]:
    facts = _cut_of(config) | {"recipe": config.training_of_selector, "dynamics": config.chooser.dynamics}
    synced = config.t_sync > 0 and index >= config.t_sync
    return facts | (_whole(config) if synced or config.start != "fresh" else {})


def _finishing(config: LoopConfig, index: int) -> dict[str, Any]:
    facts: dict[str, Any] = {"recipe": config.recipe, "syncs": syncs(config, index)}
    fuses = config.selector == "prunefuse" and config.fuse
    variants: list[str] = []
    if fuses:
        facts |= _cut_of(config) | {"complement": config.complement}
        variants += ["fused_lr", "shrink_fused"]
        variants += ["shrink_to", "noise"] if config.shrink_fused else []
    if config.distills():
        facts |= {"weight": config.kd_lambda, "temperature": config.kd_temperature}
        variants += ["kd_annealing"]
    facts |= _told(config, variants)
    continued = config.start != "fresh" and config.selector == "dense"
    # With T_sync the network that is fused into was trained before.
    return (
        facts
        | {"from selector": fuses or config.distills()}
        | (_whole(config) if config.t_sync or continued else {})
    )


def _whole(config: LoopConfig) -> dict[str, Any]:
    """Everything, for steps that go on from what other steps than their inputs left."""
    told = _told(config, [one.name for one in fields(config) if one.name not in _ELSEWHERE])
    return told | {"finals": config.finals}


def _told(config: LoopConfig, names: Iterable[str]) -> dict[str, Any]:
    usual = {one.name: one.default for one in fields(config)}
    values = {name: getattr(config, name) for name in names}
    return {name: value for name, value in values.items() if name not in _LATER or value != usual[name]}


def _plain(value: Any) -> Any:
    """A recipe without what was not there once, where that says nothing."""
    return {name: one for name, one in asdict(value).items() if one or name not in ("compile", "cuda_graphs")}
