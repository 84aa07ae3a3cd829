"""Exceptions that a user can catch. TypeError and ValueError say which argument is wrong."""

from __future__ import annotations

from pathlib import Path


class ConfigError(ValueError):
    """A value that is not allowed: the message names it, says what it must be, and what it is.

    >>> try: prunefuse.Recipe(lr=-1.0)
    ... except prunefuse.errors.ConfigError as error: print(error)
    lr must be a positive number, got -1.0
    """


class TrainingDivergedError(ArithmeticError):
    """The training loss became NaN or infinite.

    >>> issubclass(prunefuse.errors.TrainingDivergedError, ArithmeticError)
    True
    """


class MissingPackageError(ModuleNotFoundError):
    """A package of an extra is not installed; the message says what needs it and which command installs it.

    >>> issubclass(prunefuse.errors.MissingPackageError, ImportError)
    True
    """


class LogitsFileError(Exception):
    """A file that does not hold logits, or not all of them; the message names the file and says what is wrong.

    >>> issubclass(prunefuse.errors.LogitsFileError, Exception)
    True
    """


class DataWarning(UserWarning):
    """A part of a data set that was left out, such as files that are no images.

    >>> issubclass(prunefuse.errors.DataWarning, UserWarning)
    True
    """


class TooFewRowsError(ValueError):
    """More rows are to be picked than can be; ``selectable`` of ``rows`` could be.

    >>> try: prunefuse.top_b(torch.tensor([0.5, float("nan")]), 2)
    ... except prunefuse.errors.TooFewRowsError as error: print(error.selectable)
    1
    """

    def __init__(self, message: str, selectable: int, rows: int) -> None:
        super().__init__(message)
        self.selectable = selectable
        self.rows = rows


class RunFolderError(Exception):
    """A folder that is not a run folder, or lacks what a report needs; the message says which and what.

    >>> issubclass(prunefuse.errors.RunFolderError, Exception)
    True
    """


class RunError(Exception):
    """A run that could not go on; the message says why, and where what it has done is.

    >>> issubclass(prunefuse.errors.RunError, Exception)
    True
    """


class RunInterrupted(KeyboardInterrupt):
    """Ctrl-C during a run. ``folder`` has its complete rounds, of which there are ``rounds``.

    >>> issubclass(prunefuse.errors.RunInterrupted, KeyboardInterrupt)
    True
    """

    def __init__(self, folder: Path, rounds: int) -> None:
        super().__init__(str(folder))
        self.folder = folder
        self.rounds = rounds


class StudyInterrupted(KeyboardInterrupt):
    """Ctrl-C during a study; `prunefuse.experiment.study.run` with the same ``folder`` goes on.

    >>> issubclass(prunefuse.errors.StudyInterrupted, KeyboardInterrupt)
    True
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder


class ExtrapolateInterrupted(KeyboardInterrupt):
    """Ctrl-C during a run; `prunefuse.experiment.extrapolate.resume` goes on in ``folder``.

    >>> issubclass(prunefuse.errors.ExtrapolateInterrupted, KeyboardInterrupt)
    True
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder


class DamagedFileError(ValueError):
    """A file that is not what was written: changed, or torn. The message names it, and says what to do.

    >>> issubclass(prunefuse.errors.DamagedFileError, ValueError)
    True
    """


class FolderInUseError(RuntimeError):
    """A folder that another process is writing to; the message names the process and its machine.

    >>> issubclass(prunefuse.errors.FolderInUseError, RuntimeError)
    True
    """


class CaptureError(RuntimeError):
    """A model that `torch.export` cannot capture; ``module`` is the path of the innermost module that was running.

    >>> issubclass(prunefuse.errors.CaptureError, RuntimeError)
    True
    """

    def __init__(self, message: str, module: str) -> None:
        super().__init__(message)
        self.module = module
