"""Packages whose names are loaded when they are first used: importing them costs next to nothing, and no torch."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any


def lazily(
    package: str, names: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package; its own packages are attributes, too.

    Args:
        package: Its ``__name__``.
        names: Module of the package -> its names that the package offers, separated by spaces.
    """
    homes = {name: f"{package}.{module}" for module, offered in names.items() for name in offered.split()}

    def load(name: str) -> Any:
        if name in homes:
            value = getattr(importlib.import_module(homes[name]), name)
            setattr(sys.modules[package], name, value)
            return value
        if not name.startswith("_") and find_spec(f"{package}.{name}") is not None:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def known() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return load, known, list(homes)
