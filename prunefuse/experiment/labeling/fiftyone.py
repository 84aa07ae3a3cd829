"""Batches for FiftyOne and its samples read back: the file ``samples.json`` of its own dataset formats.

A prediction is the field ``predicted``, a label the field ``ground_truth``, both of its kind ``Classification``. Tags of a
sample that are names of classes are labels as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunefuse.errors import ConfigError
from prunefuse.experiment.labeling.journal import CANNOT_TELL
from prunefuse.experiment.labeling.project import Project
from prunefuse.experiment.labeling.table import Pick, Row, refuse

_LABEL = "ground_truth"


def text(project: Project, picks: Sequence[Pick]) -> str:
    """The samples of a batch. ``path`` is the path in the project, which stays what it is where FiftyOne copies files."""
    return json.dumps({"samples": [_sample(project, pick) for pick in picks]}, indent=1) + "\n"


def rows(content: bytes, path: Path, project: Project) -> tuple[Row, ...]:
    """The labels of samples; those without are not labeled yet.

    Raises:
        ConfigError: it is no such file, or a sample has several labels; names each sample.
    """
    told = _json(content, path)
    samples = told.get("samples") if isinstance(told, dict) else None
    if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
        raise ConfigError(f"{path}: content must have samples, as samples.json of FiftyOne")
    found, wrong = list[Row](), list[str]()
    for number, sample in enumerate(samples, 1):
        where = f"sample {number}"
        place = sample.get("path") or sample.get("filepath")
        field = sample.get(_LABEL)
        if not isinstance(place, str) or not isinstance(sample.get("tags", []), list):
            wrong.append(f"{path}, {where}: must have a filepath, and tags as a list")
            continue
        if field is not None and not _is_classification(field):
            wrong.append(f"{path}, {where}: {_LABEL} of {place} must be a Classification")
            continue
        labels = {tag for tag in sample.get("tags", []) if tag in (*project.classes, CANNOT_TELL)}
        labels |= {str(field["label"]).strip()} if field and field.get("label") is not None else set()
        if len(labels) > 1:
            wrong.append(f"{path}, {where}: {place} must have one label, got {', '.join(sorted(labels))}")
        else:
            found.append(Row(where, place, "".join(labels)))
    refuse(wrong, path)
    return tuple(found)


def recognizes(content: bytes) -> bool:
    """Whether JSON is of this kind, and not a list as that of other tools."""
    return b'"samples"' in content and content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")


def _json(content: bytes, path: Path) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise ConfigError(f"{path}: content must be JSON: {error}") from error


def _is_classification(field: Any) -> bool:
    return isinstance(field, dict) and field.get("_cls") == "Classification"


def _sample(project: Project, pick: Pick) -> Mapping[str, Any]:
    sample: dict[str, Any] = {
        "filepath": str(project.base / pick.path),
        "tags": ["prunefuse"],
        "path": pick.path,
        "index": project.index[pick.path],
        "utility": pick.utility,
        "why": pick.why,
    }
    if pick.predicted:
        sample["predicted"] = _classification(pick.predicted, pick.probability)
    if pick.label:
        sample[_LABEL] = _classification(pick.label, None)
    return sample


def _classification(label: str, confidence: float | None) -> Mapping[str, Any]:
    return {"_cls": "Classification", "tags": [], "label": label, "confidence": confidence}
