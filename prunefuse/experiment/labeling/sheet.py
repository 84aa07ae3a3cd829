"""The page beside a batch: thumbnails or texts, and keys, in one file that needs nothing from outside."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from prunefuse._extras import needed_for
from prunefuse.experiment.labeling import images, table
from prunefuse.experiment.labeling.answers import CANNOT_TELL, NONE, SEPARATOR
from prunefuse.experiment.labeling.project import Project
from prunefuse.experiment.labeling.table import Pick

with needed_for("a page for labeling"):
    from jinja2 import Environment, PackageLoader, StrictUndefined, Template

_SIDE = 192  # of a thumbnail, at most
_KEYS = "123456789abcdefghijklmnopqrstuvwxyz"


def draw(project: Project, picks: Sequence[Pick], name: str, person: str = "") -> str:
    """The page of a batch, whose labels it exports as a CSV file of this name, by this annotator.

    Raises:
        OSError: an image cannot be read; names the file.
    """
    paths, texts = [pick.path for pick in picks], project.texts
    thumbnails = [""] * len(paths)
    if texts is None:
        with ThreadPoolExecutor() as threads:
            thumbnails = list(threads.map(_thumbnail, [project.base / path for path in paths]))
    keys = [(_KEYS[i] if i < len(_KEYS) else "", name) for i, name in enumerate(project.classes)]
    none = [("0", NONE)] if project.several else []
    identity = "\0".join([str(project.folder.resolve()), name, *paths])
    return _template().render(
        name=name,
        person=person,
        noun=project.source.noun,
        several=project.several,
        separator=SEPARATOR,
        nothing=NONE,
        classes=[*keys, *none, ("?", CANNOT_TELL)],
        items=[
            {
                "path": pick.path.encode("utf-8", "backslashreplace").decode(),
                "index": project.index[pick.path],
                "utility": "" if pick.utility is None else f"{pick.utility:.6g}",
                "predicted": pick.predicted,
                "why": pick.why,
                "image": image,
                "text": None if texts is None else texts.seen(pick.path),
            }
            for pick, image in zip(picks, thumbnails, strict=True)
        ],
        columns=",".join(table.columns(project)),
        batch=hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:24],
    )


def _thumbnail(path: Path) -> str:
    """An image as a data address: small ones as they are, others smaller."""
    image = images.seen(path)
    small = max(image.size) <= _SIDE
    image.thumbnail((_SIDE, _SIDE))
    content = io.BytesIO()
    image.save(content, "PNG" if small else "JPEG", **({} if small else {"quality": 82}))
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(content.getvalue()).decode()}"


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("prunefuse.experiment.labeling", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("sheet.html.j2")
