"""Results for machines: one JSON file with what was measured, where, when and how."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from prunefuse import _files as files
from prunefuse.bench.race import Line, Result
from prunefuse.experiment.machine import describe_machine, describe_versions

_FORMAT, _VERSION = "prunefuse benchmark", 1
_PEERS = (
    "scipy",
    "scikit-learn",
    "modAL-python",
    "scikit-activeml",
    "baal",
    "small-text",
    "torch-pruning",
    "timm",
    "triton",
)


def default_name(device: torch.device) -> str:
    """A file name for this machine, such as ``amd-epyc-2-cores.json``."""
    return name_of(describe_machine(device))


def name_of(facts: Mapping[str, Any]) -> str:
    """A file name for the machine of these `describe_machine`."""
    cores = f" {facts['cores']} cores" if facts["device"] == "cpu" else ""
    return re.sub(r"[^a-z0-9]+", "-", f"{facts['device_name']}{cores}".lower()).strip("-") + ".json"


def require_new(path: Path) -> Path:
    """``path``, which must not be there yet; FileExistsError otherwise: results are never replaced."""
    if path.exists():
        raise FileExistsError(f"{path} is there already: name another file, or remove it")
    return path


def save(
    path: Path, results: Sequence[Result], command: str, device: torch.device, more: Mapping[str, Any] = {}
) -> None:
    """Writes the results as JSON.

    Args:
        path: A file that does not exist.
        results: Of the cases.
        command: What was called.
        device: What it ran on.
        more: Further JSON, by name.

    Raises:
        FileExistsError: there is such a file.
        OSError: it cannot be written.
    """
    content = {
        **header(command, device),
        "results": [dataclasses.asdict(result) for result in results],
        **more,
    }
    files.write_json(require_new(path), content)


def load(path: Path) -> tuple[dict[str, Any], list[Result]]:
    """What `save` wrote: all of it as JSON, and the results.

    Raises:
        ValueError: it is no file of this format.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if (
        not isinstance(content, dict)
        or content.get("format") != _FORMAT
        or content.get("version") != _VERSION
    ):
        raise ValueError(f"{path} must be a file of format {_FORMAT!r}, version {_VERSION}, and is not")
    results = []
    for one in content["results"]:
        lines = tuple(Line(**{**line, "seconds": tuple(line["seconds"])}) for line in one["lines"])
        results.append(Result(**{**one, "lines": lines}))
    return content, results


def header(command: str, device: torch.device) -> dict[str, Any]:
    """When, where and how it was measured."""
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command,
        "machine": describe_machine(device),
        "versions": {**describe_versions(), **_versions_of_peers()},
    }


def _versions_of_peers() -> dict[str, str]:
    found = {}
    for name in _PEERS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
