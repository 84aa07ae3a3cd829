"""Carries out the tasks of a run, in this process or side by side in several.

A task is what one process does as a whole: a trial of `prunefuse run`, a step of `prunefuse extrapolate`. Its results are
on the disk when it ends, so tasks share nothing but their folder, and a run may go on with another number of processes.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any, Protocol

from prunefuse._commit import settle
from prunefuse._lock import locked
from prunefuse.errors import ConfigError, DamagedFileError, FolderInUseError, RunError, TrainingDivergedError
from prunefuse.experiment.records import Epoch, Event, Listener, Phase, Progress, Round, Stop, round_from_dict


@dataclass(frozen=True)
class Task:
    """``name`` is unique; ``inputs`` are names of tasks to do before; ``title`` is for people."""

    name: str
    title: str
    inputs: tuple[str, ...] = ()


class Experiment(Protocol):
    """A run that can be carried out: its folder has a config.json that it can be opened from again."""

    @property
    def path(self) -> Path:
        """The run folder."""

    @property
    def device(self) -> Any:
        """Where it computes."""

    @property
    def threads(self) -> int:
        """CPU threads of each process."""

    def prepare(self) -> None:
        """Make every network once: that checks them, and what a first call takes is not in the ledger."""

    def tasks(self) -> Sequence[Task]:
        """All tasks, each after its inputs."""

    def is_done(self, task: Task) -> bool:
        """Whether a task has nothing left to do."""

    def do(self, task: str, listener: Listener) -> None:
        """Do a task, or the rest of it."""


Told = Callable[[Task, Event | None], None]
"""Called with what happens in a task, and with None at its end."""


def usual_jobs(device: Any, threads: int) -> int:
    """Processes at a time: on the CPU as many as there are cores for, where one thread each is best; else one."""
    if device.type != "cpu" or threads > 1:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def execute(experiment: Experiment, jobs: int, told: Told) -> None:
    """Do all tasks that are not done.

    Args:
        experiment: What to carry out. With several jobs, its folder is opened in other processes.
        jobs: Processes at a time, at most; with one, everything is done in this process.
        told: Called in this process.

    Raises:
        RunError, ConfigError, DamagedFileError, FolderInUseError, OSError: a task failed; what is done is kept.
    """
    left = [task for task in experiment.tasks() if not experiment.is_done(task)]
    jobs = min(jobs, _width(left))
    if jobs > 1:
        with _Crew(experiment) as crew:
            crew.do(left, jobs, told)
        return
    for task in left:

        def listener(event: Event, task: Task = task) -> None:
            told(task, event)

        experiment.do(task.name, listener)
        told(task, None)


@contextmanager
def told_apart() -> Iterator[None]:
    """Make a ``RunError`` of what ends a task without being a mistake in the code."""
    from torch import OutOfMemoryError

    try:
        yield
    except (ConfigError, DamagedFileError):
        raise
    except (TrainingDivergedError, OutOfMemoryError, TypeError, ValueError) as error:
        # The last two are of what a network, a strategy or a reader gives.
        raise RunError(str(error)) from error


def tidy(folder: Path) -> None:
    """Wait for a process of a killed run that is still at a task; then finish or remove what a kill left half done."""
    if folder.is_dir():
        with locked(folder, patience=10.0):
            settle(folder)


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does: with ``KeyboardInterrupt``. SIGHUP that is ignored stays so (nohup)."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _width(tasks: Sequence[Task]) -> int:
    """The most tasks that can go on at a time."""
    depths: dict[str, int] = {}
    for task in tasks:
        depths[task.name] = 1 + max((depths[name] for name in task.inputs if name in depths), default=0)
    return max((list(depths.values()).count(depth) for depth in depths.values()), default=1)


@dataclass
class _Process:
    """A process of a crew, and the task that it is doing."""

    process: subprocess.Popen[str]
    task: Task | None = None


class _Crew:
    """Processes that do tasks; they are started when they are needed, and end with the block, or with this process."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._processes: list[_Process] = []
        self._messages: queue.SimpleQueue[tuple[_Process, dict[str, Any] | None]] = queue.SimpleQueue()

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *_: object) -> None:
        # Whatever a process was doing is whole or not there at all on the disk, so it need not be asked to end.
        for one in self._processes:
            one.process.kill()
        for one in self._processes:
            one.process.wait()
            for pipe in (one.process.stdin, one.process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()

    def do(self, tasks: Sequence[Task], jobs: int, told: Told) -> None:
        """Do these tasks, each after its inputs."""
        waiting = list(tasks)
        unfinished = {task.name for task in tasks}
        while unfinished:
            for task in [task for task in waiting if unfinished.isdisjoint(task.inputs)]:
                idle = next((one for one in self._processes if one.task is None), None)
                if idle is None and len(self._processes) < jobs:
                    idle = self._start()
                if idle is None:
                    break
                waiting.remove(task)
                idle.task = task
                assert idle.process.stdin is not None
                with suppress(BrokenPipeError):  # it has died, and its end is in the queue
                    print(task.name, file=idle.process.stdin, flush=True)
            source, message = self._messages.get()
            finished = self._hear(source, message, told)
            if finished is not None:
                unfinished.discard(finished.name)

    def _hear(self, source: _Process, message: Mapping[str, Any] | None, told: Told) -> Task | None:
        """Pass on what a process says; returns the task that it has finished."""
        task = source.task
        if message is None:
            code = source.process.wait()
            raise RunError(
                f"a process of the run ended with code {code}{f' in {task.title}' if task else ''}"
            )
        if "error" in message:
            _raise(message["kind"], message["error"])
        assert task is not None
        if "event" in message:
            told(task, decoded(message))
            return None
        source.task = None
        told(task, None)
        return task

    def _start(self) -> _Process:
        command = [sys.executable, "-m", "prunefuse.experiment.worker", str(self._experiment.path)]
        command += [self._experiment.device.type, str(self._experiment.threads)]
        # This package, and what a user's strategy imports, are found where this process finds them.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=environment,
            # Not in this process's group: Ctrl-C is for this process alone, which then ends the others.
            start_new_session=True,
        )
        one = _Process(process)
        self._processes.append(one)
        assert process.stdout is not None
        threading.Thread(target=self._listen, args=(one, process.stdout), daemon=True).start()
        return one

    def _listen(self, source: _Process, pipe: IO[str]) -> None:
        with suppress(ValueError, OSError):  # closed at the end of the block
            for line in pipe:
                self._messages.put((source, json.loads(line)))
        self._messages.put((source, None))


_EVENTS: dict[str, Callable[..., Event]] = {"Phase": Phase, "Epoch": Epoch, "Progress": Progress}
ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (RunError, ConfigError, DamagedFileError, FolderInUseError)
}


def encoded(event: Event) -> dict[str, Any]:
    """An event as plain data."""
    return {"event": type(event).__name__, **asdict(event)}


def decoded(message: Mapping[str, Any]) -> Event:
    """The inverse of `encoded`, also after a way through JSON."""
    fields = {name: value for name, value in message.items() if name != "event"}
    if message["event"] == Round.__name__:
        return round_from_dict(fields)
    if message["event"] == Stop.__name__:
        return Stop(**{**fields, "rules": tuple(fields["rules"])})
    return _EVENTS[message["event"]](**fields)


def _raise(kind: str, message: str) -> None:
    raise ERRORS.get(kind, RunError)(message)
