"""Exceptions that a user can catch."""

from __future__ import annotations


class ConfigError(ValueError):
    """A value that a run cannot be started with; the message names it and says what is allowed."""


class CaptureError(RuntimeError):
    """A model that `torch.export` cannot capture; ``module`` is the path of the innermost module that was running."""

    def __init__(self, message: str, module: str) -> None:
        super().__init__(message)
        self.module = module
