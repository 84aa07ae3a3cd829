"""From the points of a study to the runs that are different: a run is done once, whatever points it belongs to."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from prunefuse._options import changed
from prunefuse.experiment import folder
from prunefuse.experiment.config import MachineOptions, RunConfig
from prunefuse.experiment.format import setting
from prunefuse.experiment.loop_config import (
    REFITTED,
    PruneFuseOptions,
    SelectionOptions,
    StartOptions,
)
from prunefuse.experiment.study.config import KINDS, Point, Study, configured
from prunefuse.training._recipe import RECIPES, Recipe

_USUAL = RunConfig()
# Where and how fast something is computed, not what.
_MACHINE = {*(one.name for one in fields(MachineOptions)), "workers", "root", "download"}


@dataclass(frozen=True)
class Unit:
    """A run of one arm, with all seeds: what a folder of the study has.

    Attributes:
        name: Of its folder.
        label: What it is called in the report.
        role: ``main``, ``dense`` or ``random``.
        config: One arm, and nothing that does not concern it. With ``extrapolate`` a whole run.
        options: What tells it from other units, by name of the option.
        against: Names of the units that it is compared with.
    """

    name: str
    label: str
    role: str
    config: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    against: tuple[str, ...] = ()


def identity(config: Any) -> str:
    """What a run is, apart from its seeds and the machine; text that is equal for equal runs."""
    told = {name: value for name, value in asdict(config).items() if name not in _MACHINE}
    return json.dumps(told, sort_keys=True)


def arm_alone(config: RunConfig, arm: str) -> RunConfig:
    """The configuration of one arm, whose options that it does not look at are the usual ones."""
    changes: dict[str, Any] = {"baselines": ()}
    if arm == "random" and arm != config.arms[0]:
        # Of how to select, it has the sizes alone.
        options = {one.name: getattr(_USUAL, one.name) for one in fields(SelectionOptions)}
        changes |= {**options, "schedule": config.schedule, "selector": "dense", "strategy": "random"}
        changes |= {"stop_when": (), "stop": False, "final_epochs": None}
    elif arm != config.arms[0]:
        changes |= {"selector": "dense", "final_epochs": None}
    changed_to = SimpleNamespace(**{**vars(config), **changes})
    return replace(config, **{**changes, **{name: getattr(_USUAL, name) for name in _unused(changed_to)}})


def _unused(config: Any) -> set[str]:
    """Options that a configuration of one arm does not look at."""
    unused: set[str] = set()
    if config.selector != "prunefuse":
        unused |= {one.name for one in fields(PruneFuseOptions)} - {"selector"}
    else:
        unused |= set() if config.fuse else {"complement", "fused_lr", "shrink_fused"}
        unused |= set() if config.distill else {"kd_lambda", "kd_temperature", "kd_annealing"}
        unused |= set() if config.criterion in REFITTED else {"calibration"}
    if config.strategy == "random":
        unused |= {one.name for one in fields(SelectionOptions)} - {"schedule", "strategy", "cold_start"}
    else:
        unused |= {"beta"} if config.stochastic == "none" else set()
        unused |= {"preselect"} if config.diversity == "none" else set()
        unused |= set() if config.strategy == "bald" else {"passes"}
    fuses = config.selector == "prunefuse" and config.fuse
    if config.start != "shrink" and not (fuses and config.shrink_fused):
        unused |= {one.name for one in fields(StartOptions)} - {"start"}
    return unused


def units_of(study: Study) -> tuple[Unit, ...]:
    """The runs of a study that are different, in the order of its points; baselines after what they are compared with."""
    made: dict[str, Unit] = {}
    names: dict[
        tuple[int, str], str
    ] = {}  # identity of the units of a point, by its number and the arm or variant
    points = list(study.points())
    for number, point in enumerate(points):
        config = configured(study, point)
        loops = isinstance(config, RunConfig)
        for arm in config.arms if loops else ("",):
            alone = arm_alone(config, arm) if loops else config
            key = identity(alone)
            names[number, arm] = key
            main = not loops or arm == config.arms[0]
            if main and point.variant:
                names[number, point.variant] = key
            if key not in made:
                role = (
                    "random" if loops and alone.strategy == "random" and alone.selector == "dense" else "main"
                )
                role = "dense" if role == "main" and loops and alone.selector == "dense" else role
                arm_label = point.variant if main and point.variant else arm or "run"
                made[key] = Unit("", arm_label, role, alone, {})
    against: dict[str, dict[str, None]] = {key: {} for key in made}
    for number in range(len(points)):
        own = [key for (place, _), key in names.items() if place == number]
        for wanted in study.against:
            other = next(
                (names[place, wanted] for place in _near(points, number) if (place, wanted) in names), None
            )
            for key in own:
                if other is not None and other != key:
                    against[key][other] = None
    called = _called(study, made)
    return tuple(
        replace(one, name=called[key][0], label=called[key][1], options=called[key][2])
        for key, one in (
            (key, replace(made[key], against=tuple(called[other][0] for other in against[key])))
            for key in made
        )
    )


def _near(points: list[Point], number: int) -> list[int]:
    """Points that could have what a point is compared with: itself, then those of other variants at the same place."""
    here = points[number].place
    same = [
        place
        for place, other in enumerate(points)
        if place != number and all(here.get(name, value) == value for name, value in other.place.items())
    ]
    return [number, *same]


def _called(study: Study, made: Mapping[str, Unit]) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Folder, label and telling options of each unit. Options tell where units of the same arm differ in them."""
    axes = list(
        dict.fromkeys([*study.grid, *(name for one in study.variants for name in one if name != "name")])
    )
    found = {}
    for key, unit in made.items():
        alike = [other for other in made.values() if other.label == unit.label]
        options = {
            name: value_of(unit.config, name)
            for name in axes
            if any(value_of(other.config, name) != value_of(unit.config, name) for other in alike)
            # What variants change is told where it is changed.
            and (name in study.grid or value_of(unit.config, name) != value_of(type(unit.config)(), name))
        }
        told = ", ".join(told_option(name, value) for name, value in options.items())
        label = f"{unit.label}, {told}" if told else unit.label
        slug = re.sub(r"[^A-Za-z0-9.]+", "-", label).strip("-.")[:60]
        name = f"{slug}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
        found[key] = (name, label, {name: value_of(unit.config, name) for name in axes})
    return found


def kept_names(path: Path) -> Callable[[Unit], str]:
    """From a unit to the name of its folder: that of a run that is the same, if there is one."""
    found = {}
    for place in sorted((path / "trials").glob(f"*/{folder.CONFIG}")):
        facts = folder.read_facts(place.parent)
        kind = KINDS[facts.get("kind", "run")]
        found[identity(changed(kind(), facts["config"]))] = place.parent.name
    return lambda unit: found.get(identity(unit.config), unit.name)


def named_by_folders(path: Path, units: Sequence[Unit]) -> tuple[Unit, ...]:
    """The units, called as their folders below a study's are."""
    name_of = kept_names(path)
    names = {unit.name: name_of(unit) for unit in units}
    return tuple(
        replace(unit, name=names[unit.name], against=tuple(names[one] for one in unit.against))
        for unit in units
    )


def value_of(config: Any, name: str) -> Any:
    """The value of an option by its full name."""
    value: Any = config
    for part in name.split("."):
        value = None if value is None else getattr(value, part)
    if isinstance(value, Recipe):
        return next((named for named, one in RECIPES.items() if one == value), "changed")
    return value


def told_option(name: str, value: Any) -> str:
    """An option with its value, as labels have it."""
    known = {"prune_ratio": "p", "recipe.epochs": "epochs", "final_epochs": "epochs", "strategy": "by"}
    words = known.get(name, name.rpartition(".")[2].replace("_", " "))
    return f"{words} {setting(value)}"
