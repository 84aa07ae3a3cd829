"""Packages that a part of the tests needs: skipped where they are not installed, unless this is CI."""

import os
from importlib.util import find_spec

import pytest


def skip_without(package):
    """Skips the test, or the module, that calls it. Not in CI and `make test`, which install all: there it fails at import."""
    required = os.environ.get("CI") or os.environ.get("PRUNEFUSE_REQUIRE_PACKAGES")
    if not required and find_spec(package) is None:
        pytest.skip(f"{package} is not installed; make test installs it", allow_module_level=True)
