"""Work in a process of its own, under a limit of time and of memory."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Failed:
    """No result, and why."""

    why: str


def run(
    work: Callable[..., T], *arguments: Any, seconds: float, gibibytes: int = 12, imports: Sequence[str] = ()
) -> T | Failed:
    """What ``work`` returns or how it failed; it, its arguments and its result are pickled.

    The process is forked from one that has done nothing but import the module of ``work`` and those in ``imports``, where
    they are installed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__module__, *imports])
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(work, arguments, gibibytes, send))
    process.start()
    send.close()
    try:
        return receive.recv() if receive.poll(seconds) else Failed(f"no answer within {seconds:g} s")
    except EOFError:
        return Failed("the process died, probably for want of memory")
    finally:
        process.kill()
        process.join()


def _work(work: Callable[..., Any], arguments: tuple[Any, ...], gibibytes: int, answer: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (gibibytes << 30, gibibytes << 30))
    try:
        answer.send(work(*arguments))
    except Exception as error:
        answer.send(Failed(f"{type(error).__name__}: {error}"[:600]))
