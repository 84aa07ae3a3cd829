"""Exceptions that a user can catch."""

from __future__ import annotations


class ConfigError(ValueError):
    """A value that a run cannot be started with; the message names it and says what is allowed."""


class DamagedFileError(ValueError):
    """A file that is not what was written: changed, or torn. The message names it, and says what to do."""


class FolderInUseError(RuntimeError):
    """A folder that another process is writing to; the message names the process and its machine."""
