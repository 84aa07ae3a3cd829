"""Steps of a training that are recorded once, as a CUDA graph, and replayed: the host queues one thing for a whole step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from prunefuse.training._recipe import Recipe

DEVICES: tuple[str, ...] = ("cuda",)
# A step of a shape runs so often before it is recorded: then buffers of the optimizer are there, and libraries have chosen.
_BEFORE = 3
# Shapes that are recorded: the batches of an epoch are of even size, so there are two at most.
_MOST = 2


def check_device(recipe: Recipe, device: torch.device) -> None:
    """Raise ``ValueError`` for a recipe that asks for CUDA graphs elsewhere than on a GPU."""
    if recipe.cuda_graphs and device.type not in DEVICES:
        raise ValueError(f"cuda_graphs must be False on a {device.type}, as a GPU records them, got True")


class Graphs:
    """Does steps by replaying the one that was recorded for their shapes, and those of rare shapes as they come.

    Args:
        work: The step. All that changes from step to step is in its arguments, tensors on the device, and all that it says
            is in the tensors that it returns.
        device: Where it runs.

    Attributes:
        reason: Why nothing more is recorded; empty where that is done, or once it was told.
    """

    def __init__(self, work: Callable[..., tuple[Tensor, ...]], device: torch.device) -> None:
        self._work, self._device = work, device
        self._seen: Counter[tuple[torch.Size, ...]] = Counter()
        self._recorded: dict[
            tuple[torch.Size, ...], tuple[list[Tensor], Callable[[], None], tuple[Tensor, ...]]
        ] = {}
        self.reason = ""
        self._gives_up = False

    def __call__(self, numbers: Sequence[float], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What ``work`` gives for these numbers and tensors, in this order. The results are the caller's."""
        shapes = tuple(one.shape for one in tensors)
        self._seen[shapes] += 1
        often = self._seen[shapes] > _BEFORE and len(self._recorded) < _MOST
        if shapes not in self._recorded and often and not self._gives_up:
            self._record(shapes, numbers, tensors)
        if shapes not in self._recorded:
            with beside(self._device):
                return self._work(*self._places(numbers, tensors))
        places, replay, results = self._recorded[shapes]
        _fill(places, numbers, tensors)
        replay()
        return tuple(one.clone() for one in results)

    def _places(self, numbers: Sequence[float], tensors: Sequence[Tensor]) -> list[Tensor]:
        """Memory on the device for the arguments, with what they are now."""
        places = [torch.empty((), device=self._device) for _ in numbers]
        places += [torch.empty(one.shape, dtype=one.dtype, device=self._device) for one in tensors]
        _fill(places, numbers, tensors)
        return places

    def _record(
        self, shapes: tuple[torch.Size, ...], numbers: Sequence[float], tensors: Sequence[Tensor]
    ) -> None:
        places = self._places(numbers, tensors)
        try:
            replay, results = record(lambda: self._work(*places), self._device)
            if not all(isinstance(one, Tensor) for one in results):
                raise RuntimeError("outputs or labels are not one tensor")
        except RuntimeError as error:  # such as that something waits for the device
            self._gives_up = True
            self.reason = f"a step cannot be recorded: {str(error).splitlines()[0]}"
        else:
            self._recorded[shapes] = (places, replay, results)


def _fill(places: Sequence[Tensor], numbers: Sequence[float], tensors: Sequence[Tensor]) -> None:
    for place, number in zip(places, numbers, strict=False):
        place.fill_(number)
    for place, tensor in zip(places[len(numbers) :], tensors, strict=True):
        place.copy_(tensor, non_blocking=True)


def record(
    work: Callable[[], tuple[Tensor, ...]], device: torch.device
) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
    """Record what ``work`` does on a GPU, which does not run then; how to replay it, and the tensors that it gave."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph):
        results = work()
    return graph.replay, results


@contextmanager
def beside(device: torch.device) -> Iterator[None]:
    """Run on a stream of its own, as what is recorded later must have run before; the usual one waits for it."""
    usual, side = torch.cuda.current_stream(device), _side(device)
    side.wait_stream(usual)
    with torch.cuda.stream(side):
        yield
    usual.wait_stream(side)


def _side(device: torch.device) -> torch.cuda.Stream:
    if device not in _SIDES:
        _SIDES[device] = torch.cuda.Stream(device)
    return _SIDES[device]


_SIDES: dict[torch.device, torch.cuda.Stream] = {}
