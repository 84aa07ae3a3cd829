"""What a run says while it goes on: the step and how far it is on a terminal, lines in a log, nothing when quiet."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_LOG_EVERY = 30.0  # seconds between lines of a log within a step


class StepProgress:
    """A context that shows the steps of a run, one after another."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self._quiet = quiet
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[what]}"),
        )
        live = not quiet and self._console.is_terminal
        self._bar = Progress(*columns, console=self._console, transient=True, disable=not live)
        self._task = self._bar.add_task("", total=None, what="")
        self._name, self._logged = "", time.monotonic()

    def __enter__(self) -> StepProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, name: str) -> None:
        """The next step starts."""
        self._name, self._logged = name, time.monotonic()
        self._bar.reset(self._task, description=name, total=None, what="")

    def update(self, done: int, total: int, what: str) -> None:
        """So many epochs or samples of the step are done."""
        self._bar.update(self._task, completed=done, total=total, what=what)
        if not self._console.is_terminal and time.monotonic() - self._logged > _LOG_EVERY:
            self._logged = time.monotonic()
            self.note(f"  {self._name}: {done:,} of {total:,}, {what}")

    def note(self, text: str) -> None:
        """A line of its own."""
        if not self._quiet:
            self._console.print(text, markup=False)
