"""Where and with what a run was made."""

from __future__ import annotations

import math
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import torch

from prunefuse.experiment.budgets import ConfigError
from prunefuse.training._modes import bfloat16_by
from prunefuse.version import __version__

_TINY = 1000  # values of an image up to which a second thread costs more than it brings


def now() -> str:
    """The time with its zone, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def usual_threads(input_shape: tuple[int, ...]) -> int:
    """One for images as small as the digits, else torch's choice."""
    tiny = len(input_shape) > 1 and math.prod(input_shape) <= _TINY  # a word of a text becomes many values
    return 1 if tiny else torch.get_num_threads()


@contextmanager
def running_on(threads: int) -> Iterator[None]:
    """torch on so many CPU threads, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def resolve_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is a GPU.

    Raises:
        ConfigError: ``cuda`` without one.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device must be auto or cpu: torch {torch.__version__} finds no CUDA GPU")
    return torch.device(name)


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """Device and threads of a run."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "device": device.type,
        "device_name": name,
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "bfloat16": bfloat16_by(device.type) or "not multiplied",
        "system": platform.platform(),
    }


def describe_versions() -> dict[str, str]:
    """Versions of this package (with its git commit, where it runs from a checkout) and of what results depend on."""
    import fvcore
    import numpy
    import torchvision

    commit = _git_commit(Path(__file__).resolve().parent)
    return {
        "prunefuse": f"{__version__}, git {commit}" if commit else __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
        "fvcore": fvcore.__version__,
        "python": platform.python_version(),
    }


def _git_commit(folder: Path) -> str | None:
    """Commit of the checkout that has this file in it, ``-dirty`` if there are changes; None without git or outside one."""
    try:
        # An installed copy may lie below somebody else's repository: only a file that git knows counts.
        for command in (
            "ls-files --error-unmatch " + Path(__file__).name,
            "describe --always --dirty --abbrev=12 --exclude=*",
        ):
            done = subprocess.run(
                ["git", "-C", str(folder), *command.split()],
                capture_output=True,
                text=True,
                check=True,
                timeout=10,
            )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
