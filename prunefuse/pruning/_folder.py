"""The folder of a small model: its weights, the plan, and the name of the function that builds the dense one."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prunefuse import _files as files
from prunefuse._options import require, require_type
from prunefuse.pruning._graph.copies import all_names

WEIGHTS, PLAN, MODEL = "weights.safetensors", "plan.json", "model.json"
FORMAT, VERSION = "prunefuse model", 1
_EXPECTED = "package.module:function"


def write(folder: str | os.PathLike[str], small: nn.Module, plan: str, factory: str | None) -> Path:
    """Make the folder.

    Args:
        folder: Where.
        small: The small model.
        plan: The content of the plan's file.
        factory: The name of what builds the dense model, if there is one.

    Raises:
        TypeError, ValueError, OSError: As of ``PruningPlan.save_model``.
    """
    require_type(folder, (str, os.PathLike), "folder", "a path")
    if factory is not None:
        _check_name(factory)
    weights = _each_once(small)
    with files.new_folder(folder) as temporary:
        (temporary / PLAN).write_bytes(files.utf8(plan))
        content = {"format": FORMAT, "version": VERSION, "factory": factory}
        (temporary / MODEL).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        (temporary / WEIGHTS).write_bytes(files.tensor_bytes(weights))
    return Path(folder)


def read_factory(folder: Path) -> str | None:
    """The name of what builds the dense model; None if the folder has none.

    Raises:
        ValueError: The file with the name is damaged.
    """
    path = folder / MODEL
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not the description of a model: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path}: not the description of a model")
    if (version := content.get("version")) != VERSION:
        raise ValueError(f"{path}: version of a model must be {VERSION}, got {version!r}")
    factory = content.get("factory")
    if factory is not None and not (isinstance(factory, str) and _is_name(factory)):
        raise ValueError(f"{path}: factory must be {_EXPECTED}, got {factory!r}")
    return factory


def imported(factory: str) -> Callable[[], nn.Module]:
    """What a name stands for; this runs the code of its module.

    Raises:
        ValueError: There is no such module, or no such function in it.
    """
    module, _, names = factory.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in names.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"factory must be a function that can be imported, got {factory!r}: {error}"
        ) from error
    build: Callable[[], nn.Module] = found
    return build


def _is_name(factory: str) -> bool:
    return re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*", factory) is not None


def _check_name(factory: str) -> None:
    """Raise unless a name can be imported, so far as that can be told without running a module again."""
    require_type(factory, str, "factory", f"the name {_EXPECTED}")
    require(_is_name(factory), "factory", _EXPECTED, factory)
    name = factory.partition(":")[0]
    if name == "__main__":
        raise ValueError(
            f"factory must be of a module that other programs can import, got {factory!r}, the program that runs"
        )
    module = sys.modules.get(name)
    try:
        known = module is not None or importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a package above it is missing, or is a module
        known = False
    if not known:
        raise ValueError(f"factory must be of a module that can be found, got {factory!r}")
    if module is not None:
        imported(factory)


def _each_once(small: nn.Module) -> dict[str, Tensor]:
    """What the model saves, a tensor with several names under the first of these."""
    state = small.state_dict()
    if odd := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"small must have nothing but tensors in its state, got {', '.join(odd[:3])}")
    if bare := [name for name, value in state.items() if value.is_meta]:
        raise ValueError(f"small must have values, got {', '.join(bare[:3])} on the meta device")
    first: dict[str, str] = {}
    for name, (one, _) in all_names(small).items():
        if name in state:
            first.setdefault(one, name)
    tied = {name for name, (one, _) in all_names(small).items() if first.get(one, name) != name}
    return {name: value for name, value in state.items() if name not in tied}
