"""Who else is told of a run while it goes on: a user's listener, and TensorBoard. They run in the run's own process.

What is wrong with them is an error before any work. A listener that fails later is switched off, and the run goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunefuse.errors import ConfigError, RunError
from prunefuse.experiment import _tensorboard
from prunefuse.experiment.config import MachineOptions
from prunefuse.experiment.records import Epoch, Event, Network, Round
from prunefuse.selection._custom import load_function

Heard = Callable[[str, Event], Any]


class Listening:
    """The listeners that a configuration asks for. Making one finds them, so that what is missing is told at once.

    Raises:
        ConfigError: the listener cannot be loaded.
        MissingPackageError: the package tensorboard is not installed.
    """

    def __init__(self, config: MachineOptions) -> None:
        self._place = config.listener
        self._make: Callable[[Path], Heard] | None = None
        if config.listener is not None:
            try:
                self._make = load_function(config.listener, "listener")
            except ValueError as error:
                raise ConfigError(str(error)) from error
        if config.tensorboard:
            _tensorboard.writer_kind()
        self._wants_board = config.tensorboard
        self._heard: Heard | None = None
        self._board: _tensorboard.TensorBoard | None = None
        self._note: Callable[[str], None] = print

    @contextmanager
    def to(
        self,
        path: Path,
        done: Mapping[str, Sequence[Round]],
        note: Callable[[str], None],
        *,
        by_round: bool = True,
    ) -> Iterator[None]:
        """Tell of a run while the block runs.

        Args:
            path: The run folder.
            done: The tasks that have something left to do, each with the rounds it has done.
            note: Called with a line, where something is switched off.
            by_round: Whether every round of a task has trainings of its own.

        Raises:
            RunError: the listener fails to begin.
        """
        self._note = note
        if self._make is not None:
            self._heard = self._begin(self._make, path)
        with self._safe("tensorboard"):
            if self._wants_board:
                self._board = _tensorboard.TensorBoard(path / _tensorboard.FOLDER, by_round=by_round)
                for task, rounds in done.items():
                    self._board.begin(task, rounds)
        try:
            yield
        finally:
            with self._safe("tensorboard"):
                if self._board is not None:
                    self._board.close()

    def __call__(self, task: str, event: Event) -> None:
        """Pass an event on."""
        with self._safe("listener"):
            if self._heard is not None:
                self._heard(task, event)
        with self._safe("tensorboard"):
            if self._board is not None:
                self._board(task, event)

    def trained(self, task: str, network: Network, done: Mapping[str, Any]) -> None:
        """A task without rounds is done; ``done`` is what it has kept, which of a training are its epochs and its accuracy."""
        if "epochs" not in done:
            return
        count = len(done["epochs"])
        epochs = [
            Epoch(0, network, number, count, math.nan, loss, accuracy, None, 0.0)
            for number, (loss, accuracy) in enumerate(done["epochs"], 1)
        ]
        with self._safe("tensorboard"):
            if self._board is not None:
                self._board.complete(task, epochs)
                self._board.scalars(task, done["samples"], {"accuracy": done["accuracy"]})

    def _begin(self, make: Callable[[Path], Heard], path: Path) -> Heard:
        try:
            heard = make(path)
        except Exception as error:
            raise RunError(f"listener {self._place} failed: {_line(error)}") from error
        if not callable(heard):
            raise RunError(
                f"listener {self._place} must return a function of (task, event), got {type(heard).__name__}"
            )
        return heard

    @contextmanager
    def _safe(self, name: str) -> Iterator[None]:
        """No run is lost for one who only listens."""
        try:
            yield
        except Exception as error:
            self._note(f"{name} is switched off, as it failed: {_line(error)}")
            if name == "listener":
                self._heard = None
            else:
                self._board = None


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
