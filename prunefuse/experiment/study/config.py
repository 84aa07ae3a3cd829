"""A study as a file: what every run of it has, what is varied, and what is compared with what.

::

    title = "Accuracy against budgets"
    about = "One line for the list of studies"
    seeds = [0, 1, 2]
    against = ["dense", "random"]      # arms or variants that the others are compared with
    draw = ["labels", "prune_ratio"]   # against labels or an option, over "epochs", by FLOPs of "selection"

    [options]                          # of every run, as in a file for `prunefuse run`
    data = "fashion_mnist"
    recipe = "fashion_mnist"

    [grid]                             # every combination of these
    prune_ratio = [0.5, 0.7]
    "recipe.epochs" = [3, 8, 20]

    [[variant]]                        # each beside the others, in every combination of the grid
    name = "not fused"
    fuse = false
    needs = "timm"                     # a package, without which this variant is left out
"""

from __future__ import annotations

import difflib
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prunefuse._extras import needed_for
from prunefuse._options import changed, places
from prunefuse.errors import ConfigError
from prunefuse.experiment.config import RunConfig
from prunefuse.experiment.extrapolate.config import ExtrapolateConfig
from prunefuse.experiment.study.pruning_config import PruningConfig
from prunefuse.training._recipe import Recipe

KINDS: dict[str, Any] = {
    "run": RunConfig,
    "extrapolate": ExtrapolateConfig,
    "pruning": PruningConfig,
    "flops": None,
}
_HERE = ("seeds", "out", "listener", "tensorboard")  # options of a run that a study has no place for
_KEYS = ("title", "about", "kind", "seeds", "against", "draw", "on", "options", "grid", "variant")
_RECIPE = {one.name for one in fields(Recipe)} - {"schedule", "steps"}
_NONE = "none"  # an option that is left out again, by --set


@dataclass(frozen=True)
class Point:
    """One configuration of a study before it is made: its options by name, and where it stands.

    Attributes:
        variant: Name of the variant; empty where there is none.
        place: Values of the grid.
        options: All options that are given.
    """

    variant: str
    place: Mapping[str, Any]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Study:
    """What a study is made of; `read_study` makes one of a file, and `points` says what it comes to.

    >>> from prunefuse.experiment.study import read_study
    >>> read_study("ablation").grid
    {'criterion': ('l2', 'random')}

    Attributes:
        name: Of the file.
        title: Heading of the report.
        about: One line.
        kind: ``run``, ``extrapolate``, or ``flops``, which is computed and not run.
        seeds: Every configuration is run with each of them.
        against: Arms or variants that the others are compared with, seed by seed.
        draw: ``labels``, ``epochs``, ``selection``, or names of options that accuracy is drawn against.
        options: What every configuration has. A table inside is written with a dot, as ``recipe.epochs``.
        grid: Values of an option, every combination of which is run.
        variants: Options that stand for each other, each in every combination.
    """

    name: str
    title: str
    about: str = ""
    kind: str = "run"
    seeds: tuple[int, ...] = (0, 1, 2)
    against: tuple[str, ...] = ()
    draw: tuple[str, ...] = ("labels",)
    options: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    variants: tuple[Mapping[str, Any], ...] = ()

    def points(self) -> Iterator[Point]:
        """Every combination, those of one variant after those of the other."""
        for variant in self.variants or ({},):
            own = {name: value for name, value in variant.items() if name != "name"}
            axes = {name: values for name, values in self.grid.items() if name not in own}
            for values in itertools.product(*axes.values()):
                place = dict(zip(axes, values, strict=True))
                yield Point(str(variant.get("name", "")), place, {**self.options, **place, **own})

    def plain(self) -> dict[str, Any]:
        """As data for JSON, the inverse of `from_plain`."""
        told: dict[str, Any] = json.loads(
            json.dumps({one.name: getattr(self, one.name) for one in fields(self)})
        )
        return told

    @classmethod
    def from_plain(cls, told: Mapping[str, Any]) -> Study:
        """The inverse of `plain`."""
        tuples = {name: tuple(told[name]) for name in ("seeds", "against", "draw", "variants")}
        grid = {name: tuple(values) for name, values in told["grid"].items()}
        return cls(**{**told, **tuples, "grid": grid})


def built_in() -> tuple[str, ...]:
    """Names of the studies that come with the package."""
    names = (one.name for one in resources.files(__package__).iterdir())
    return tuple(
        sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml") and name[0] != "_")
    )


def text_of(name: str) -> str:
    """The file of a study: a built-in one by name, or a path.

    Raises:
        ConfigError: there is none.
    """
    if name in built_in():
        return (resources.files(__package__) / f"{name}.toml").read_text(encoding="utf-8")
    path = Path(name)
    if not path.is_file():
        raise ConfigError(
            f"study must be a file, or one of {', '.join(built_in())}, got {name!r}{_meant(name, built_in())}"
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"study: {path} cannot be read: {error}") from error


def read_study(name: str, settings: Sequence[str] = ()) -> Study:
    """A study from a file, with some of it changed. All of it is checked.

    >>> from prunefuse.experiment.study import read_study
    >>> study = read_study("budgets", ["seeds=[0]", "data=digits", "image_size=none"])
    >>> study.seeds, study.options["data"]
    ((0,), 'digits')

    Args:
        name: A built-in study, or the path of a file.
        settings: ``KEY=VALUE`` with values as in the file; a word needs no quotes. A list is a part of the grid, where the
            option is one value. ``none`` leaves an option out. ``on=digits`` takes data, network and training from the
            settings of that data set.

    Raises:
        ConfigError: the file is none, or something in it is unknown or not allowed.
    """
    stem = Path(name).stem
    told = _parsed(text_of(name), name)
    where = f"{name}: "
    if unknown := next((key for key in told if key not in _KEYS), None):
        raise ConfigError(
            f"{where}key must be one of {', '.join(_KEYS)}, got {unknown!r}{_meant(unknown, _KEYS)}"
        )
    changes = dict(map(_setting, settings))
    study = _made(stem, told, where, changes.pop("on", told.get("on")))
    for key, value in changes.items():
        study = _with(study, key, value)
    check(study)
    return study


def _made(stem: str, told: Mapping[str, Any], where: str, on: Any) -> Study:
    kind = told.get("kind", "run")
    if kind not in KINDS:
        raise ConfigError(f"{where}kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if not isinstance(told.get("title"), str):
        raise ConfigError(f"{where}title must be a text, got {told.get('title')!r}")
    options = _table(told, "options", where)
    if on is not None:
        settings = settings_on(on)
        if kind != "run":
            settings.pop("schedule")
        options = {**settings, **options} if on == told.get("on") else {**options, **settings}
        options = {name: value for name, value in options.items() if value != _NONE}
    grid = {}
    for option, values in _table(told, "grid", where).items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{where}grid.{option} must be a list of one or more values, got {values!r}")
        grid[_named(kind, option, where)] = tuple(values)
    variants = told.get("variant", [])
    if not isinstance(variants, list) or not all(isinstance(one, dict) for one in variants):
        raise ConfigError(f"{where}variant must be tables [[variant]], got {variants!r}")
    # Of a package that is not here: the others are run without it.
    variants = [one for one in variants if "needs" not in one or find_spec(str(one["needs"]))]
    listed: dict[str, tuple[Any, ...]] = {}
    for name, usual in (("seeds", [0, 1, 2]), ("against", []), ("draw", ["labels"])):
        value = told.get(name, usual)
        if not isinstance(value, list):
            raise ConfigError(f"{where}{name} must be a list, got {value!r}")
        listed[name] = tuple(value)
    return Study(
        stem,
        told["title"],
        str(told.get("about", "")),
        kind,
        options={_named(kind, name, where): value for name, value in options.items()},
        grid=grid,
        variants=tuple(
            {
                name if name == "name" else _named(kind, name, where): value
                for name, value in _flat(one).items()
            }
            for one in ({key: value for key, value in one.items() if key != "needs"} for one in variants)
        ),
        **listed,
    )


def check(study: Study) -> None:
    """Raise ``ConfigError`` for a study some of whose configurations cannot be, or which compares with what it has not."""
    seeds = study.seeds
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds must be one or more different numbers from 0 on, got {list(seeds)}")
    names = [str(one.get("name", "")) for one in study.variants]
    if len(names) > 1 and (len(set(names)) < len(names) or "" in names):
        raise ConfigError(f"variant: name must be another one in each, got {', '.join(names)}")
    if study.kind == "flops":
        from prunefuse.experiment.study.flops import check as check_flops

        check_flops(study)
        return
    known = {"dense", "random", "full", *names}
    if wrong := next((one for one in study.against if one not in known), None):
        raise ConfigError(
            f"against must be of {', '.join(sorted(known - {''}))}, got {wrong!r}{_meant(str(wrong), known)}"
        )
    axes = {*study.grid, *(name for one in study.variants for name in one)} - {"name"}
    for drawn in study.draw:
        if drawn not in ("labels", "epochs", "selection", *axes):
            raise ConfigError(
                f"draw must be of labels, epochs, selection, or what varies ({', '.join(sorted(axes))}), got {drawn!r}"
            )
    for point in study.points():
        configured(study, point)


def configured(study: Study, point: Point) -> Any:
    """The configuration of a point, with all seeds: a `RunConfig` or an `ExtrapolateConfig`.

    Raises:
        ConfigError: a value that is not allowed; names the option, and the point that has it.
    """
    plain = {name: value for name, value in point.options.items() if "." not in name}
    tables: dict[str, dict[str, Any]] = {}
    for name, value in point.options.items():
        table, dot, inner = name.partition(".")
        if dot:
            tables.setdefault(table, {})[inner] = value
    told = ", ".join(filter(None, [point.variant, *(f"{k}={v}" for k, v in point.place.items())]))
    where = f"{study.name}{f' ({told})' if told else ''}: "
    config = changed(KINDS[study.kind](), {**plain, "seeds": list(study.seeds)}, where)
    return changed(config, tables, where) if tables else config


def settings_on(name: Any) -> dict[str, Any]:
    """Data, network and training of a data set, by its name.

    Raises:
        ConfigError: there are none for it.
    """
    text = (resources.files(__package__) / "_settings.toml").read_text(encoding="utf-8")
    known = _parsed(text, "_settings.toml")
    if name not in known:
        raise ConfigError(f"on must be one of {', '.join(known)}, got {name!r}{_meant(str(name), known)}")
    return _flat(known[name])


def _with(study: Study, key: str, value: Any) -> Study:
    """A study with one thing changed, as by ``--set``."""
    plain: dict[str, Any] = {}
    if key in ("seeds", "against", "draw"):
        plain[key] = tuple(value) if isinstance(value, list) else (value,)
    elif key in ("title", "about"):
        plain[key] = str(value)
    if plain:
        return replace(study, **plain)
    name = _named(study.kind, key, "set: ")
    options, grid = dict(study.options), dict(study.grid)
    if own := [str(one.get("name")) for one in study.variants if name in one]:
        raise ConfigError(
            f"set: option must be one that no variant has, got {key!r}, which {', '.join(own)} have"
        )
    options.pop(name, None)
    if name in grid or (isinstance(value, list) and not _is_list(study.kind, name)):
        grid.pop(name, None)
        if value != _NONE:
            grid[name] = tuple(value) if isinstance(value, list) else (value,)
    elif value != _NONE:
        options[name] = value
    return replace(study, options=options, grid=grid)


def _is_list(kind: str, name: str) -> bool:
    """Whether an option is itself a list."""
    if KINDS[kind] is None:
        return name in ("schedule", "budgets", "image")
    found = next((one for one in places(KINDS[kind]) if ".".join(one.path) == name), None)
    return found is not None and "tuple" in str(found.hint)


def _named(kind: str, name: str, where: str) -> str:
    """An option by its full name: ``recipe.epochs`` for ``epochs``.

    Raises:
        ConfigError: there is no such option.
    """
    if KINDS[kind] is None:
        return f"recipe.{name}" if name in _RECIPE else name
    own = {place.name: ".".join(place.path) for place in places(KINDS[kind])}
    inner = [path for path in own.values() if path.startswith("recipe.")]
    known = {path: path for path in (*own.values(), *inner)} | own
    word = name.replace("-", "_")
    if word in known and known[word].partition(".")[0] not in _HERE:
        return known[word]
    if word in _HERE:
        raise ConfigError(f"{where}option must not be {name!r}: a study has its own place for it")
    raise ConfigError(f"{where}option must be one of prunefuse {kind}, got {name!r}{_meant(word, known)}")


def _meant(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, [*known], 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _table(told: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    table = told.get(name, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{where}{name} must be a table, got {table!r}")
    return _flat(table)


def _flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """Tables inside with a dot: ``{"recipe": {"epochs": 3}}`` -> ``{"recipe.epochs": 3}``."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, dict):
            found |= {f"{name}.{inner}": one for inner, one in _flat(value).items()}
        else:
            found[name] = value
    return found


def _parsed(text: str, name: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        with needed_for("a study"):
            import tomli as tomllib
    try:
        return dict(tomllib.loads(text))
    except ValueError as error:
        raise ConfigError(f"{name} must be TOML: {error}") from error


def _setting(text: str) -> tuple[str, Any]:
    """``KEY=VALUE``; a value that is not TOML is a word."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"set must be KEY=VALUE, got {text!r}")
    try:
        return key.strip(), _parsed(f"x = {value}", "set")["x"]
    except ConfigError:
        return key.strip(), value.strip()
