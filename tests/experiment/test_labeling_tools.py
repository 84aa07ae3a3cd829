"""Files of other tools: batches with predictions, and what the tools make of them read back."""

from __future__ import annotations

import csv
import io
import json
import os
import zipfile
from urllib.parse import unquote
from xml.etree import ElementTree

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
    file.write_text(json.dumps([*several, {"id": 4, "choice": DARK}]))
    with pytest.raises(ConfigError) as error:
        labels.import_labels(made, file)
    assert "task 2: " in str(error.value)
    assert "must have one choice, got dark, light" in str(error.value)
    assert "task 4: must have data.path and annotations, or path in JSON-MIN" in str(error.value)
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
    for ending in ("csv", "json", "jsonl"):
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


def said(made):
    """Path -> label of the votes."""
    return {
        path: vote.label for path, own in project.find(made).read().votes.items() for vote in own.values()
    }


def minimal(tasks, choices):
    """What Label Studio's export as JSON-MIN has: the data, and the choice without its result."""
    facts = {"annotator": 3, "annotation_id": 5, "created_at": "2026-01-01T00:00:00Z", "lead_time": 1.5}
    return [
        {**task["data"], "id": number, **facts, **({} if choice is None else {"choice": choice})}
        for number, (task, choice) in enumerate(zip(tasks, choices, strict=True), 1)
    ]


def test_label_studio_as_json_min(made, tmp_path):
    batch = next_batch(made, 4, tmp_path / "tasks.json")
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    paths = [pick.path for pick in batch.picks]
    file = tmp_path / "min.json"
    file.write_text(json.dumps(minimal(tasks, [DARK, {"choices": ["?"]}, None, [LIGHT]])))
    labels.import_labels(made, file)
    assert said(made) == {paths[0]: DARK, paths[1]: "?", paths[3]: LIGHT}
    assert set(project.find(made).read().votes[paths[0]]) == {"3"}
    for choices, message in (
        ([{"choices": [DARK, LIGHT]}, None, None, None], "task 1: .* must have one choice, got dark, light"),
        ([None] * 4, "tasks must have data, or a choice as in JSON-MIN"),
        ([DARK, "cat", None, None], "task 2: label must be one of"),
    ):
        file.write_text(json.dumps(minimal(tasks, choices)))
        with pytest.raises(ConfigError, match=message):
            labels.import_labels(made, file)
    assert len(said(made)) == 3


def annotate(text, choices, source="manual"):
    """What CVAT exports once people have put these tags on the images."""
    root = ElementTree.fromstring(text)
    for image, choice in zip(root.iter("image"), choices, strict=True):
        for label in choice or ():
            ElementTree.SubElement(image, "tag", {"label": label, "source": source})
    return ElementTree.tostring(root, "utf-8", xml_declaration=True)


def test_cvat_for_images(made, tmp_path):
    batch = next_batch(made, 4, tmp_path / "batch.xml", person="anna")
    text = (tmp_path / "batch.xml").read_text()
    root = ElementTree.fromstring(text)
    assert root.findtext("version") == "1.1"
    assert [name.text for name in root.iterfind("meta/task/labels/label/name")] == [DARK, LIGHT, "?"]
    paths = [pick.path for pick in batch.picks]
    assert [image.get("name") for image in root.iter("image")] == paths
    assert {(image.get("width"), image.get("height")) for image in root.iter("image")} == {("8", "8")}
    assert [[tag.attrib for tag in image] for image in root.iter("image")] == [
        [{"label": pick.predicted, "source": "auto"}] for pick in batch.picks
    ]
    assert not list(tmp_path.glob("*.html"))
    # A prediction is no label; a tag of a person beside it is.
    done = labels.import_labels(made, tmp_path / "batch.xml")
    assert (done.new, done.empty) == (0, 4)
    content = annotate(text, [[DARK], ["?"], None, [LIGHT]])
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        archive.writestr("annotations.xml", content)
    labels.import_labels(made, tmp_path / "export.zip", annotator="ben")
    assert said(made) == {paths[0]: DARK, paths[1]: "?", paths[3]: LIGHT}
    # Files that were uploaded by name alone, and paths from the folder above.
    short = content.replace(f'name="{paths[2]}"'.encode(), f'name="{paths[2].rpartition("/")[2]}"'.encode())
    longer = short.replace(f'name="{paths[0]}"'.encode(), f'name="my images/{paths[0]}"'.encode())
    who = b"<task><assignee><username>cleo</username></assignee>"
    (tmp_path / "export.xml").write_bytes(longer.replace(b"<task>", who, 1))
    assert labels.import_labels(made, tmp_path / "export.xml", annotator="ben").new == 3
    assert labels.status(made).annotators == {"ben": 3, "cleo": 3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<annotations><image id='0' name='unlabeled/00.png'><tag label='dark'/><tag label='light'/></image>"
         b"<image name='unlabeled/00.png'><box label='dark'/><tag label='dark'/></image></annotations>",
         "image 1: unlabeled/00.png must have one tag, got dark, light\n.*image 2: .* must have tags alone, has box"),
        (b"<annotations><image name='x.png'><tag label='cat'/></image></annotations>", "image 1: path must be of an image"),
        (b"<annotations><image name='unlabeled/00.png'><tag label='cat'/></image></annotations>", "label must be one of"),
        (b"<annotations><track id='0'/></annotations>", "got tracks of a video"),
        (b"<annotation/>", "must be XML of CVAT for images 1.1, got <annotation>"),
        (b"<annotations>", "must be XML of CVAT"),
        (b"", "must be XML of CVAT"),
        (b"<!DOCTYPE a [<!ENTITY b 'c'>]><annotations/>", "with a document type"),
        (b"PK\3\4", "or an archive with annotations.xml"),
    ],
)  # fmt: skip
def test_other_xml_is_refused_with_every_wrong_image(made, tmp_path, content, message):
    (tmp_path / "export.xml").write_bytes(content)
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        labels.import_labels(made, tmp_path / "export.xml")
    assert not said(made)


def test_names_that_xml_cannot_hold_are_refused(tmp_path):
    write_image(tmp_path / "plain.png", 60)
    (tmp_path / "images").mkdir()
    for name in (b"a\xff.png", b"b.png"):
        os.link(tmp_path / "plain.png", os.path.join(os.fsencode(tmp_path / "images"), name))
    project.start(tmp_path / "project", tmp_path / "images", classes=[DARK, LIGHT])
    with pytest.raises(ConfigError, match="must have names that XML can hold, got"):
        next_batch(tmp_path / "project", 2, tmp_path / "batch.xml")


def test_fiftyone(made, tmp_path):
    file = tmp_path / "samples.json"
    batch = next_batch(made, 5, file, format="fiftyone")
    samples = json.loads(file.read_text())["samples"]
    for sample, pick in zip(samples, batch.picks, strict=True):
        assert sample["filepath"] == str(tmp_path / "my images" / pick.path)
        assert sample["tags"] == ["prunefuse"]
        assert sample["predicted"] | {"tags": []} == {
            "_cls": "Classification", "label": pick.predicted, "confidence": pick.probability, "tags": [],
        }  # fmt: skip
    paths = [pick.path for pick in batch.picks]
    # As FiftyOne exports them: with ids, and files that were copied to another place.
    for number, sample in enumerate(samples):
        sample |= {"_id": {"$oid": f"{number:024}"}, "filepath": f"data/{number}.png", "metadata": None}
    samples[0]["ground_truth"] = {"_cls": "Classification", "label": DARK, "confidence": None}
    samples[1]["tags"] += [LIGHT, "reviewed"]
    samples[2]["tags"] += ["?"]
    samples[3] |= {"tags": [DARK], "ground_truth": {"_cls": "Classification", "label": DARK}}
    file.write_text(json.dumps({"samples": samples}))
    labels.import_labels(made, file, annotator="anna")
    assert said(made) == {paths[0]: DARK, paths[1]: LIGHT, paths[2]: "?", paths[3]: DARK}
    samples[0]["tags"] += [LIGHT]
    samples[1]["ground_truth"] = {"_cls": "Detections", "detections": []}
    samples[2]["path"] = samples[2]["filepath"] = None
    file.write_text(json.dumps({"samples": samples}))
    with pytest.raises(ConfigError) as error:
        labels.import_labels(made, file)
    lines = str(error.value).splitlines()
    assert [line.partition(", ")[2].partition(":")[0] for line in lines[:3]] == [
        "sample 1",
        "sample 2",
        "sample 3",
    ]
    for content in ("{}", '{"samples": 3}', "{"):
        file.write_text(content)
        with pytest.raises(ConfigError, match="content must"):
            labels.import_labels(made, file)


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_hugging_face_datasets(made, tmp_path, name):
    file = tmp_path / name
    batch = next_batch(made, 4, file, format="huggingface")
    paths = [pick.path for pick in batch.picks]

    def read():
        return [json.loads(line) for line in file.read_text().splitlines()] if name.endswith("l") else list(
            csv.DictReader(io.StringIO(file.read_text()))
        )  # fmt: skip

    def write(rows):
        if name.endswith("l"):
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            with file.open("w", newline="") as opened:
                writer = csv.DictWriter(opened, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)

    rows = read()
    assert list(rows[0]) == [
        "file_name",
        "index",
        "utility",
        "predicted",
        "why",
        "label",
        "annotator",
        "note",
    ]
    assert [row["file_name"] for row in rows] == paths
    assert [float(row["utility"]) for row in rows] == pytest.approx(
        [pick.utility for pick in batch.picks], rel=1e-5
    )
    assert {row["label"] for row in rows} <= {None, ""}
    rows[0] |= {"label": DARK, "annotator": "anna", "note": "blurred"}
    rows[1] |= {"label": "?"}
    write(rows)
    labels.import_labels(made, file)
    assert said(made) == {paths[0]: DARK, paths[1]: "?"}
    rows[2] |= {"label": "cat"}
    rows[3] |= {"file_name": "nowhere.png"}
    write(rows)
    with pytest.raises(ConfigError, match=r"(?s)label must be one of dark, light.*path must be of an image"):
        labels.import_labels(made, file)
    # The labels so far, as metadata to train with.
    labels.export(made, tmp_path / "out" / name, format="huggingface")
    file = tmp_path / "out" / name
    told = {row["file_name"]: row["label"] for row in read()}
    assert told == {
        paths[0]: DARK,
        "dark/0.png": DARK,
        "dark/1.png": DARK,
        "light/0.png": LIGHT,
        "light/1.png": LIGHT,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"file_name": "a.png", "label": [1]}', "line 1: label of a.png must be a name, got"),
        (
            '{"label": "dark"}\n3\n{',
            "(?s)line 1: must be an object with file_name.*line 2: must be.*line 3: must be JSON",
        ),
        (
            '{"file_name": "unlabeled/00.png", "label": 1}',
            "label must be one of dark, light, . or empty, got '1'",
        ),
        (
            '{"file_name": "unlabeled/00.png", "label": true}',
            "label of unlabeled/00.png must be a name, got True",
        ),
    ],
)
def test_other_lines_of_json_are_refused(made, tmp_path, content, message):
    (tmp_path / "metadata.jsonl").write_text(content)
    with pytest.raises(ConfigError, match=message):
        labels.import_labels(made, tmp_path / "metadata.jsonl")


@pytest.mark.parametrize(
    ("format", "name"), [("label-studio", "a.json"), ("cvat", "a.xml"), ("fiftyone", "a.json")]
)
def test_labels_go_out_as_the_file_of_a_tool_and_come_back(made, tmp_path, format, name):
    have = {"dark/0.png": DARK, "dark/1.png": DARK, "light/0.png": LIGHT, "light/1.png": LIGHT}
    assert labels.export(made, tmp_path / name, format=format) == 4
    assert labels.import_labels(made, tmp_path / name, annotator="anna", format=format).new == 4
    assert said(made) == have


def test_a_format_that_is_not_known_is_refused(made, tmp_path):
    with pytest.raises(
        ConfigError, match="format must be one of csv, label-studio, cvat, fiftyone, huggingface, got 'coco'"
    ):
        next_batch(made, 2, tmp_path / "batch.csv", format="coco")
    # What is asked for is what is written, whatever the ending.
    next_batch(made, 2, tmp_path / "batch.data", format="cvat")
    assert (tmp_path / "batch.data").read_text().startswith('<?xml version="1.0"')
