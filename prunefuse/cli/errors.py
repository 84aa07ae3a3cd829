"""Errors of a user are one line on standard error; anything else is a bug and keeps its traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer


@contextmanager
def reported() -> Iterator[None]:
    """Turn the errors that commands are known to end with into a message and an exit code."""
    try:
        # Inside, as these imports take a while, in which Ctrl-C is to end with the same message.
        from prunefuse.experiment.budgets import ConfigError
        from prunefuse.experiment.extrapolate._run import ExtrapolateInterrupted
        from prunefuse.experiment.folder import RunError, RunFolderError
        from prunefuse.experiment.run import RunInterrupted
        from prunefuse.scoring._files import LogitsFileError

        try:
            yield
        except (ConfigError, RunFolderError) as error:
            _end(f"Error: {error}", 2)
        except (RunError, LogitsFileError, OSError) as error:
            _end(f"Error: {error}", 1)
        except ExtrapolateInterrupted as interruption:
            folder = interruption.folder
            _end(f"Stopped. To go on: prunefuse extrapolate --resume {folder}", 130)
        except RunInterrupted as interruption:
            folder = interruption.folder
            if not interruption.rounds:
                _end(f"Stopped before a round was complete; {folder} has the configuration alone.", 130)
            _end(
                f"Stopped. The complete rounds are in {folder}; `prunefuse report {folder}` draws them.", 130
            )
    except KeyboardInterrupt:
        _end("Stopped: nothing was written.", 130)


def _end(message: str, code: int) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)
