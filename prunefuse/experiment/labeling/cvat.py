"""Batches for CVAT and its annotations read back: the XML that CVAT calls "CVAT for images 1.1", with a tag for each label.

A tag whose source is ``auto`` is a prediction that nobody has confirmed: it is written, and not read.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from prunefuse.errors import ConfigError
from prunefuse.experiment.labeling import images
from prunefuse.experiment.labeling.answers import CANNOT_TELL, NONE, SEPARATOR, parts
from prunefuse.experiment.labeling.project import Project
from prunefuse.experiment.labeling.table import Pick, Row, refuse

_UNFIT = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # no XML has these
_INSIDE = "annotations.xml"  # in the archives that CVAT exports


def text(project: Project, picks: Sequence[Pick]) -> str:
    """The annotations of a task that has these images in this order.

    Raises:
        ConfigError: XML cannot have a name.
        OSError: an image cannot be read.
    """
    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    task = SubElement(SubElement(root, "meta"), "task")
    for name, value in (("size", str(len(picks))), ("mode", "annotation")):
        SubElement(task, name).text = value
    labels = SubElement(task, "labels")
    for name in (*project.classes, *([NONE] if project.several else []), CANNOT_TELL):
        label = SubElement(labels, "label")
        SubElement(label, "name").text = name
        SubElement(label, "type").text = "tag"
        SubElement(label, "attributes")
    for number, pick in enumerate(picks):
        if _UNFIT.search(pick.path):
            raise ConfigError(f"format cvat must have names that XML can hold, got {pick.path!r}")
        width, height = images.size(project.base / pick.path)
        place = {"id": str(number), "name": pick.path, "width": str(width), "height": str(height)}
        image = SubElement(root, "image", place)
        if pick.label or pick.predicted:
            source, answer = "manual" if pick.label else "auto", pick.label or pick.predicted
            for name in (parts(answer) or [answer]) if project.several else [answer]:
                SubElement(image, "tag", {"label": name, "source": source})
    ElementTree.indent(root)
    return ElementTree.tostring(root, "unicode", xml_declaration=True).replace("'", '"', 4) + "\n"


def rows(content: bytes, path: Path, project: Project) -> tuple[Row, ...]:
    """The labels of an export, XML or an archive with it. An image without a tag is not labeled yet.

    Names of images are paths of the project, or names of files that only one image has.

    Raises:
        ConfigError: it is not such an export, or an image has several tags or other shapes; names each image.
    """
    root = _root(content, path)
    names = Counter(known.rpartition("/")[2] for known in project.paths)
    alone = {name: known for known in project.paths if names[name := known.rpartition("/")[2]] == 1}
    by = _assignee(root)
    found, wrong = list[Row](), list[str]()
    for number, image in enumerate(root.iter("image"), 1):
        name = image.get("name", "")
        place = alone.get(name, name) if name not in project.index else name
        tags = [tag.get("label", "") for tag in image.findall("tag") if tag.get("source") != "auto"]
        other = sorted({shape.tag for shape in image if shape.tag != "tag"})
        if other:
            wrong.append(f"{path}, image {number}: {name} must have tags alone, has {', '.join(other)}")
        elif len(tags) > 1 and not project.several:
            wrong.append(f"{path}, image {number}: {name} must have one tag, got {', '.join(tags)}")
        else:
            found.append(Row(f"image {number}", place, SEPARATOR.join(tags).strip(), by))
    refuse(wrong, path)
    return tuple(found)


def _root(content: bytes, path: Path) -> Element:
    expected = f"{path}: content must be XML of CVAT for images 1.1"
    if content.startswith(b"PK"):
        try:
            content = zipfile.ZipFile(io.BytesIO(content)).read(_INSIDE)
        except (KeyError, zipfile.BadZipFile) as error:
            raise ConfigError(f"{expected}, or an archive with {_INSIDE}: {error}") from error
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:  # CVAT writes none, and they may grow without end
        raise ConfigError(f"{expected}, got one with a document type")
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError) as error:
        raise ConfigError(f"{expected}: {error}") from error
    if root.tag != "annotations":
        raise ConfigError(f"{expected}, got <{root.tag}>")
    if root.find("track") is not None:
        raise ConfigError(f"{expected}, got tracks of a video")
    return root


def _assignee(root: Element) -> str:
    """Who has the task or job, where the export says so and it is one."""
    names = {name.text.strip() for name in root.iterfind("./meta/*/assignee/username") if name.text}
    return names.pop() if len(names) == 1 else ""
