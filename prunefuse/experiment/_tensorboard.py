"""The numbers of a run for TensorBoard: a folder for each task, and below it one for each training.

A training is written epoch by epoch while it goes on. What counts is what the run keeps, though: where the two differ, as
after a kill, the folder of the training is written anew, so no point is there twice.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prunefuse._extras import needed_for
from prunefuse.experiment.cost import selection_cost
from prunefuse.experiment.records import Epoch, Event, Round

FOLDER = "tensorboard"
_FLUSH_SECONDS = 10


def writer_kind() -> type[Any]:
    """Torch's writer.

    Raises:
        MissingPackageError: the package tensorboard is not installed.
    """
    with needed_for("the option tensorboard"):
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter


class TensorBoard:
    """Writes what it is told of below a folder; ``by_round`` where every round of a task has trainings of its own."""

    def __init__(self, folder: Path, *, by_round: bool) -> None:
        self._folder, self._by_round = folder, by_round
        self._writer = writer_kind()
        self._tasks: dict[str, Any] = {}
        self._trainings: dict[str, Any] = {}
        self._told: dict[str, list[tuple[str, int]]] = {}
        self._spent: dict[str, list[Any]] = {}

    def begin(self, task: str, rounds: Iterable[Round] = ()) -> None:
        """Remove what is there of a task, and write the rounds that it has completed before."""
        _remove(self._folder / task)
        for done in rounds:
            self(task, done)

    def __call__(self, task: str, event: Event) -> None:
        """Write an epoch or a round."""
        if isinstance(event, Epoch):
            self._epoch(self._place(task, event.round), event)
        elif isinstance(event, Round):
            own = [epoch for epoch in event.epochs if epoch.round == event.index]
            self.complete(self._place(task, event.index), own)
            self.scalars(task, event.labels, self._of_round(task, event))

    def complete(self, place: str, epochs: Iterable[Epoch]) -> None:
        """A training, or the two of a round, is done, and these are all of its epochs."""
        epochs = tuple(epochs)
        if self._told.get(place, []) != [_name(epoch) for epoch in epochs]:
            self._close(place)
            _remove(self._folder / place)
            for epoch in epochs:
                self._epoch(place, epoch)
        self._close(place)

    def scalars(self, task: str, step: int, values: Mapping[str, float | None]) -> None:
        """Write numbers of a task; None is not written."""
        if task not in self._tasks:
            self._tasks[task] = self._open(task)
        for name, value in values.items():
            if value is not None:
                self._tasks[task].add_scalar(name, value, step)
        self._tasks[task].flush()

    def close(self) -> None:
        """Write all that is not on the disk."""
        for writer in (*self._tasks.values(), *self._trainings.values()):
            writer.close()
        self._tasks, self._trainings = {}, {}

    def _place(self, task: str, index: int) -> str:
        return f"{task}/round{index}" if self._by_round else task

    def _of_round(self, task: str, done: Round) -> dict[str, float | None]:
        spent = self._spent.setdefault(task, [])
        spent += done.costs
        selection = selection_cost(spent, done.labels)
        name = next((next(iter(metrics)) for metrics in done.metrics.values()), "accuracy")
        return {
            f"{name}/final": done.final_accuracy,
            f"{name}/selector": done.selector_accuracy,
            "selection/FLOPs": selection.flops,
            "selection/seconds": selection.seconds,
        }

    def _epoch(self, place: str, epoch: Epoch) -> None:
        if place not in self._trainings:
            self._trainings[place] = self._open(place)
        writer, network = self._trainings[place], epoch.network
        for name in ("loss", "lr", "train_accuracy", "test_accuracy"):
            value = getattr(epoch, name)
            if value is not None and not math.isnan(value):  # what is not known
                writer.add_scalar(f"{network}/{name}", value, epoch.epoch)
        self._told.setdefault(place, []).append(_name(epoch))

    def _open(self, place: str) -> Any:
        return self._writer(str(self._folder / place), flush_secs=_FLUSH_SECONDS)

    def _close(self, place: str) -> None:
        self._told.pop(place, None)
        writer = self._trainings.pop(place, None)
        if writer is not None:
            writer.close()


def _remove(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)


def _name(epoch: Epoch) -> tuple[str, int]:
    return epoch.network, epoch.epoch
