"""Errors of a user are one line on standard error; anything else is a bug and keeps its traceback."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from prunefuse.errors import (
    ConfigError,
    DamagedFileError,
    ExtrapolateInterrupted,
    FolderInUseError,
    LogitsFileError,
    RunError,
    RunFolderError,
    RunInterrupted,
    StudyInterrupted,
)


@contextmanager
def reported() -> Iterator[None]:
    """Turn the errors that commands are known to end with into a message and an exit code; signals end them as Ctrl-C does."""
    try:
        # Here, as a command's imports take a while, in which Ctrl-C is to end with the same message.
        from prunefuse.experiment.execute import interruptible

        with interruptible():
            yield
    except (ConfigError, RunFolderError) as error:
        _end(f"Error: {error}", 2)
    except (RunError, DamagedFileError, FolderInUseError, LogitsFileError, OSError) as error:
        _end(f"Error: {error}", 1)
    except ExtrapolateInterrupted as interruption:
        _end(f"Stopped. To go on: prunefuse extrapolate --resume {_quoted(interruption.folder)}", 130)
    except StudyInterrupted as interruption:
        drawn = f"`prunefuse study report {_quoted(interruption.folder)}` draws what is done"
        _end(f"Stopped. To go on, run the same command again; {drawn}", 130)
    except RunInterrupted as interruption:
        folder = _quoted(interruption.folder)
        drawn = f"; `prunefuse report {folder}` draws what is done" if interruption.rounds else ""
        _end(f"Stopped. To go on: prunefuse run --resume {folder}{drawn}", 130)
    except KeyboardInterrupt:
        _end("Stopped: nothing was written.", 130)


def _quoted(path: object) -> str:
    return shlex.quote(str(path))


def _end(message: str, code: int) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)
