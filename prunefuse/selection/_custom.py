"""A user's own function, by where it stands: for the command line and for run folders."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def load_function(place: str, option: str = "strategy") -> Callable[..., Any]:
    """The function at ``package.module:name`` or ``path/to/file.py:name``. Its module is run.

    Args:
        place: Where it stands.
        option: What it is given for.

    Raises:
        ValueError: there is no such module, file or function; the message says which.
    """
    where, _, name = place.rpartition(":")
    try:
        if where.endswith(".py"):
            # Not by its own name: a file wandb.py may import the package of that name.
            own = f"_prunefuse_{Path(where).stem}"
            spec = importlib.util.spec_from_file_location(own, Path(where).expanduser())
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[own] = module  # which dataclasses look for
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
    except (ImportError, OSError, SyntaxError) as error:
        raise ValueError(f"{option} must be a function that can be loaded, got {place}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{option} must name a function of {where}, got {name!r}")
    return function  # type: ignore[no-any-return]
