"""Exceptions that a user can catch. TypeError and ValueError say which argument is wrong."""

from __future__ import annotations

from pathlib import Path


class ConfigError(ValueError):
    """A value that is not allowed: the message names it, says what it must be, and what it is."""


class TrainingDivergedError(ArithmeticError):
    """The training loss became NaN or infinite."""


class MissingPackageError(ModuleNotFoundError):
    """A package of an extra is not installed; the message says what needs it and which command installs it."""


class LogitsFileError(Exception):
    """A file that does not hold logits, or not all of them; the message names the file and says what is wrong."""


class RunFolderError(Exception):
    """A folder that is not a run folder, or lacks what a report needs; the message says which and what."""


class RunError(Exception):
    """A run that could not go on; the message says why, and where what it has done is."""


class RunInterrupted(KeyboardInterrupt):
    """Ctrl-C during a run. ``folder`` has its complete rounds, of which there are ``rounds``."""

    def __init__(self, folder: Path, rounds: int) -> None:
        super().__init__(str(folder))
        self.folder = folder
        self.rounds = rounds


class ExtrapolateInterrupted(KeyboardInterrupt):
    """Ctrl-C during a run; `prunefuse.experiment.extrapolate.resume` goes on in ``folder``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder


class DamagedFileError(ValueError):
    """A file that is not what was written: changed, or torn. The message names it, and says what to do."""


class FolderInUseError(RuntimeError):
    """A folder that another process is writing to; the message names the process and its machine."""
