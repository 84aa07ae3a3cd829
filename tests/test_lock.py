"""One process at a time in a folder, and no lock that outlives its process."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys

import pytest

from prunefuse._lock import LOCK, locked, owner
from prunefuse.errors import FolderInUseError

HOLD = "import pathlib, sys, time\nfrom prunefuse._lock import locked\n"
HOLD += "with locked(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"


def holding(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_another_process_is_refused_with_the_owner(tmp_path):
    process = holding(tmp_path)
    assert owner(tmp_path) == {"pid": process.pid, "host": platform.node()}
    with (
        pytest.raises(FolderInUseError, match=f"process {process.pid} on {platform.node()}"),
        locked(tmp_path),
    ):
        pass
    process.communicate()
    assert owner(tmp_path) is None
    with locked(tmp_path):
        assert owner(tmp_path)["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    process = holding(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (tmp_path / LOCK).exists()
    assert owner(tmp_path) is None
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_one_may_wait_for_a_process_that_is_ending(tmp_path):
    process = holding(tmp_path)
    process.stdin.close()  # it ends
    with locked(tmp_path, patience=60.0):
        assert owner(tmp_path)["pid"] == os.getpid()
    process.wait()


def test_a_process_started_meanwhile_does_not_have_the_lock(tmp_path):
    with locked(tmp_path):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with locked(tmp_path):  # though the child is alive
        assert child.poll() is None
    child.communicate(b"\n")


def test_a_folder_that_cannot_be_locked_is_named(tmp_path):
    (tmp_path / LOCK).mkdir()
    with pytest.raises(OSError, match=LOCK), locked(tmp_path):
        pass
    with pytest.raises(FileNotFoundError, match="nowhere"), locked(tmp_path / "nowhere"):
        pass
