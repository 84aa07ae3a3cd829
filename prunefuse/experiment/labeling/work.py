"""The work of a project's network: choosing what to label next, and labeling the rest."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunefuse import _lock
from prunefuse._seeds import generator
from prunefuse.data import Data
from prunefuse.data._fingerprint import fingerprint
from prunefuse.errors import (
    ConfigError,
    DamagedFileError,
    FolderInUseError,
    RunError,
    TrainingDivergedError,
)
from prunefuse.experiment import machine, networks
from prunefuse.experiment.config import SELECTORS
from prunefuse.experiment.labeling import answers, formats, journal, labels, project, sheet
from prunefuse.experiment.labeling.journal import Journal, Merged
from prunefuse.experiment.labeling.project import Project
from prunefuse.experiment.labeling.table import Pick
from prunefuse.experiment.loop import ActiveLearning
from prunefuse.experiment.records import Listener
from prunefuse.training import predict as logits_of

ROUNDS = "rounds"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Batch:
    """What was asked, where it stands, how many images are left beside it, and how many of these others were asked for.

    ``noun`` is what these are: ``image`` or ``text``.
    """

    picks: tuple[Pick, ...]
    out: Path
    page: Path | None
    left: int
    others: int
    noun: str = "image"


def next_batch(
    folder: Path | str,
    count: int,
    out: Path | str,
    *,
    person: str = "",
    format: str | None = None,
    say: Say = lambda text: None,
    listener: Listener | None = None,
) -> Batch:
    """Write the images to label next as a CSV file, with a page for a browser beside it.

    Images that have come into the folder are taken in first. Images without a label whose votes are a tie come first, then
    those that were asked before. The selector is trained where labels or images are new. Without labels of two classes,
    images are drawn at random by the seed.

    Args:
        folder: The project.
        count: How many images; fewer where no more are left.
        out: The CSV file, which must not exist; ``-`` is standard output, without a page. Or the file of a tool.
        person: Who is to label them. Images that another was asked for, and has not labeled yet, are not among them.
        format: One of `formats.NAMES`; None: by the ending.
        say: Called with what is done, in a line.
        listener: Called with the events of the training.

    Raises:
        ConfigError: ``out`` exists, or an option does not suit the images.
        RunError: the training diverged.
        OSError: an image cannot be read.
    """
    found, out, person = project.find(folder), Path(out).expanduser(), person.strip()
    if count < 1:
        raise ConfigError(f"n must be at least 1, got {count}")
    told = formats.chosen(format, out, project=found)
    page = None if not told.page or str(out) == "-" else out.with_suffix(".html")
    labels.refuse_existing(*(path for path in (out, page) if path is not None and str(path) != "-"))
    if page == out:
        raise ConfigError(f"out must not be the page beside it: a name such as batch.csv, got {out}")
    found, there = _grown(found, say)
    while True:
        now = found.read()
        merged = found.merged(now)
        with _engine(found, there, now, say, listener) as engine:
            picks, drawn = _choose(engine, now, merged, count, person)
        text = sheet.draw(found, picks, out.name, person) if picks and page is not None else ""
        with found.held() as later:
            if any(later.holders.get(pick.path, person) != person for pick in picks):
                continue  # another person has just been asked for one of them
            merged = found.merged(later)
            chosen, picks = picks, [pick for pick in picks if labels.is_open(pick.path, merged)]
            if chosen and not picks:
                continue
            if not picks:
                break
            if page is not None and picks != chosen:  # labels have come in the meantime
                text = sheet.draw(found, picks, out.name, person)
            if engine.trained:
                _record(found, later, engine.digest, len(engine.have))
            content = told.write(found, picks)
            new = [
                (pick.path, pick.utility)
                for pick in picks
                if pick.path not in later.asked or later.holders.get(pick.path) != person
            ]
            if new:  # before the files: what is in them is asked of nobody else, whatever happens
                entry = {"rows": new, "drawn": int(drawn), "time": labels.time()}
                journal.append(found.folder, later, "asked", **entry, **({"for": person} if person else {}))
            if page is not None:
                labels.write_new(page, text)
            labels.write_new(out, content)
        break
    left = [path for path in there if labels.is_open(path, merged)]
    others = sum(later.holders.get(path, person) != person for path in left)
    return Batch(tuple(picks), out, page, len(left) - len(picks), others, found.source.noun)


def predict(
    folder: Path | str,
    out: Path | str,
    *,
    say: Say = lambda text: None,
    listener: Listener | None = None,
) -> int:
    """Label all images or texts without a label by the selector, and write a CSV file; how many there are.

    The columns are path (or id), index, label, probability, and the probability of each class under its name. With several
    labels for each sample, its labels are those with a probability above a half, and ``probability`` is that of all of them
    together, if they are independent.

    Args:
        folder: The project.
        out: The file, which must not exist; ``-`` is standard output.
        say: Called with what is done, in a line.
        listener: Called with the events of the training.

    Raises:
        ConfigError: ``out`` exists, or there are no labels of two classes.
        RunError: the training diverged.
        OSError: an image cannot be read.
    """
    found, out = project.find(folder), Path(out).expanduser()
    labels.refuse_existing(out)
    found, there = _grown(found, say)
    now = found.read()
    have = found.labels(found.merged(now))
    header = [found.source.key, "index", "label", "probability", *found.classes]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    with _engine(found, there, now, say, listener) as engine:
        if not engine.can_train:
            raise ConfigError(
                f"{found.folder} must have labels of two {_kinds(found)} to predict the others, got {_known(found, have)}"
            )
        rest = [place for place, path in enumerate(there) if found.index[path] not in have]
        if rest:
            engine.train()
            rows = engine.probabilities(rest)
    if rest:
        named = zip(rest, _predicted(found, rows), rows.tolist(), strict=True)
        for place, (label, probability), row in named:
            values = [f"{value:.6f}" for value in (probability, *row)]
            writer.writerow([there[place], found.index[there[place]], label, *values])
        with found.held() as later:
            _record(found, later, engine.digest, len(engine.have))
    labels.write_new(out, text.getvalue())
    return len(rest)


def _grown(found: Project, say: Say) -> tuple[Project, tuple[str, ...]]:
    """The project with the images that have come since, and those that are there; what has changed is said."""
    grown = project.grow(found)
    source = grown.project.source
    if grown.new:
        say(f"{_counted(len(grown.new), source.noun)} new; {source.size(grown.there)}")
    for path in grown.broken:
        say(f"left out, as it cannot be read: {path}")
    if grown.gone:
        some = ", ".join(grown.gone[:5]) + (", ..." if len(grown.gone) > 5 else "")
        say(f"{_counted(len(grown.gone), source.noun)} no longer there: {some}")
    return grown.project, grown.there


def _counted(count: int, noun: str) -> str:
    return f"1 {noun} is" if count == 1 else f"{count} {noun}s are"


def _choose(
    engine: _Engine, now: Journal, merged: Mapping[str, Merged], count: int, person: str
) -> tuple[list[Pick], bool]:
    """The picks, and whether some were drawn at random."""
    found = engine.found
    candidates = [
        path
        for path in engine.there
        if labels.is_open(path, merged) and now.holders.get(path, person) == person
    ]
    standing = set(candidates)
    ties = [
        path
        for path in candidates
        if path in merged and merged[path].tied and (not person or person not in now.votes[path])
    ]
    first = set(ties)
    before = [
        path
        for path in now.asked
        if path in standing and path not in first and now.holders.get(path) == person
    ]
    picks = [
        Pick(path, now.asked.get(path), f"annotators disagree: {journal.said(now.votes[path])}")
        for path in ties
    ]
    picks += [Pick(path, now.asked[path], "asked before") for path in before]
    known = {pick.path for pick in picks} | {
        path for path in candidates if path in merged and merged[path].tied
    }
    picks = picks[:count]
    more = min(count - len(picks), len(candidates) - len(known))
    random = found.config.strategy == "random"
    free = standing - known
    taken = [
        place for place, path in enumerate(engine.there) if path not in free and place not in engine.have
    ]
    if not engine.can_train and found.config.first != "random":
        why = f"{found.config.first}, which needs no labels"
        places = engine.first(more, [*taken, *engine.have]) if more else []
        picks += [Pick(engine.there[place], None, why) for place in places]
        return _signed(picks, person), False
    if not engine.can_train:
        why = "random draw" if random else f"random draw: no labels of two {_kinds(found)} yet"
        return _signed(picks + _drawn(found, now, candidates, known, more, why), person), more > 0
    asked = engine.train(0 if random else more, taken)
    if random:
        picks += _drawn(found, now, candidates, known, more, "random draw")
    why = f"highest {engine.strategy}"
    picks += [Pick(engine.there[place], utility, why) for place, utility in asked]
    rows = engine.probabilities([engine.place[pick.path] for pick in picks])
    named = [
        replace(pick, predicted=label, probability=round(p, 6))
        for pick, (label, p) in zip(picks, _predicted(found, rows), strict=True)
    ]
    return _signed(named, person), random and more > 0


def _predicted(found: Project, rows: Tensor) -> list[tuple[str, float]]:
    """The label of each row of probabilities (N, C), and how probable it is."""
    if found.several:
        sure = torch.maximum(rows, 1 - rows).prod(1).tolist()
        names = [
            [name for name, p in zip(found.classes, row, strict=True) if p > 0.5] for row in rows.tolist()
        ]
        return list(zip(map(answers.joined, names), sure, strict=True))
    best = rows.max(1)
    return [(found.classes[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def _signed(picks: Sequence[Pick], person: str) -> list[Pick]:
    return [replace(pick, annotator=person) for pick in picks]


def _drawn(
    found: Project, now: Journal, candidates: Sequence[str], known: set[str], count: int, why: str
) -> list[Pick]:
    """Images drawn at random, by the seed and the number of draws before."""
    rest = [path for path in candidates if path not in known]
    order = torch.randperm(len(rest), generator=generator(found.config.seeds[0], "draw", now.draws))
    return [Pick(rest[i], None, why) for i in order[:count].tolist()]


def _kinds(found: Project) -> str:
    """What there must be two of to train on."""
    return "kinds" if found.several else "classes"


def _known(found: Project, have: Mapping[int, Any]) -> str:
    if not have:
        return "no labels"
    first = next(iter(have.values()))
    names = [name for name, there in zip(found.classes, first, strict=True) if there] if found.several else []
    return f"{len(have)} labels, of {answers.joined(names) if found.several else found.classes[first]} alone"


def _record(found: Project, now: Journal, digest: str, count: int) -> None:
    """Write down that a training is done, and remove those before it. The project is locked."""
    if not now.trained or now.trained[-1]["digest"] != digest:
        journal.append(found.folder, now, "trained", digest=digest, labels=count, time=labels.time())
    trainings = found.folder / ROUNDS
    with (
        suppress(FolderInUseError),
        _lock.locked(trainings),
    ):  # else a process needs them: they go the next time
        for entry in now.trained:
            if entry["digest"] != digest and (trainings / str(entry["digest"])).is_dir():
                shutil.rmtree(trainings / str(entry["digest"]))


@contextmanager
def _engine(
    found: Project, there: tuple[str, ...], now: Journal, say: Say, listener: Listener | None
) -> Iterator[_Engine]:
    """The network of the labels there are; what a user can mend is told in the errors of commands."""
    try:
        yield _Engine(found, there, now, say, listener)
    except (ConfigError, DamagedFileError):
        raise
    except TrainingDivergedError as error:
        raise RunError(f"{error}; a lower --lr may help, in a project of its own") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error


class _Engine:
    """The loop that starts from the labels there are; its folder is named after these and the images.

    Attributes:
        found: The project.
        there: The images that are there: the pool.
        place: Where in the pool each is.
        have: By place of those that have a label, what it is; see `Project.labels`.
        trained: Whether the network was needed, so that its folder is there.
    """

    def __init__(
        self, found: Project, there: tuple[str, ...], now: Journal, say: Say, listener: Listener | None
    ) -> None:
        self.found, self.there, self._say, self._listener = found, there, say, listener
        self.place = {path: place for place, path in enumerate(there)}
        known = found.labels(found.merged(now))
        self.have = {
            self.place[path]: known[index]
            for path, index in found.index.items()
            if index in known and path in self.place
        }
        self.have = dict(sorted(self.have.items()))
        self.strategy = str(found.config.strategy)
        self.trained = False
        self._learner: ActiveLearning | None = None

    @property
    def can_train(self) -> bool:
        """Whether there are labels of two classes, or two answers where samples have several."""
        return len(set(self.have.values())) > 1

    @cached_property
    def _data(self) -> Data:
        return self.found.source.data(self.there, self.found.classes)

    @cached_property
    def _dense(self) -> networks.Dense:
        return networks.dense(self.found.config.model, self._data, self.found.config)

    @cached_property
    def digest(self) -> str:
        """What the training is of."""
        weights = [self._dense.sha256] if self._dense.sha256 else []
        told = json.dumps([sorted(self.have.items()), fingerprint(self._data.pool), *weights])
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def train(self, more: int = 0, taken: Sequence[int] = ()) -> list[tuple[int, float | None]]:
        """Train the selector, or go on with its training, unless that is done.

        Where another process trains a network of this project, its end is waited for.

        Returns:
            So many ``more`` places with their utilities, best first, beside those that are ``taken``.
        """
        self.trained = True
        with self._alone(), self._threads():
            return self._train(more, taken)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Have the trainings of the project for this process: a loop may not be made while another writes to its folder."""
        trainings = self.found.folder / ROUNDS
        trainings.mkdir(exist_ok=True)
        with ExitStack() as held:
            waits = False
            while True:
                try:
                    held.enter_context(_lock.locked(trainings, patience=1.0))
                    break
                except FolderInUseError as error:
                    if not waits:
                        self._say(f"waiting for another training: {error}")
                    waits = True
            yield

    def first(self, more: int, taken: Sequence[int]) -> list[int]:
        """So many places that are chosen without labels, beside those that are ``taken``."""
        with self._threads():
            learner = self._loop((more,), None, folder=None, asks=True)
            learner.state.unclear = list(taken)
            return list(learner.ask().indices)

    def _train(self, more: int, taken: Sequence[int]) -> list[tuple[int, float | None]]:
        self._learner = learner = self._loop(
            (len(self.have), len(self.have) + max(more, 1)),
            self.have,
            folder=self.found.folder / ROUNDS / self.digest,
            asks=more > 0,
        )
        done = bool(learner.state.rounds)
        if not done:
            for note in self._dense.notes:
                self._say(note)
            self._say(f"training the selector on {len(self.have)} labels")
        if not more:
            if not done:
                next(iter(learner))
            return []
        learner.state.unclear = list(taken)
        asked = learner.ask()
        values = [None] * len(asked.indices) if asked.utilities is None else list(asked.utilities)
        return list(zip(asked.indices, values, strict=True))[:more]

    def probabilities(self, places: Sequence[int]) -> Tensor:
        """Probabilities (N, C) of the classes by the selector, on the CPU."""
        learner, config = self._learner, self.found.config
        assert learner is not None
        selector = learner.trained_selector()
        if not places:
            return torch.empty(0, learner.num_classes)
        with self._threads():
            found: Tensor = torch.as_tensor(
                logits_of(
                    selector,
                    self._data.pool,
                    indices=list(places),
                    recipe=config.recipe,
                    workers=config.workers,
                    task=learner.config.learns,
                )
            )
        return (found.sigmoid() if self.found.several else found.softmax(1)).cpu()

    def _threads(self) -> AbstractContextManager[None]:
        return machine.running_on(self.found.config.threads or machine.usual_threads(self._data.input_shape))

    def _loop(
        self, sizes: tuple[int, ...], labeled: dict[int, Any] | None, *, folder: Path | None, asks: bool
    ) -> ActiveLearning:
        config, data = self.found.config, self._data

        def network(name: str) -> Callable[[], torch.nn.Module]:
            return networks.factory(name, data, **networks.options(name, config))

        return ActiveLearning(
            self._dense,
            data.pool,
            None,
            config.loop_for(sizes),
            train=data.train,
            oracle="people" if asks else _nobody,
            labeled=labeled,
            selector_factory=None if config.selector in SELECTORS else network(config.selector),
            device=machine.resolve_device(config.device),
            listener=self._listener,
            folder=folder,
            checkpoint_seconds=config.checkpoint_seconds,
        )


def _nobody(indices: Sequence[int]) -> Sequence[int]:
    """Who answers where no more labels are bought."""
    raise AssertionError("the first round has its labels")
