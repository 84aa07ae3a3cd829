"""A process that does tasks of a run, named on its standard input, and tells on its standard output how far it is.

It ends when its parent ends, also when that was killed: then its standard input closes, and Linux sends SIGKILL.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

_PROGRESS_EVERY = 0.25  # seconds between messages of a scoring pass


def main() -> None:
    """``python -m prunefuse.experiment.worker FOLDER DEVICE THREADS``."""
    _end_with_parent()
    tasks: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(tasks,), daemon=True).start()
    # Messages have a descriptor of their own: whatever else writes to standard output (a user's code) goes to the log.
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=messages, flush=True)

    from prunefuse.experiment import execute, machine
    from prunefuse.experiment.open import open_experiment
    from prunefuse.experiment.records import Event, Progress

    path, device, threads = sys.argv[1:]
    told = 0.0

    def listener(event: Event) -> None:
        nonlocal told
        if isinstance(event, Progress):
            if time.monotonic() - told < _PROGRESS_EVERY and event.done < event.total:
                return
            told = time.monotonic()
        send(execute.encoded(event))

    known: tuple[type[Exception], ...] = (*execute.ERRORS.values(), OSError)
    try:
        with machine.running_on(int(threads)):
            experiment = open_experiment(Path(path), device=device)
            experiment.prepare()
            while True:
                task = tasks.get()
                experiment.do(task, listener)
                send({"done": task})
    except known as error:
        send({"error": str(error), "kind": type(error).__name__})


def _read(tasks: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        tasks.put(line.rstrip("\n"))
    os._exit(1)  # the parent has ended: at once, whatever this process is computing


def _end_with_parent() -> None:
    parent = os.getppid()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            if os.getppid() != parent:
                os._exit(1)  # it ended before


if __name__ == "__main__":
    main()
