"""Batches as tasks of Label Studio, and its export read back: files alone, in its own JSON formats.

Tasks have predictions where there is a network. An export is of the kind that Label Studio names JSON, or JSON-MIN.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from prunefuse.errors import ConfigError
from prunefuse.experiment.labeling.answers import CANNOT_TELL, NONE, SEPARATOR, parts
from prunefuse.experiment.labeling.project import Project
from prunefuse.experiment.labeling.table import Pick, Row, refuse

_CHOICE, _IMAGE, _TEXT = "choice", "image", "text"  # the names of the tags in a labeling configuration


def text(project: Project, picks: Sequence[Pick]) -> str:
    """The tasks of a batch, for images that Label Studio serves from the folder above theirs."""
    return json.dumps([_task(project, pick) for pick in picks], indent=1) + "\n"


def rows(content: bytes, path: Path, project: Project) -> tuple[Row, ...]:
    """The labels of an export, a row for each annotation; what was skipped is not labeled yet.

    Raises:
        ConfigError: it is not such an export, or an annotation has not one choice; names each task.
    """
    try:
        told = json.loads(content)
    except ValueError as error:
        raise ConfigError(f"{path}: content must be JSON: {error}") from error
    if not isinstance(told, list) or not all(isinstance(task, dict) for task in told):
        raise ConfigError(
            f"{path}: content must be a list of tasks, as Label Studio exports as JSON or JSON-MIN"
        )
    if told and all("data" not in task for task in told) and all(_CHOICE not in task for task in told):
        raise ConfigError(
            f"{path}: tasks must have data, or a {_CHOICE} as in JSON-MIN, got {', '.join(told[0])}"
        )
    found, wrong = list[Row](), list[str]()
    for number, task in enumerate(told, 1):
        # JSON-MIN has the data itself, and the choice of one annotation.
        short = "data" not in task
        data = task if short else task["data"]
        place = data.get(project.source.key) if isinstance(data, dict) else None
        annotations = [task] if short else task.get("annotations")
        if not isinstance(place, str) or not isinstance(annotations, list):
            key = project.source.key
            wrong.append(f"{path}, task {number}: must have data.{key} and annotations, or {key} in JSON-MIN")
            continue
        for annotation in annotations:
            choices = _short(task.get(_CHOICE)) if short else _choices(annotation)
            if len(choices) > 1 and not project.several:
                wrong.append(f"{path}, task {number}: {place} must have one choice, got {', '.join(choices)}")
            else:
                by = _annotator(annotation.get("annotator" if short else "completed_by"))
                index = str(data.get("index", ""))
                label = SEPARATOR.join(choice.strip() for choice in choices)
                found.append(Row(f"task {number}", place, label, by, index=index))
    refuse(wrong, path)
    return tuple(found)


def _task(project: Project, pick: Pick) -> dict[str, Any]:
    if project.texts is None:
        place = quote(f"{project.base.name}/{pick.path}", errors="surrogateescape")
        shown = {_IMAGE: f"/data/local-files/?d={place}"}
    else:
        shown = {_TEXT: project.texts.seen(pick.path)}
    data = {
        **shown,
        project.source.key: pick.path,
        "index": project.index[pick.path],
        "utility": pick.utility,
        "why": pick.why,
    }
    task: dict[str, Any] = {"data": data}
    if pick.predicted:
        result = [_choice(project, pick.predicted)]
        task["predictions"] = [{"model_version": "prunefuse", "score": pick.probability, "result": result}]
    if pick.label:
        task["annotations"] = [{"result": [_choice(project, pick.label)]}]
    return task


def _choice(project: Project, label: str) -> dict[str, Any]:
    choices = parts(label) if project.several and label not in (NONE, CANNOT_TELL) else [label]
    shown = _IMAGE if project.texts is None else _TEXT
    return {"type": "choices", "from_name": _CHOICE, "to_name": shown, "value": {"choices": choices}}


def _choices(annotation: Mapping[str, Any]) -> list[str]:
    """The choices of an annotation; none of one that was skipped."""
    if annotation.get("was_cancelled"):
        return []
    results = [one for one in annotation.get("result", []) if one.get("type") == "choices"]
    return [str(choice) for one in results for choice in one.get("value", {}).get("choices", [])]


def _short(told: Any) -> list[str]:
    """The choices of JSON-MIN: a name where there is one, else an object or a list of them."""
    if isinstance(told, dict):
        told = told.get("choices")
    if isinstance(told, list):
        return [str(choice) for choice in told]
    return [] if told is None else [str(told)]


def _annotator(told: Any) -> str:
    """Who completed an annotation: an address where the export has it, else the number of the user."""
    if isinstance(told, dict):
        told = told.get("email") or told.get("id")
    return "" if told is None else str(told)
