"""A labeling project of images or texts: made once, then opened by every command."""

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
from prunefuse._names import TEXT_MODELS
from prunefuse._options import changed, require
from prunefuse.data._words import Vocabulary
from prunefuse.errors import ConfigError, DamagedFileError
from prunefuse.experiment.config import SELECTORS, is_own
from prunefuse.experiment.labeling import images, journal, table
from prunefuse.experiment.labeling.answers import CANNOT_TELL, NONE, SEPARATOR, parts
from prunefuse.experiment.labeling.config import FOR_TEXTS, LabelConfig
from prunefuse.experiment.labeling.journal import Journal, Merged, Vote
from prunefuse.experiment.labeling.texts import Texts

PROJECT, FORMAT = "project.json", 1
VOCABULARY = "vocabulary.json"
UNLABELED = "unlabeled"
PATIENCE = 30.0  # seconds to wait for another command, which holds a project for moments


@dataclass(frozen=True)
class Project:
    """A project as it was made, with the images that have come since.

    Attributes:
        folder: Where its state is.
        base: The folder of the images, or the file of the texts.
        classes: Names, in the order of the network's outputs.
        paths: The images by index, as paths from ``base``, or the names of the texts; later ones are at the end, so an index
            stays what it is.
        given: Labels by path that there were at the start, or that folders of later images say; of nobody in particular.
        told: Votes by path and annotator that there were at the start.
        skipped: Files that cannot be read, and texts that are empty, which were left out.
        config: How images or texts are chosen.
        texts: The texts; None for images.
    """

    folder: Path
    base: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    given: Mapping[str, str]
    told: Mapping[str, Mapping[str, Vote]]
    skipped: tuple[str, ...]
    config: LabelConfig
    texts: Texts | None = None

    @property
    def source(self) -> images.Images | Texts:
        """What is labeled."""
        return images.Images(self.base, self.config) if self.texts is None else self.texts

    @property
    def several(self) -> bool:
        """Whether a sample may have several labels."""
        return self.config.multi_label

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
            path: journal.merge(
                now.votes.get(path, {}), self.given.get(path), self.classes if self.several else None
            )
            for path in self.paths
            if path in now.votes or path in self.given
        }

    def labels(self, merged: Mapping[str, Merged]) -> dict[int, Any]:
        """By index of those that have a label: the class, or a zero or one for each where samples have several."""
        known = {path: one.label for path, one in merged.items() if one.label not in ("", CANNOT_TELL)}
        if self.several:
            own = {path: set(parts(label)) for path, label in known.items()}
            return {
                self.index[path]: tuple(int(name in own[path]) for name in self.classes) for path in known
            }
        numbers = {name: number for number, name in enumerate(self.classes)}
        return {self.index[path]: numbers[label] for path, label in known.items()}


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
        data: The folder of images, or a file of texts (see `prunefuse.data._texts.read_texts`). Where a folder has a folder
            ``unlabeled``, the images in folders named like classes beside it are labels one has.
        classes: Their names; left out, those folders, or the classes of ``labels``.
        labels: CSV or JSON lines with path (or id) and label: labels one has. Or the file of texts itself, which has a column
            label; then labels of texts that come later are taken, too.
        config: How images are chosen.

    Raises:
        ConfigError: something is not possible; nothing has been written.
    """
    folder, base = Path(folder).expanduser(), Path(data).expanduser()
    if not base.exists():
        raise ConfigError(f"data must be a folder of images, or a file of texts, got {base}")
    base = base.resolve()
    if base.is_dir() and folder.resolve().is_relative_to(base):
        raise ConfigError(f"DIR must not be among the images, got {folder} in {base}")
    if folder.exists() and not _is_left_over(folder):
        raise ConfigError(f"DIR must be a folder that does not exist yet, or is empty, got {folder}")
    config = _found_again(config or (LabelConfig() if base.is_dir() else FOR_TEXTS))
    texts = None
    if base.is_dir():
        _check_no_text_options(config)
    else:
        texts, config = Texts.begin(base, config)
    _check_network(config, texts=texts is not None)
    source = images.Images(base, config) if texts is None else texts
    paths = tuple(source.listed())
    require(len(paths) > 0, "data", "a folder with images, at any depth", str(base))
    beside = _class_folders(base)
    skipped = source.broken(paths, skip=config.skip_broken)
    paths = tuple(path for path in paths if path not in set(skipped))
    require(len(paths) > 0, "data", f"{source.noun}s that can be read", str(base))
    file = None if labels is None else Path(labels).expanduser()
    several = config.multi_label
    rows = _rows_of(file, source, several=several)
    names = _named(classes, beside, [row.label for row in rows], several=several)
    given = {path: name for path in paths if (name := _folder_class(path, beside)) in names}
    told: dict[str, dict[str, Vote]] = {}
    known = {path: i for i, path in enumerate(paths)}
    if texts is not None:
        rows = tuple(row for row in rows if row.path.strip() not in skipped)
    checked = table.checked(rows, Path(str(labels)), names, known, several=several, noun=source.noun)
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
    project = Project(folder, base, names, paths, given, told, skipped, config, texts)
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
        written = {}
        if texts is not None:
            content["texts"] = {
                "text": texts.text,
                "id": texts.id,
                "digests": texts.hashes(paths),
                "labels": _is_data(file, base),
            }
            written[VOCABULARY] = texts.kept()
        written[PROJECT] = (json.dumps(content, indent=1) + "\n").encode()
        _commit.commit(folder, written)
    return project


def _found_again(config: LabelConfig) -> LabelConfig:
    """The same with files that are found from wherever the next command is called."""
    changes: dict[str, Any] = {}
    if config.weights is not None:
        changes["weights"] = str(Path(config.weights).expanduser().resolve(strict=True))
    for name in ("model", "selector", "strategy", "tokenizer"):
        file, _, function = str(getattr(config, name)).rpartition(":")
        if file.endswith(".py"):
            changes[name] = f"{Path(file).expanduser().resolve()}:{function}"
    if config.features_from is not None and config.features_from.endswith(".npy"):
        changes["features_from"] = str(Path(config.features_from).expanduser().resolve())
    return replace(config, **changes)


def _check_no_text_options(config: LabelConfig) -> None:
    usual = LabelConfig()
    for name in ("text", "id", "vocabulary", "length", "tokenizer"):
        given = getattr(config, name)
        require(given == getattr(usual, name), name, "left out with a folder of images", given)


def _check_network(config: LabelConfig, *, texts: bool) -> None:
    """Raise ``ConfigError`` for a strategy that the task does not have, or a network for something else."""
    try:
        _ = config.loop_for((1, 2)).chooser
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for name in ("model", "selector"):
        given = getattr(config, name)
        fits = given in SELECTORS or is_own(given) or (given in TEXT_MODELS) == texts
        allowed = (
            f"one of {', '.join(TEXT_MODELS)}, or FILE.py:FUNCTION, for texts"
            if texts
            else "a network for images"
        )
        require(fits, name, allowed, given)


def _rows_of(file: Path | None, source: images.Images | Texts, *, several: bool) -> tuple[table.Row, ...]:
    """The labels that one has: of a table, of JSON lines, or of the file of the texts itself."""
    if file is None:
        return ()
    if isinstance(source, Texts) and _is_data(file, source.base):
        told = source.labels().items()
        return tuple(table.Row(source.where(name), name, label) for name, label in told)
    return table.read(file, source.key, several=several)


def _is_data(file: Path | None, base: Path) -> bool:
    """Whether the file of labels is that of the texts."""
    return file is not None and file.exists() and file.resolve() == base


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
    now = made.read()
    if "texts" in content:
        told = content["texts"]
        words = Vocabulary(tuple(json.loads(manifest.read(VOCABULARY))))
        digests = {**told["digests"], **now.digests}
        labeled = told.get("labels", False)
        texts = Texts(made.base, told["text"], told["id"], made.config, words, digests, labeled)
        made = replace(made, texts=texts)
    added = now.added
    given = {path: label for path, label in added.items() if label}
    return replace(made, paths=(*made.paths, *added), given={**made.given, **given}) if added else made


@dataclass(frozen=True)
class Grown:
    """What has become of the images or texts: those that are there now, new ones, broken new ones, and those that are gone."""

    project: Project
    there: tuple[str, ...]
    new: tuple[str, ...]
    broken: tuple[str, ...]
    gone: tuple[str, ...]


def grow(found: Project) -> Grown:
    """Take in the images or texts that have come. Those that cannot be read are looked at again the next time.

    Raises:
        ConfigError: none of those of the project is there, or texts without names are not where they were.
    """
    source = found.source
    source.check_standing()
    listed = tuple(source.listed())
    standing = set(listed)
    gone = tuple(path for path in found.paths if path not in standing)
    if len(gone) == len(found.paths):
        raise ConfigError(f"{found.base} must have the {source.noun}s of {found.folder}, got none of them")
    new = tuple(path for path in listed if path not in found.index)
    broken = source.broken(new, skip=True) if new else ()
    if set(new) - set(broken):
        said = _labels_of_new(found, [path for path in new if path not in broken])
        with found.held() as now:
            rows = [(path, label) for path, label in said.items() if path not in now.added]
            if rows:
                digests = source.hashes([path for path, _ in rows])
                journal.append(
                    found.folder, now, "images", rows=rows, **({"digests": digests} if digests else {})
                )
        found = find(found.folder)
    there = tuple(path for path in found.paths if path in standing)
    told = tuple(path for path in broken if path not in found.skipped)
    return Grown(found, there, tuple(path for path in new if path not in broken), told, gone)


def _labels_of_new(found: Project, new: Sequence[str]) -> dict[str, str]:
    """The label of each sample that has come, by its folder, or by the file of texts where it had labels at the start.

    Raises:
        ConfigError: such a label is none of the project's; names each line.
    """
    if found.texts is None:
        beside = _class_folders(found.base)
        named = ((path, _folder_class(path, beside)) for path in new)
        return {path: name if name in found.classes else "" for path, name in named}
    said = found.texts.labels() if found.texts.labeled else {}
    rows = [table.Row(found.texts.where(name), name, said.get(name, "")) for name in new]
    places = {name: place for place, name in enumerate(new)}
    options: dict[str, Any] = {"several": found.several, "noun": found.source.noun}
    return {row.path: row.label for row in table.checked(rows, found.base, found.classes, places, **options)}


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
    classes: Sequence[str] | None, beside: Mapping[str, str], labels: Sequence[str], *, several: bool
) -> tuple[str, ...]:
    """The classes: those that are said, else those of the folders and of the labels one has."""
    if classes is None:
        own = [name for label in labels for name in (parts(label) if several else [label])]
        found = {*beside.values(), *(name.strip() for name in own)} - {"", CANNOT_TELL}
        names = tuple(sorted(found))
    else:
        names = tuple(name.strip() for name in classes)
    least = "one or more names (--classes a,b)" if several else "two or more names (--classes a,b)"
    if len(names) < (1 if several else 2):
        raise ConfigError(
            f"classes must be {least}, got {', '.join(names) or 'none'}: "
            "without --classes they are the folders beside `unlabeled`, or the labels of --labels"
        )
    for name, count in Counter(names).items():
        require(
            count == 1 and name not in ("", CANNOT_TELL), "classes", "different names, not empty or ?", name
        )
        apart = not several or (SEPARATOR not in name and name != NONE)
        require(apart, "classes", f"names without {SEPARATOR}, and not {NONE}, with multi_label", name)
    return names


def _is_left_over(folder: Path) -> bool:
    """Whether a folder has nothing but what a killed `start` leaves."""
    ours = (
        f"{PROJECT}.",
        f"{VOCABULARY}.",
        f"{_commit.MANIFEST}.",
    )  # what is being written has a dot before its name, or two
    return folder.is_dir() and all(
        entry.name == _lock.LOCK or (entry.name[0] == "." and entry.name.lstrip(".").startswith(ours))
        for entry in folder.iterdir()
    )
