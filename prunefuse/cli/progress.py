"""How far a command is: a bar on a terminal, a line now and then in a log, nothing when quiet."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_LOG_EVERY = 30.0  # seconds between lines of a log


class RowsProgress:
    """To be called with a file, the rows done and the rows there are; a context that takes the bar away at its end."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self._quiet = quiet
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(
            *columns, console=self._console, transient=True, disable=quiet or not self._console.is_terminal
        )
        self._task = self._bar.add_task("", total=None)
        self._logged = time.monotonic()

    def __enter__(self) -> RowsProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, file: Path, done: int, total: int) -> None:
        """So many rows are done, the last of them in this file."""
        self._bar.update(self._task, description=file.name, completed=done, total=total)
        if self._console.is_terminal or time.monotonic() - self._logged < _LOG_EVERY:
            return
        self._logged = time.monotonic()
        self.note(f"{file}: {done:,} of {total:,} rows")

    def note(self, text: str) -> None:
        """A line of its own."""
        if not self._quiet:
            self._console.print(text, markup=False)
