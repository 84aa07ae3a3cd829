"""A labeling project: made once, then opened by every command."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from prunefuse import _commit, _lock
from prunefuse._options import changed, require
from prunefuse.errors import ConfigError, DamagedFileError
from prunefuse.experiment.labeling import images, journal, table
from prunefuse.experiment.labeling.config import LabelConfig
from prunefuse.experiment.labeling.journal import CANNOT_TELL, Journal, Merged, Vote

PROJECT, FORMAT = "project.json", 1
UNLABELED = "unlabeled"
PATIENCE = 30.0  # seconds to wait for another command, which holds a project for moments


@dataclass(frozen=True)
class Project:
    """A project as it was made, with the images that have come since.

    Attributes:
        folder: Where its state is.
        base: The folder of the images.
        classes: Names, in the order of the network's outputs.
        paths: The images by index, as paths from ``base``; later ones are at the end, so an index stays what it is.
        given: Labels by path that there were at the start, or that folders of later images say; of nobody in particular.
        told: Votes by path and annotator that there were at the start.
        skipped: Files that cannot be read, which were left out.
        config: How images are chosen.
    """

    folder: Path
    base: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    given: Mapping[str, str]
    told: Mapping[str, Mapping[str, Vote]]
    skipped: tuple[str, ...]
    config: LabelConfig

    @cached_property
    def index(self) -> dict[str, int]:
        """Index of each path."""
        return {path: index for index, path in enumerate(self.paths)}

    @contextmanager
    def held(self) -> Iterator[Journal]:
        """The journal, while no other process may add to it."""
        with _lock.locked(self.folder, patience=PATIENCE):
            _commit.settle(self.folder)
            for left in (self.folder / journal.JOURNAL).glob(".*.tmp"):  # of a process that was killed
                left.unlink(missing_ok=True)
            yield self.read()

    def read(self) -> Journal:
        """The journal as it is now."""
        return journal.read(self.folder, self.told)

    def merged(self, now: Journal) -> dict[str, Merged]:
        """What the votes on each image come to, by path; without those of which nothing is known."""
        return {
            path: journal.merge(now.votes.get(path, {}), self.given.get(path))
            for path in self.paths
            if path in now.votes or path in self.given
        }

    def labels(self, merged: Mapping[str, Merged]) -> dict[int, int]:
        """Class by index of the images that have a label."""
        numbers = {name: number for number, name in enumerate(self.classes)}
        return {self.index[path]: numbers[one.label] for path, one in merged.items() if one.label in numbers}


def start(
    folder: Path | str,
    data: Path | str,
    *,
    classes: Sequence[str] | None = None,
    labels: Path | str | None = None,
    config: LabelConfig | None = None,
) -> Project:
    """Make a project.

    Args:
        folder: Where its state goes: new or empty, and not among the images.
        data: The folder of images. Where it has a folder ``unlabeled``, the images in folders named like classes beside it
            are labels one has.
        classes: Their names; left out, those folders, or the classes of ``labels``.
        labels: A CSV file with the columns path and label: labels one has.
        config: How images are chosen.

    Raises:
        ConfigError: something is not possible; nothing has been written.
    """
    folder, base = Path(folder).expanduser(), Path(data).expanduser()
    if not base.is_dir():
        raise ConfigError(f"data must be a folder of images, got {base}")
    base = base.resolve()
    if folder.resolve().is_relative_to(base):
        raise ConfigError(f"DIR must not be among the images, got {folder} in {base}")
    if folder.exists() and not _is_left_over(folder):
        raise ConfigError(f"DIR must be a folder that does not exist yet, or is empty, got {folder}")
    config = config or LabelConfig()
    if config.weights is not None:  # found again from wherever the next command is called
        config = replace(config, weights=str(Path(config.weights).expanduser().resolve(strict=True)))
    paths = tuple(images.listed(base))
    require(len(paths) > 0, "data", "a folder with images, at any depth", str(base))
    beside = _class_folders(base)
    skipped = images.broken(base, paths, skip=config.skip_broken)
    paths = tuple(path for path in paths if path not in set(skipped))
    rows = () if labels is None else table.read(Path(labels).expanduser())
    names = _named(classes, beside, [row.label for row in rows])
    given = {path: name for path in paths if (name := _folder_class(path, beside)) in names}
    told: dict[str, dict[str, Vote]] = {}
    checked = table.checked(rows, Path(str(labels)), names, {path: i for i, path in enumerate(paths)})
    for row in checked:
        if row.annotator and row.label:
            told.setdefault(row.path, {})[row.annotator] = Vote(row.label, row.note)
    own = {row.path: row for row in checked if row.label and not row.annotator}
    table.refuse(
        [
            f"{labels}, {row.where}: label of {path} must be {given[path]}, as its folder says, got {row.label!r}"
            for path, row in own.items()
            if given.get(path, row.label) != row.label
        ],
        Path(str(labels)),
    )
    given |= {path: row.label for path, row in own.items()}
    project = Project(folder, base, names, paths, given, told, skipped, config)
    folder.mkdir(parents=True, exist_ok=True)
    with _lock.locked(folder, patience=PATIENCE):
        content = {
            "format": FORMAT,
            "data": str(base),
            "classes": list(names),
            "images": list(paths),
            "given": given,
            "told": {path: {by: asdict(vote) for by, vote in own.items()} for path, own in told.items()},
            "skipped": list(skipped),
            "config": asdict(config),
        }
        _commit.commit(folder, {PROJECT: (json.dumps(content, indent=1) + "\n").encode()})
    return project


def find(folder: Path | str) -> Project:
    """The project of a folder.

    Raises:
        ConfigError: there is none.
        DamagedFileError: it is not what was written.
    """
    folder = Path(folder).expanduser()
    manifest = _commit.manifest(folder)
    if manifest is None or PROJECT not in manifest.files:
        raise ConfigError(f"DIR must be a project that `prunefuse label start` made, got {folder}")
    content: dict[str, Any] = json.loads(manifest.read(PROJECT))
    if content["format"] != FORMAT:
        raise DamagedFileError(
            f"{folder} cannot be read: format {content['format']}, this version reads {FORMAT}"
        )
    made = Project(
        folder,
        Path(content["data"]),
        tuple(content["classes"]),
        tuple(content["images"]),
        content["given"],
        {path: {by: Vote(**vote) for by, vote in own.items()} for path, own in content["told"].items()},
        tuple(content["skipped"]),
        changed(LabelConfig(), content["config"]),
    )
    added = made.read().added
    given = {path: label for path, label in added.items() if label}
    return replace(made, paths=(*made.paths, *added), given={**made.given, **given}) if added else made


@dataclass(frozen=True)
class Grown:
    """What has become of the images: those that are there now, new ones, broken new ones, and those that are gone."""

    project: Project
    there: tuple[str, ...]
    new: tuple[str, ...]
    broken: tuple[str, ...]
    gone: tuple[str, ...]


def grow(found: Project) -> Grown:
    """Take in the images that have come into the folder. Those that cannot be read are looked at again the next time.

    Raises:
        ConfigError: none of the images is there.
    """
    listed = tuple(images.listed(found.base)) if found.base.is_dir() else ()
    standing = set(listed)
    gone = tuple(path for path in found.paths if path not in standing)
    if len(gone) == len(found.paths):
        raise ConfigError(f"{found.base} must have the images of {found.folder}, got none of them")
    new = tuple(path for path in listed if path not in found.index)
    broken = images.broken(found.base, new, skip=True) if new else ()
    if set(new) - set(broken):
        beside = _class_folders(found.base)
        with found.held() as now:
            rows = [
                (path, name if (name := _folder_class(path, beside)) in found.classes else "")
                for path in new
                if path not in broken and path not in now.added
            ]
            if rows:
                journal.append(found.folder, now, "images", rows=rows)
        found = find(found.folder)
    there = tuple(path for path in found.paths if path in standing)
    told = tuple(path for path in broken if path not in found.skipped)
    return Grown(found, there, tuple(path for path in new if path not in broken), told, gone)


def _class_folders(base: Path) -> dict[str, str]:
    """Folders that name classes, with the names; none where there is no folder ``unlabeled`` beside them."""
    if not (base / UNLABELED).is_dir():
        return {}
    found = [path.name for path in sorted(base.iterdir()) if path.is_dir() and path.name[0] != "."]
    return {name: name.strip() for name in found if name not in (UNLABELED, "__MACOSX")}


def _folder_class(path: str, beside: Mapping[str, str]) -> str:
    """The class that the first folder of a path names, or nothing."""
    first, _, rest = path.partition("/")
    return beside.get(first, "") if rest else ""


def _named(
    classes: Sequence[str] | None, beside: Mapping[str, str], labels: Sequence[str]
) -> tuple[str, ...]:
    """The classes: those that are said, else those of the folders and of the labels one has."""
    if classes is None:
        found = {*beside.values(), *(label.strip() for label in labels)} - {"", CANNOT_TELL}
        names = tuple(sorted(found))
    else:
        names = tuple(name.strip() for name in classes)
    if len(names) < 2:
        raise ConfigError(
            f"classes must be two or more names (--classes a,b), got {', '.join(names) or 'none'}: "
            "without --classes they are the folders beside `unlabeled`, or the labels of --labels"
        )
    for name, count in Counter(names).items():
        require(
            count == 1 and name not in ("", CANNOT_TELL), "classes", "different names, not empty or ?", name
        )
    return names


def _is_left_over(folder: Path) -> bool:
    """Whether a folder has nothing but what a killed `start` leaves."""
    ours = (f"{PROJECT}.", f"{_commit.MANIFEST}.")  # what is being written has a dot before its name, or two
    return folder.is_dir() and all(
        entry.name == _lock.LOCK or (entry.name[0] == "." and entry.name.lstrip(".").startswith(ours))
        for entry in folder.iterdir()
    )
