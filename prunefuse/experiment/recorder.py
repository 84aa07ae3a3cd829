"""Tells the listener what happens, and times it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from prunefuse.experiment.records import Cost, Event, Listener, Network, Phase, PhaseName


class Recorder:
    """Passes events on to ``listener``, if there is one, and times phases on ``device``."""

    def __init__(self, listener: Listener | None, device: torch.device) -> None:
        self._listener = listener
        self._device = device

    def tell(self, event: Event) -> None:
        """Hand ``event`` to the listener."""
        if self._listener is not None:
            self._listener(event)

    @contextmanager
    def phase(
        self, phase: PhaseName, network: Network, index: int, labels: int, flops: float, costs: list[Cost]
    ) -> Iterator[None]:
        """Announce a phase without epochs in round ``index``, time the block, and write it to ``costs``."""
        self.tell(Phase(index, phase, network, labels, 0, flops))
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        costs.append(Cost(phase, network, index, labels, flops, time.perf_counter() - start))

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
