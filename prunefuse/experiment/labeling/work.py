"""The work of a project's network: choosing what to label next, and labeling the rest."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from prunefuse import _lock
from prunefuse._seeds import generator
from prunefuse.data import Data
from prunefuse.data._fingerprint import fingerprint
from prunefuse.errors import ConfigError, DamagedFileError, RunError, TrainingDivergedError
from prunefuse.experiment import machine, networks
from prunefuse.experiment.config import SELECTORS
from prunefuse.experiment.labeling import images, journal, label_studio, labels, project, sheet, table
from prunefuse.experiment.labeling.journal import Journal, Merged
from prunefuse.experiment.labeling.project import Project
from prunefuse.experiment.loop import ActiveLearning
from prunefuse.training import predict as logits_of

ROUNDS = "rounds"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Pick:
    """An image to label: its path, and why it is asked; None and empty where nothing is known."""

    path: str
    utility: float | None
    why: str
    predicted: str = ""
    probability: float | None = None


@dataclass(frozen=True)
class Batch:
    """What was asked, where it stands, and how many images are left beside it."""

    picks: tuple[Pick, ...]
    out: Path
    page: Path | None
    left: int


def next_batch(folder: Path | str, count: int, out: Path | str, *, say: Say = lambda text: None) -> Batch:
    """Write the images to label next as a CSV file, with a page for a browser beside it.

    Images without a label whose votes are a tie come first, then those that were asked before. The selector is trained where
    labels are new. Without labels of two classes, images are drawn at random by the seed.

    Args:
        folder: The project.
        count: How many images; fewer where no more are left.
        out: The CSV file, which must not exist; ``-`` is standard output, without a page. With the ending .json: tasks of
            Label Studio instead.
        say: Called with what is done, in a line.

    Raises:
        ConfigError: ``out`` exists, or an option does not suit the images.
        RunError: the training diverged.
        OSError: an image cannot be read.
    """
    found, out = project.find(folder), Path(out).expanduser()
    if count < 1:
        raise ConfigError(f"n must be at least 1, got {count}")
    tasks = out.suffix.lower() == ".json"
    page = None if tasks or str(out) == "-" else out.with_suffix(".html")
    labels.refuse_existing(*(path for path in (out, page) if path is not None and str(path) != "-"))
    if page == out:
        raise ConfigError(f"out must not be the page beside it: a name such as batch.csv, got {out}")
    now = found.read()
    merged = found.merged(now)
    picks, trained, drawn = _choose(found, now, merged, count, say)
    text = sheet.draw(found, picks, out.name) if picks and page is not None else ""
    with found.held() as later:
        merged = found.merged(later)
        chosen, picks = picks, [pick for pick in picks if labels.is_open(pick.path, merged)]
        if not picks:
            return Batch((), out, page, 0)
        if page is not None and picks != chosen:  # labels have come in the meantime
            text = sheet.draw(found, picks, out.name)
        if trained is not None:
            _record(found, later, *trained)
        if page is not None:
            labels.write_new(page, text)
        labels.write_new(out, label_studio.tasks(found, picks) if tasks else _table(found, picks))
        new = [(pick.path, pick.utility) for pick in picks if pick.path not in later.asked]
        if new:
            journal.append(found.folder, later, "asked", rows=new, drawn=int(drawn), time=labels.time())
    left = sum(labels.is_open(path, merged) for path in found.paths) - len(picks)
    return Batch(tuple(picks), out, page, left)


def predict(folder: Path | str, out: Path | str, *, say: Say = lambda text: None) -> int:
    """Label all images without a label by the selector, and write a CSV file; how many there are.

    The columns are path, index, label, probability, and the probability of each class under its name.

    Args:
        folder: The project.
        out: The file, which must not exist; ``-`` is standard output.
        say: Called with what is done, in a line.

    Raises:
        ConfigError: ``out`` exists, or there are no labels of two classes.
        RunError: the training diverged.
        OSError: an image cannot be read.
    """
    found, out = project.find(folder), Path(out).expanduser()
    labels.refuse_existing(out)
    now = found.read()
    have = found.labels(found.merged(now))
    if not _can_train(have):
        raise ConfigError(
            f"{found.folder} must have labels of two classes to predict the others, got {_known(found, have)}"
        )
    rest = [index for index in range(len(found.paths)) if index not in have]
    header = ["path", "index", "label", "probability", *found.classes]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    if rest:
        with _engine(found, have, say) as engine:
            engine.train()
            rows = engine.probabilities(rest)
            trained = (engine.digest, len(have))
        for index, row in zip(rest, rows.tolist(), strict=True):
            best = max(range(len(row)), key=row.__getitem__)
            values = [f"{value:.6f}" for value in (row[best], *row)]
            writer.writerow([found.paths[index], index, found.classes[best], *values])
        with found.held() as later:
            _record(found, later, *trained)
    labels.write_new(out, text.getvalue())
    return len(rest)


def _choose(
    found: Project, now: Journal, merged: Mapping[str, Merged], count: int, say: Say
) -> tuple[list[Pick], tuple[str, int] | None, bool]:
    """The picks, the training that they are by, and whether some were drawn at random."""
    candidates = [path for path in found.paths if labels.is_open(path, merged)]
    ties = [path for path in candidates if path in merged and merged[path].tied]
    before = [path for path in now.asked if labels.is_open(path, merged) and path not in ties]
    picks = [
        Pick(path, now.asked.get(path), f"annotators disagree: {journal.said(now.votes[path])}")
        for path in ties
    ]
    picks += [Pick(path, now.asked[path], "asked before") for path in before]
    known = {pick.path for pick in picks}
    picks = picks[:count]
    more = min(count - len(picks), len(candidates) - len(known))
    have = found.labels(merged)
    if not _can_train(have):
        why = (
            "random draw"
            if found.config.strategy == "random"
            else "random draw: no labels of two classes yet"
        )
        return picks + _drawn(found, now, candidates, known, more, why), None, more > 0
    random = found.config.strategy == "random"
    open_paths = set(candidates) - known
    taken = [i for i, path in enumerate(found.paths) if path not in open_paths and i not in have]
    with _engine(found, have, say) as engine:
        asked = engine.train(0 if random else more, taken)
        if random:
            picks += _drawn(found, now, candidates, known, more, "random draw")
        why = f"highest {engine.strategy}"
        picks += [Pick(found.paths[index], utility, why) for index, utility in asked]
        best = engine.probabilities([found.index[pick.path] for pick in picks]).max(1)
        trained = (engine.digest, len(have))
    named = [
        replace(pick, predicted=found.classes[i], probability=round(p, 6))
        for pick, i, p in zip(picks, best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    return named, trained, random and more > 0


def _drawn(
    found: Project, now: Journal, candidates: Sequence[str], known: set[str], count: int, why: str
) -> list[Pick]:
    """Images drawn at random, by the seed and the number of draws before."""
    rest = [path for path in candidates if path not in known]
    order = torch.randperm(len(rest), generator=generator(found.config.seeds[0], "draw", now.draws))
    return [Pick(rest[i], None, why) for i in order[:count].tolist()]


def _can_train(have: Mapping[int, int]) -> bool:
    return len(set(have.values())) > 1


def _known(found: Project, have: Mapping[int, int]) -> str:
    names = sorted({found.classes[label] for label in have.values()})
    return f"{len(have)} labels, of {names[0]} alone" if names else "no labels"


def _table(found: Project, picks: Sequence[Pick]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.COLUMNS)
    for pick in picks:
        utility = "" if pick.utility is None else f"{pick.utility:.6g}"
        writer.writerow([pick.path, found.index[pick.path], utility, pick.predicted, pick.why, "", "", ""])
    return text.getvalue()


def _record(found: Project, now: Journal, digest: str, count: int) -> None:
    """Write down that a training is done, and remove those before it. The project is locked."""
    if not now.trained or now.trained[-1]["digest"] != digest:
        journal.append(found.folder, now, "trained", digest=digest, labels=count, time=labels.time())
    for entry in now.trained:
        old = found.folder / ROUNDS / str(entry["digest"])
        if entry["digest"] != digest and old.is_dir() and _lock.owner(old) is None:
            shutil.rmtree(old)


@contextmanager
def _engine(found: Project, have: Mapping[int, int], say: Say) -> Iterator[_Engine]:
    """The network of these labels; what a user can mend is told in the errors of commands."""
    config = found.config
    try:
        data = images.data_of(found.base, found.paths, found.classes, config)
        with machine.running_on(config.threads or machine.usual_threads(data.input_shape)):
            yield _Engine(found, dict(sorted(have.items())), data, say)
    except (ConfigError, DamagedFileError):
        raise
    except TrainingDivergedError as error:
        raise RunError(f"{error}; a lower --lr may help, in a project of its own") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error


class _Engine:
    """The loop that starts from the labels there are; its folder is named after these and the images."""

    def __init__(self, found: Project, have: dict[int, int], data: Data, say: Say) -> None:
        self._found, self._have, self._data, self._say = found, have, data, say
        self._dense = networks.dense(found.config.model, data, found.config)
        weights = [self._dense.sha256] if self._dense.sha256 else []
        told = json.dumps([sorted(have.items()), fingerprint(data.pool), *weights])
        self.digest = hashlib.sha256(told.encode()).hexdigest()[:16]
        self._learner: ActiveLearning | None = None
        self.strategy = str(found.config.strategy)

    def train(self, more: int = 0, taken: Sequence[int] = ()) -> list[tuple[int, float | None]]:
        """Train the selector, or go on with its training, unless that is done.

        Returns:
            So many ``more`` images with their utilities, best first, beside those that are ``taken``.
        """
        self._learner = learner = self._loop(max(more, 1), asks=more > 0)
        done = bool(learner.state.rounds)
        if not done:
            for note in self._dense.notes:
                self._say(note)
            self._say(f"training the selector on {len(self._have)} labels")
        if not more:
            if not done:
                next(iter(learner))
            return []
        learner.state.unclear = list(taken)
        asked = learner.ask()
        values = [None] * len(asked.indices) if asked.utilities is None else list(asked.utilities)
        return list(zip(asked.indices, values, strict=True))[:more]

    def probabilities(self, indices: Sequence[int]) -> Tensor:
        """Probabilities (N, C) of the classes by the selector, on the CPU."""
        learner, config = self._learner, self._found.config
        assert learner is not None
        selector = learner._initial_selector()
        selector.load_state_dict(learner.state.selector)
        if not indices:
            return torch.empty(0, learner.num_classes)
        found: Tensor = torch.as_tensor(
            logits_of(
                selector,
                self._data.pool,
                indices=list(indices),
                recipe=config.recipe,
                workers=config.workers,
            )
        )
        return found.softmax(1).cpu()

    def _loop(self, more: int, *, asks: bool) -> ActiveLearning:
        found, config, data = self._found, self._found.config, self._data
        size = len(self._have)

        def network(name: str) -> Callable[[], torch.nn.Module]:
            return networks.factory(name, data, **networks.options(name, config))

        return ActiveLearning(
            self._dense,
            data.pool,
            None,
            config.loop_for((size, size + more)),
            train=data.train,
            oracle="people" if asks else _nobody,
            labeled=self._have,
            selector_factory=None if config.selector in SELECTORS else network(config.selector),
            device=machine.resolve_device(config.device),
            folder=found.folder / ROUNDS / self.digest,
            checkpoint_seconds=config.checkpoint_seconds,
        )


def _nobody(indices: Sequence[int]) -> Sequence[int]:
    """Who answers where no more labels are bought."""
    raise AssertionError("the first round has its labels")
