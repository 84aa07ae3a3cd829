"""One process at a time in a folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prunefuse.errors import FolderInUseError

LOCK = ".lock"


@contextmanager
def locked(folder: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Hold a folder while the block runs. The lock ends with the process, whatever ends that, so none is ever stale.

    Args:
        folder: It exists.
        patience: Seconds to wait for a process that has it, such as one that is just being killed.

    Raises:
        FolderInUseError: another process has it; names that process and its machine.
        OSError: the lock cannot be made.
    """
    path = folder / LOCK
    descriptor = _acquired(path, time.monotonic() + patience)
    try:
        owner = {"pid": os.getpid(), "host": platform.node()}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def owner(folder: Path) -> dict[str, Any] | None:
    """Process id and host of the process that has a folder now; None where there is none."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _told(descriptor)
    finally:
        os.close(descriptor)
    return None


def _acquired(path: Path, until: float) -> int:
    while True:
        # Not inherited by processes that are started meanwhile, as no descriptor of Python is.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The owner before removes the file: then the lock is on a file that has no name any more.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(descriptor)
                raise OSError(
                    error.errno, f"the folder cannot be locked: {error.strerror}", str(path)
                ) from error
            if time.monotonic() >= until:
                told = _told(descriptor)
                os.close(descriptor)
                raise FolderInUseError(
                    f"{path.parent} is in use by process {told['pid']} on {told['host']}: wait for its end, or stop it"
                ) from error
            time.sleep(0.05)
        os.close(descriptor)


def _told(descriptor: int) -> dict[str, Any]:
    with suppress(ValueError, OSError):
        told: dict[str, Any] = json.loads(os.pread(descriptor, 4096, 0))
        return told
    return {"pid": "unknown", "host": "an unknown machine"}
