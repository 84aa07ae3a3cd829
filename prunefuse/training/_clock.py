"""Wall-clock time of work that may still be queued on a device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Sums the seconds spent in its ``running`` blocks.

    On CUDA the blocks are bracketed by events on the current stream, so that measuring does not make the host
    wait; reading ``seconds`` does. Elsewhere it is ``time.perf_counter``.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._sum = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of this block."""
        if self._cuda:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            yield
            last.record()
            self._events.append((first, last))
        else:
            start = time.perf_counter()
            yield
            self._sum += time.perf_counter() - start

    @property
    def seconds(self) -> float:
        """Seconds counted so far."""
        for first, last in self._events:
            last.synchronize()
            self._sum += first.elapsed_time(last) / 1000
        self._events.clear()
        return self._sum
