"""From parsed JSON to frozen dataclasses, by their type hints, naming the place of whatever does not fit."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints


def decode(hint: Any, value: Any, where: str) -> Any:
    """Build what ``hint`` asks for: a dataclass, dict, tuple, int, float or str, or a union of int and tuple.

    Args:
        hint: The type.
        value: What :func:`json.loads` gave for it.
        where: Its place in the file, for messages.

    Raises:
        ValueError: a field is missing or unknown, or a value has another type.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, dict):
        hints = get_type_hints(hint)
        names = {field.name for field in fields(hint) if field.compare}  # others are not in files
        if wrong := names.symmetric_difference(value):
            raise ValueError(f"{where}: missing or unknown fields {sorted(wrong)}")
        return hint(**{name: decode(hints[name], value[name], f"{where}.{name}") for name in sorted(names)})
    if origin is dict and isinstance(value, dict):
        return {
            _key(arguments[0], k, where): decode(arguments[1], v, f"{where}[{k!r}]") for k, v in value.items()
        }
    if origin is tuple and isinstance(value, list):
        return tuple(decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is UnionType:
        hint = next(h for h in arguments if (get_origin(h) is tuple) == isinstance(value, list))
        return decode(hint, value, where)
    if hint is float and type(value) is int:
        return float(value)
    if hint in (int, float, str) and type(value) is hint:
        return value
    raise ValueError(f"{where}: expected {hint}, got {value!r:.60}")


def _key(hint: Any, key: str, where: str) -> Any:
    if hint is not int:
        return key
    if not key.isdecimal():
        raise ValueError(f"{where}: expected a number for a key, got {key!r}")
    return int(key)
