"""Files of Label Studio: tasks with predictions, and its export read back."""

from __future__ import annotations

import json
import os
from urllib.parse import unquote

import pytest
from labeling_projects import DARK, LIGHT, write_image, write_images

from prunefuse.errors import ConfigError
from prunefuse.experiment.labeling import labels, project
from prunefuse.experiment.labeling.config import LabelConfig
from prunefuse.experiment.labeling.work import next_batch
from prunefuse.training import Recipe


@pytest.fixture
def made(tmp_path):
    images = write_images(tmp_path / "my images", count=8, beside=(DARK, LIGHT))
    config = LabelConfig(model="mlp", recipe=Recipe(epochs=2, batch_size=4), device="cpu", threads=1)
    project.start(tmp_path / "project", images, config=config)
    return tmp_path / "project"


def exported(tasks, choices, by=7):
    """What Label Studio's export as JSON has of these tasks, with a choice for each; None was skipped."""
    return [
        {
            **task,
            "id": number,
            "project": 1,
            "annotations": [
                {
                    "id": number,
                    "completed_by": by,
                    "was_cancelled": choice is None,
                    "ground_truth": False,
                    "result": []
                    if choice is None
                    else [
                        {
                            "id": "x1",
                            "type": "choices",
                            "from_name": "choice",
                            "to_name": "image",
                            "value": {"choices": [choice]},
                        }
                    ],
                }
            ],
        }
        for number, (task, choice) in enumerate(zip(tasks, choices, strict=True), 1)
    ]


def test_tasks_have_predictions_and_the_export_is_read_back(made, tmp_path):
    batch = next_batch(made, 4, tmp_path / "tasks.json")
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert [task["data"]["path"] for task in tasks] == [pick.path for pick in batch.picks]
    assert not list(tmp_path.glob("*.html"))
    for task in tasks:
        image = task["data"]["image"]
        assert image.startswith("/data/local-files/?d=my%20images/")
        assert unquote(image.partition("?d=")[2]) == f"my images/{task['data']['path']}"
        [prediction] = task["predictions"]
        [result] = prediction["result"]
        assert 0.5 <= prediction["score"] <= 1
        assert (result["type"], result["from_name"], result["to_name"]) == ("choices", "choice", "image")
        assert result["value"]["choices"][0] in (DARK, LIGHT)
    for by, choices in (
        (7, [DARK, "?", None, LIGHT]),
        ({"id": 8, "email": "b@x.org"}, [DARK, DARK, None, None]),
    ):
        (tmp_path / "export.json").write_text(json.dumps(exported(tasks, choices, by)))
        labels.import_labels(made, tmp_path / "export.json")
    votes = project.find(made).read().votes
    told = {path: {by: vote.label for by, vote in own.items()} for path, own in votes.items()}
    paths = [pick.path for pick in batch.picks]
    assert told == {
        paths[0]: {"7": DARK, "b@x.org": DARK},
        paths[1]: {"7": "?", "b@x.org": DARK},
        paths[3]: {"7": LIGHT},
    }


def test_wrong_tasks_are_named_and_nothing_is_taken(made, tmp_path):
    next_batch(made, 3, tmp_path / "tasks.json")
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    file = tmp_path / "export.json"
    several = exported(tasks, [DARK, LIGHT, "cat"])
    file.write_text(json.dumps(several))
    with pytest.raises(ConfigError, match="task 3: label must be one of dark, light"):
        labels.import_labels(made, file)
    several[1]["annotations"][0]["result"][0]["value"]["choices"] = [DARK, LIGHT]
    file.write_text(json.dumps([*several, {"path": "a.png", "choice": DARK}]))
    with pytest.raises(ConfigError) as error:
        labels.import_labels(made, file)
    assert "task 2: " in str(error.value)
    assert "must have one choice, got dark, light" in str(error.value)
    assert "task 4: must have data.path and annotations, as JSON, not JSON-MIN, has" in str(error.value)
    for content, message in (("{}", "must be a list of tasks"), ("[", "must be JSON")):
        file.write_text(content)
        with pytest.raises(ConfigError, match=message):
            labels.import_labels(made, file)
    assert not project.find(made).read().votes


def test_names_in_any_encoding_go_through_every_file(tmp_path):
    names = [os.fsdecode(name) for name in (b"a\xff.png", b"new\nline.png", b"b .png", 'c,"ü".png'.encode())]
    for number, name in enumerate(names):
        write_image(tmp_path / "plain" / f"{number}.png", 60 * number)
        os.makedirs(tmp_path / "images", exist_ok=True)
        os.rename(tmp_path / "plain" / f"{number}.png", tmp_path / "images" / name)
    project.start(tmp_path / "project", tmp_path / "images", classes=[DARK, LIGHT])
    for ending in ("csv", "json"):
        next_batch(tmp_path / "project", 10, tmp_path / f"batch.{ending}")
    tasks = json.loads((tmp_path / "batch.json").read_text())
    assert {task["data"]["path"] for task in tasks} == set(names)
    assert unquote(tasks[0]["data"]["image"], errors="surrogateescape").endswith(tasks[0]["data"]["path"])
    content = (tmp_path / "batch.csv").read_bytes()
    (tmp_path / "batch.csv").write_bytes(content.replace(b",,,\n", b"," + DARK.encode() + b",anna,\n"))
    labels.import_labels(tmp_path / "project", tmp_path / "batch.csv")
    assert labels.status(tmp_path / "project").labels == {DARK: 4, LIGHT: 0}
    assert labels.export(tmp_path / "project", tmp_path / "labels.csv") == 4
    assert os.fsencode(names[0]) in (tmp_path / "labels.csv").read_bytes()
