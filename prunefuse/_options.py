"""Configurations: frozen dataclasses whose fields say all that there is to say about an option.

A field carries its default, its help, its panel in ``--help`` and its check. Its docstring, the command line, the file of
a run folder and ``docs/options.md`` are made of these, so an option is added by one field::

    epochs: int = field(default=181, metadata=option("Training", "Passes over the labeled set", check=at_least(1)))

All of it can be read without torch.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from prunefuse._extras import needed_for
from prunefuse.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    C = TypeVar("C", bound=DataclassInstance)
else:
    C = TypeVar("C")


@dataclass(frozen=True)
class Check:
    """``check(name, value)`` raises ``ConfigError`` unless the value is ``valid``; ``names``: the choices to list in help."""

    expected: str
    valid: Callable[[Any], bool]
    names: tuple[str, ...] = ()

    def __call__(self, name: str, value: Any) -> None:
        require(self.valid(value), name, self.expected, value)


def require(valid: bool, name: str, expected: str, got: object) -> None:
    """Raise ``ConfigError`` unless ``valid``: the one grammar of what is wrong with a value."""
    if not valid:
        raise ConfigError(f"{name} must be {expected}, got {got!r}")


def require_type(value: object, kinds: type | tuple[type, ...], name: str, expected: str) -> None:
    """Raise ``TypeError``, in the same grammar, unless a value is of one of these types."""
    if not isinstance(value, kinds):
        raise TypeError(f"{name} must be {expected}, got {type(value).__name__}")


def at_least(least: int) -> Check:
    """A number from ``least`` on."""
    return Check(f"at least {least}", lambda value: value >= least)


def not_negative() -> Check:
    """A finite number from 0 on."""
    return Check("a finite number, 0 or more", lambda value: 0 <= value < float("inf"))


def positive() -> Check:
    """A finite number above 0."""
    return Check("a positive number", lambda value: 0 < value < float("inf"))


def part(*, whole: bool = False) -> Check:
    """A number in [0, 1); with ``whole``, 1 too."""
    return Check(f"in [0, 1{']' if whole else ')'}", lambda value: 0 <= value < 1 or (whole and value == 1))


def one_of(*names: str) -> Check:
    """One of these names."""
    return Check(f"one of {', '.join(names)}", lambda value: value in names, names)


def any_of(*names: str, least: int = 0) -> Check:
    """A tuple of some of these names, at least ``least``, each once."""

    def valid(value: tuple[str, ...]) -> bool:
        return len(set(value)) == len(value) >= least and set(value) <= set(names)

    few = ", or none" if least == 0 else ""
    return Check(f"any of {', '.join(names)}{few}, each once", valid, names if least else ())


@dataclass(frozen=True)
class Option:
    """What a field says about its option.

    Attributes:
        panel: Heading in ``--help``; empty for what only Python takes.
        help: One phrase, without a period; the choices of the check follow it.
        more: What the docstring and ``docs/options.md`` say beside it.
        check: Called with the field's name and a value of the right type; None needs no check.
        metavar: What stands for the value in ``--help``; empty for one that goes with the type.
        short: A short flag, such as ``-b``.
        flag: Name on the command line, where the field's own is taken there.
        named: Values that may be given by name.
        usual: Value to show in place of the default None.
        instead: Attribute of the configuration that has the value where the field is None.
    """

    panel: str
    help: str
    more: str = ""
    check: Callable[[str, Any], None] | None = None
    metavar: str = ""
    short: str = ""
    flag: str = ""
    named: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    usual: Any = None
    instead: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The names to choose from, as far as help lists them."""
        return tuple(self.named) or getattr(self.check, "names", ())


def option(panel: str, help: str, **more: Any) -> dict[str, Option]:
    """The metadata of a field; the arguments are those of `Option`."""
    return {"option": Option(panel, help, **more)}


def checked(check: Callable[[str, Any], None] | None = None) -> dict[str, Option]:
    """The metadata of a field whose type and value `check_fields` checks, and that no command has as an option."""
    return option("", "", check=check)


def like(
    kind: type[DataclassInstance],
    name: str,
    *,
    default: Any = MISSING,
    required: bool = False,
    **changes: Any,
) -> Any:
    """The field of another configuration, with what is given here changed; ``required``: without a default."""
    field = kind.__dataclass_fields__[name]
    metadata = {"option": dataclasses.replace(option_of(field), **changes)}
    if required:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=field.default if default is MISSING else default, metadata=metadata)


def option_of(field: dataclasses.Field[Any]) -> Option:
    """What a field says about its option."""
    found: Option = field.metadata.get("option") or Option("", "")
    return found


@cache
def hints(kind: type) -> dict[str, Any]:
    """The types of the fields."""
    return get_type_hints(kind)


def check_fields(config: DataclassInstance) -> None:
    """Check the type of every field, and what its option says.

    Raises:
        TypeError: a value of another type than its field.
        ConfigError: a value that is not allowed.
    """
    kinds = hints(type(config))
    for field in dataclasses.fields(config):
        hint, value = kinds[field.name], getattr(config, field.name)
        # What has no option is checked by the class itself, but for the plainest types.
        if (hint in _WORDS or "option" in field.metadata) and not _fits(hint, value):
            got = f"{value!r} ({type(value).__name__})"
            raise TypeError(f"{field.name} must be {_words(hint)}, got {got}")
        check = option_of(field).check
        if check is not None and value is not None:
            check(field.name, value)


def documented(kind: type[C]) -> type[C]:
    """Add to the docstring of a configuration what its fields say."""
    lines = [f"    {field.name}: {explained(option_of(field))}" for field in dataclasses.fields(kind)]
    kind.__doc__ = "\n".join([inspect.cleandoc(kind.__doc__ or ""), "", "Attributes:", *lines])
    return kind


def explained(option: Option, *, more: bool = True) -> str:
    """Help in full sentences, with the choices."""
    names = f" Choices: {', '.join(option.names)}." if option.names else ""
    return f"{option.help}.{names}{f' {option.more}' if more and option.more else ''}"


def changed(config: C, changes: Mapping[str, Any], where: str = "") -> C:
    """A configuration with some fields replaced by what a file or the command line says.

    Args:
        config: The configuration.
        changes: Field -> value. A list stands for a tuple, a table for changes of a configuration inside, a name for one
            of the values that the option has by name.
        where: What messages begin with.

    Raises:
        ConfigError: an unknown field, a value of another type, or one that is not allowed.
    """
    fields = {field.name: field for field in dataclasses.fields(config)}
    kinds = hints(type(config))
    plain: dict[str, Any] = {}
    inside: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in fields:
            raise ConfigError(f"{where}key must be one of {', '.join(fields)}, got {name!r}")
        named = option_of(fields[name]).named
        if isinstance(value, Mapping):
            inside[name] = value
        elif named and isinstance(value, str):
            if value not in named:
                raise ConfigError(f"{where}{name} must be one of {', '.join(named)}, got {value!r}")
            plain[name] = named[value]
        else:
            plain[name] = _converted(kinds[name], value)
    made = _replaced(config, plain, where)
    for name, value in inside.items():
        before = getattr(made, name)
        if before is None and option_of(fields[name]).instead:
            before = getattr(made, option_of(fields[name]).instead)
        if not dataclasses.is_dataclass(before) or isinstance(before, type):
            raise ConfigError(f"{where}{name} must be {_words(kinds[name])}, got {value!r}")
        inside[name] = changed(before, value, f"{where}{name}." if where else "")
    return _replaced(made, inside, where)


def _replaced(config: C, values: Mapping[str, Any], where: str) -> C:
    try:
        return dataclasses.replace(config, **values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}{error}") from error


def read_file(path: Path, kind: str) -> dict[str, Any]:
    """What a configuration file says: TOML, or config.json of a folder of such a run, of which ``out`` is left out.

    Raises:
        ConfigError: it cannot be read, or is of another kind of run.
    """
    json_wanted = path.suffix == ".json"
    if not json_wanted:
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            with needed_for("a configuration in TOML"):
                import tomli as tomllib
    try:
        text = path.read_text(encoding="utf-8")
        content: Any = json.loads(text) if json_wanted else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"config must be a file, got {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: content must be {'JSON' if json_wanted else 'TOML'}: {error}") from error
    if not json_wanted:
        return dict(content)
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        raise ConfigError(f"{path}: content must be config.json of a run folder, or TOML in a file .toml")
    if content.get("kind", "run") != kind:
        raise ConfigError(f"{path}: kind must be {kind}, got {content['kind']!r}")
    return {name: value for name, value in content["config"].items() if name != "out"}


@dataclass(frozen=True)
class Place:
    """An option of a configuration. ``path`` leads to its field; ``name`` is unique, so that all can stand side by side."""

    name: str
    path: tuple[str, ...]
    hint: Any
    default: Any
    option: Option


def places(kind: type[DataclassInstance], default: Any = None, path: tuple[str, ...] = ()) -> Iterator[Place]:
    """All options of a configuration, and of those inside it."""
    for field in dataclasses.fields(kind):
        told, hint = option_of(field), hints(kind)[field.name]
        value = field.default if default is None else getattr(default, field.name)
        value = told.usual if value is None or value is MISSING else value
        inner = next((part for part in (hint, *get_args(hint)) if dataclasses.is_dataclass(part)), None)
        if told.panel and (inner is None or told.named):
            shown = next((name for name, other in told.named.items() if other == value), value)
            yield Place(
                told.flag or field.name, (*path, field.name), hint if inner is None else str, shown, told
            )
        if told.panel and isinstance(inner, type):
            yield from places(inner, value, (*path, field.name))


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value is of this type, for the types that configurations have."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(part, value) for part in arguments)
    if origin is Literal:
        return type(value) in {type(name) for name in arguments}
    if origin is tuple:
        several = len(arguments) == 2 and arguments[1] is Ellipsis
        if not isinstance(value, tuple) or not (several or len(value) == len(arguments)):
            return False
        return all(map(_fits, [arguments[0]] * len(value) if several else arguments, value))
    if origin is not None or hint is Any:
        return origin is not Callable or callable(value)
    if hint in (int, float):
        # A bool is an int to Python, and a mistake to us.
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    return isinstance(value, hint)


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a string",
    type(None): "None",
}


def _words(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_words, arguments))
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple and arguments[1:] == (Ellipsis,):
        parts = [_words(part).removeprefix("a ") for part in get_args(arguments[0]) or arguments[:1]]
        if get_origin(arguments[0]) is tuple:
            return f"a tuple of pairs ({', '.join(parts)})"
        return f"a tuple of {' or '.join(f'{part}s' for part in parts)}"
    if origin is not None:
        return "a function"
    return _WORDS.get(hint) or f"a {hint.__name__}"


def _converted(hint: Any, value: Any) -> Any:
    """What a file says, in the type of a field: tuples for lists, and a float for a whole number where one is meant."""
    for part in (hint, *get_args(hint)):
        if get_origin(part) is tuple and isinstance(value, list):
            kinds = get_args(part)
            several = kinds[1:] == (Ellipsis,) or len(kinds) != len(value)
            return tuple(map(_converted, [kinds[0]] * len(value) if several else kinds, value))
    return float(value) if hint is float and type(value) is int else value
