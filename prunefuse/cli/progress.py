"""How far a command is: a bar on a terminal, a line now and then in a log, nothing when quiet."""

from __future__ import annotations

import time
from pathlib import Path

from rich import progress
from rich.console import Console
from typing_extensions import Self

from prunefuse.experiment.records import Epoch, Event, Progress

_LOG_EVERY = 30.0  # seconds between lines of a log


class _Bar:
    """A bar that a context takes away at its end."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self._quiet = quiet
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
        )
        self._bar = progress.Progress(
            *columns, console=self._console, transient=True, disable=quiet or not self._console.is_terminal
        )
        self._task = self._bar.add_task("", total=None)
        self._logged = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        """A line of its own."""
        if not self._quiet:
            self._console.print(text, markup=False)

    def _at(self, bar: str, done: int, total: int, line: str) -> None:
        """So far it is: text of the bar, and a line for a log, where the last one is some time ago."""
        self._bar.update(self._task, description=bar, completed=done, total=total)
        if self._console.is_terminal or time.monotonic() - self._logged < _LOG_EVERY:
            return
        self._logged = time.monotonic()
        self.note(line)


class RowsProgress(_Bar):
    """To be called with a file, the rows done and the rows there are."""

    def __call__(self, file: Path, done: int, total: int) -> None:
        """So many rows are done, the last of them in this file."""
        self._at(file.name, done, total, f"{file}: {done:,} of {total:,} rows")


class TrainingProgress(_Bar):
    """A listener of a loop: epochs of a training, and samples of a scoring pass."""

    def __call__(self, event: Event) -> None:
        """What the loop says."""
        if isinstance(event, Epoch):
            line = f"epoch {event.epoch} of {event.epochs}, loss {event.loss:.4g}"
            self._at(f"training, loss {event.loss:.4g}", event.epoch, event.epochs, line)
        elif isinstance(event, Progress):
            self._at("scoring", event.done, event.total, f"{event.done:,} of {event.total:,} images scored")
