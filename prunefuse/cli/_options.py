"""The options of a command, made of the fields of its configuration; and their page in the documentation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar, get_args, get_origin

import typer

from prunefuse._options import Option, Place, changed, explained, places, read_file
from prunefuse.errors import ConfigError
from prunefuse.experiment.config import WHAT
from prunefuse.experiment.loop_config import RUN

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    C = TypeVar("C", bound=DataclassInstance)
else:
    C = TypeVar("C")

Given: TypeAlias = Mapping[str, Any]
"""Name of an option -> its value, of those options that were on the command line."""
ConfigFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="TOML file of options, those of the recipe in a table [recipe]; or config.json of a run folder. Options on the "
        "command line replace what it says.",
        metavar="FILE",
        rich_help_panel=WHAT,
        show_default=False,
    ),
]
Quiet: TypeAlias = Annotated[
    bool,
    typer.Option("--quiet", "-q", metavar=" ", help="Print nothing but the run folder.", rich_help_panel=RUN),
]
Resume: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Go on with the run in this folder, with its options; only --jobs, --device and --quiet may stand beside it.",
        metavar="PATH",
        rich_help_panel=RUN,
        show_default=False,
    ),
]
_METAVARS = {int: "N", float: "X", bool: " "}


def configured(kind: type[DataclassInstance]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each field of a configuration, in the place of its parameter ``given``."""

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())
        where = next(index for index, parameter in enumerate(own) if parameter.name == "given")
        options = parameters(kind)
        names = [parameter.name for parameter in options]

        def called(**values: Any) -> None:
            given = {name: value for name in names if (value := values.pop(name)) is not None}
            command(given=given, **values)

        called.__name__, called.__doc__ = command.__name__, command.__doc__
        called.__signature__ = inspect.Signature([*own[:where], *options, *own[where + 1 :]])  # type: ignore[attr-defined]
        return called

    return wrap


def parameters(kind: type[DataclassInstance]) -> list[inspect.Parameter]:
    """The options as parameters that typer reads; left out they are None, for the configuration to decide."""
    found = []
    for place in places(kind):
        told = place.option
        if place.name == "seeds":  # told by two options, and kept as the list of them
            first = Option(told.panel, "First seed")
            found.append(_parameter("seed", int, first, place.default[0]))
            found.append(_parameter("seeds", int, told, len(place.default)))
        else:
            found.append(_parameter(place.name, _plain(place.hint), told, place.default))
    return found


def _parameter(name: str, kind: type, told: Option, default: Any) -> inspect.Parameter:
    flag = name.replace("_", "-")
    help = explained(told, more=False)
    if default not in (None, ()) and not isinstance(default, bool):
        help += f" ({as_text(default)})"
    elif default is True:
        help += " (on)"
    option = typer.Option(
        f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}",
        *filter(None, [told.short]),
        help=help,
        rich_help_panel=told.panel,
        metavar=told.metavar or ("NAME" if told.names else _METAVARS.get(kind, "TEXT")),
        show_default=False,
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _plain(hint: Any) -> type:
    """What the command line reads for a field of this type; texts stand for all but numbers and flags."""
    kinds = (hint, *get_args(hint))
    parts = [part for part in kinds if part in (int, float, bool)]
    return parts[0] if parts and str not in kinds and get_origin(hint) is not tuple else str


def as_text(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, tuple):
        return ",".join(":".join(map(str, item)) if isinstance(item, tuple) else str(item) for item in value)
    return str(value)


def _parsed(place: Place, value: Any) -> Any:
    """What the text of an option means, where its field is a tuple: parts between commas; ``none`` is no part."""
    kind = next((part for part in (place.hint, *get_args(place.hint)) if get_origin(part) is tuple), None)
    if kind is None or not isinstance(value, str):
        return value
    parts = [] if value.strip() == "none" else [part.strip() for part in value.split(",") if part.strip()]
    item = get_args(kind)[0]
    try:
        if get_origin(item) is tuple:
            pairs = (zip(get_args(item), part.split(":"), strict=True) for part in parts)
            return tuple(tuple(kind(text) for kind, text in pair) for pair in pairs)
        return tuple(item(part) if item in (int, float) else part for part in parts)
    except ValueError:
        raise ConfigError(f"{place.name} must be such as {as_text(place.default)}, got {value!r}") from None


def configure(config: C, given: Given, file: Path | None, kind: str) -> C:
    """A configuration with what a file says, and on top of that what was given on the command line.

    Args:
        config: What holds where nothing is said.
        given: The options given.
        file: A file of options, or config.json of a run folder.
        kind: Whose config.json that is: ``run`` or ``extrapolate``.

    Raises:
        ConfigError: the file cannot be read, an unknown key, or a value that is not allowed.
    """
    if file is not None:
        config = changed(config, read_file(file, kind), f"{file}: ")
    known = {place.name: place for place in places(type(config))}
    own: dict[str, Any] = {}
    inside: dict[str, dict[str, Any]] = {}
    if given.keys() & {"seed", "seeds"}:
        usual = config.seeds  # type: ignore[attr-defined]
        first = given.get("seed", usual[0])
        own["seeds"] = tuple(range(first, first + given.get("seeds", len(usual))))
    for name, value in given.items():
        if name not in ("seed", "seeds"):
            place = known[name]
            target = own if len(place.path) == 1 else inside.setdefault(place.path[0], {})
            target[place.path[-1]] = _parsed(place, value)
    return changed(changed(config, own), inside)


def going_on(given: Given, others: Mapping[str, bool]) -> dict[str, Any]:
    """Those of the options given that a run may go on with.

    Args:
        given: The options of the configuration.
        others: Whether other options were given, by name.

    Raises:
        ConfigError: an option that the run has of its own.
    """
    allowed = ("jobs", "device")
    own = [name for name in (*given, *(name for name, told in others.items() if told)) if name not in allowed]
    if own:
        raise ConfigError(f"resume goes on with the options of the run: leave out {own[0].replace('_', '-')}")
    return dict(given)


def page(commands: Mapping[str, type[DataclassInstance]]) -> str:
    """``docs/options.md``: every option of these commands, by panel."""
    lines = [
        "# Options",
        "",
        "Written from the configurations' fields by `python -m prunefuse.cli.options_page`; a test holds it to them.",
    ]
    for command, kind in commands.items():
        lines += ["", f"## `prunefuse {command}`: `{kind.__name__}`"]
        panels: dict[str, list[str]] = {}
        for place in places(kind):
            key = ".".join(place.path)
            default = "" if place.default in (None, ()) else f"`{as_text(place.default)}`"
            told = explained(place.option).replace("|", "\\|")
            row = f"| `--{place.name.replace('_', '-')}` | `{key}` | {default} | {told} |"
            panels.setdefault(place.option.panel, []).append(row)
        for panel, rows in panels.items():
            header = ["| option | key in a file | default | |", "| --- | --- | --- | --- |"]
            lines += ["", f"### {panel}", "", *header, *rows]
    return "\n".join(lines) + "\n"
