"""Batches for FiftyOne and its samples read back: the file ``samples.json`` of its own dataset formats.

A prediction is the field ``predicted``, a label the field ``ground_truth``, both of its kind ``Classification``, or
``Classifications`` where a sample may have several. Tags of a sample that are names of classes are labels as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunefuse.errors import ConfigError
from prunefuse.experiment.labeling.answers import CANNOT_TELL, joined, parts
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
        said = _labels(field, several=project.several)
        if said is None:
            kind = "Classifications" if project.several else "a Classification"
            wrong.append(f"{path}, {where}: {_LABEL} of {place} must be {kind}")
            continue
        labels = {tag for tag in sample.get("tags", []) if tag in (*project.classes, CANNOT_TELL)} | said
        if project.several:
            empty = joined([]) if field is not None else ""
            found.append(Row(where, place, joined(sorted(labels)) if labels else empty))
        elif len(labels) > 1:
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


def _labels(field: Any, *, several: bool) -> set[str] | None:
    """The labels of a field; None where it is of another kind."""
    if field is None:
        return set()
    if isinstance(field, dict) and field.get("_cls") == "Classification":
        return set() if field.get("label") is None else {str(field["label"]).strip()}
    inside = field.get("classifications") if isinstance(field, dict) else None
    if not several or not isinstance(inside, list):
        return None
    every = [_labels(one, several=False) for one in inside]
    return None if None in every else {name for one in every if one is not None for name in one}


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
        sample["predicted"] = _field(project, pick.predicted, pick.probability)
    if pick.label:
        sample[_LABEL] = _field(project, pick.label, None)
    return sample


def _field(project: Project, answer: str, confidence: float | None) -> Mapping[str, Any]:
    if not project.several or answer == CANNOT_TELL:
        return _classification(answer, confidence)
    inside = [_classification(name, None) for name in parts(answer)]
    return {"_cls": "Classifications", "classifications": inside}


def _classification(label: str, confidence: float | None) -> Mapping[str, Any]:
    return {"_cls": "Classification", "tags": [], "label": label, "confidence": confidence}
