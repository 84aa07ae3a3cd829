"""Batches as tasks of Label Studio, and its export read back: files alone, in its own JSON formats.

Tasks have predictions where there is a network. An export is of the kind that Label Studio names JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from prunefuse.errors import ConfigError
from prunefuse.experiment.labeling.project import Project
from prunefuse.experiment.labeling.table import Row, refuse

if TYPE_CHECKING:
    from prunefuse.experiment.labeling.work import Pick

_CHOICE, _IMAGE = "choice", "image"  # the names of the tags in a labeling configuration


def tasks(project: Project, picks: Sequence[Pick]) -> str:
    """The tasks of a batch, for images that Label Studio serves from the folder above theirs."""
    return json.dumps([_task(project, pick) for pick in picks], indent=1) + "\n"


def rows(content: bytes, path: Path) -> tuple[Row, ...]:
    """The labels of an export, a row for each annotation; what was skipped is not labeled yet.

    Raises:
        ConfigError: it is not such an export, or an annotation has not one choice; names each task.
    """
    try:
        told = json.loads(content)
    except ValueError as error:
        raise ConfigError(f"{path}: content must be JSON: {error}") from error
    if not isinstance(told, list) or not all(isinstance(task, dict) for task in told):
        raise ConfigError(f"{path}: content must be a list of tasks, as Label Studio exports as JSON")
    found, wrong = list[Row](), list[str]()
    for number, task in enumerate(told, 1):
        data = task.get("data")
        place = data.get("path") if isinstance(data, dict) else None
        if not isinstance(place, str) or not isinstance(task.get("annotations"), list):
            wrong.append(
                f"{path}, task {number}: must have data.path and annotations, as JSON, not JSON-MIN, has"
            )
            continue
        for annotation in task["annotations"]:
            choices = _choices(annotation)
            if len(choices) > 1:
                wrong.append(f"{path}, task {number}: {place} must have one choice, got {', '.join(choices)}")
            else:
                by, index = _annotator(annotation.get("completed_by")), str(data.get("index", ""))
                found.append(Row(f"task {number}", place, "".join(choices).strip(), by, index=index))
    refuse(wrong, path)
    return tuple(found)


def _task(project: Project, pick: Pick) -> dict[str, Any]:
    data = {
        _IMAGE: f"/data/local-files/?d={quote(f'{project.base.name}/{pick.path}', errors='surrogateescape')}",
        "path": pick.path,
        "index": project.index[pick.path],
        "utility": pick.utility,
        "why": pick.why,
    }
    if not pick.predicted:
        return {"data": data}
    choice = {
        "type": "choices",
        "from_name": _CHOICE,
        "to_name": _IMAGE,
        "value": {"choices": [pick.predicted]},
    }
    prediction = {"model_version": "prunefuse", "score": pick.probability, "result": [choice]}
    return {"data": data, "predictions": [prediction]}


def _choices(annotation: Mapping[str, Any]) -> list[str]:
    """The choices of an annotation; none of one that was skipped."""
    if annotation.get("was_cancelled"):
        return []
    results = [one for one in annotation.get("result", []) if one.get("type") == "choices"]
    return [str(choice) for one in results for choice in one.get("value", {}).get("choices", [])]


def _annotator(told: Any) -> str:
    """Who completed an annotation: an address where the export has it, else the number of the user."""
    if isinstance(told, dict):
        told = told.get("email") or told.get("id")
    return "" if told is None else str(told)
