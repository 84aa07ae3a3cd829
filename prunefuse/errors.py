"""Exceptions that a user can catch."""

from __future__ import annotations


class ConfigError(ValueError):
    """A value that a run cannot be started with; the message names it and says what is allowed."""
