"""What removed channels cost the layers that read them, and how these make up for it, in a network of any framework.

The steps and the choices are those of :mod:`prunefuse.pruning.obspa`; here a network is anything that shows what goes in and
out of its layers as it runs.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from prunefuse.pruning._graph.queries import factors
from prunefuse.pruning._obspa.algebra import refit, removal_costs
from prunefuse.pruning._obspa.readers import Application, Enough, Reader
from prunefuse.pruning.plan import PruningPlan


@dataclass(frozen=True)
class Norm:
    """A batch norm, by the names of its running mean and variance."""

    mean: str
    var: str


Run: TypeAlias = Callable[[Any], None]
"""Runs a network on one batch."""


class Network(Protocol):
    """A network that can be run and changed."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Weights, biases and norm statistics by name, to be written in place."""

    def watch_readers(self, readers: Sequence[Reader], tell: Callable[[Application], None]) -> Run:
        """Tell of every application of some readers, in order; ``tell`` may end that run by raising Enough."""

    def watch_norm(self, norm: Norm, tell: Callable[[Tensor], None]) -> Run:
        """Tell of every input (N, C, ...) of a batch norm, which may end that run as well."""


COMBINE: dict[str, Callable[[Sequence[float]], float]] = {
    "sum": math.fsum,
    "mean": statistics.fmean,
    "median": statistics.median,
}
"""How the costs that a channel has in several layers become one."""
FIT_TO = ("dense", "own")
"""What a layer is fitted to; see :mod:`prunefuse.pruning.obspa`."""
RANKED_HERE = ("criterion", "scores", "preset")
"""Planning options that say what the calibration inputs decide."""


def check_planning(planning: Mapping[str, Any], damping: float) -> None:
    """Raise unless these options go with costs as scores."""
    if decided := [name for name in RANKED_HERE if name in planning]:
        raise TypeError(f"{decided[0]} must be left out: channels are ranked by the calibration inputs here")
    if not damping >= 0:
        raise ValueError(f"damping must be a number from 0 on, got {damping}")


def with_notes(plan: PruningPlan, stuck: Mapping[str, str]) -> PruningPlan:
    """A plan by costs, with what stays because of what reads it."""
    notes = (
        f"{name}: read by {where}, which cannot make up for its channels" for name, where in stuck.items()
    )
    return replace(plan, criterion="obspa", notes=(*plan.notes, *notes))


def costs(
    dense: Network,
    readers: Sequence[Reader],
    batches: Iterable[Any],
    damping: float,
    memory: int,
    combine: str = "sum",
) -> dict[str, dict[int, Tensor]]:
    """For each index of an axis that reads, its share of what removing its channel costs: summed, that is the cost.

    Args:
        dense: The network.
        readers: The layers that read.
        batches: Its inputs, as often as they are read.
        damping: λ of the layers' Hessians, as a multiple of the mean of their diagonals.
        memory: Bytes for the Hessians of one run over the inputs.
        combine: How the costs in the layers that read a channel become one; of ``COMBINE``.
    """
    tensors = dense.tensors
    waiting = [(reader, reader.matrix(tensors).shape) for reader in readers]
    found: dict[Reader, dict[int, float]] = {}
    while waiting:
        grams: dict[Reader, Tensor] = {}
        while waiting and (
            not grams or _bytes([*(g.shape for g in grams.values()), waiting[0][1]]) <= memory
        ):
            reader, (groups, _, columns) = waiting.pop(0)
            device = tensors[reader.weight].device
            grams[reader] = torch.zeros((groups, columns, columns), dtype=torch.float64, device=device)

        def add(application: Application, grams: dict[Reader, Tensor] = grams) -> None:
            for rows in application.inputs():
                grams[application.reader] += rows.mT @ rows

        run = dense.watch_readers(list(grams), add)
        for batch in batches:
            run(batch)
        for reader in list(grams):
            gram = grams.pop(reader)
            found[reader] = removal_costs(reader.matrix(tensors), gram, reader.labels(gram.shape[1]), damping)
    if combine != "sum":
        found = _combined(found, COMBINE[combine])
    scores: dict[str, dict[int, Tensor]] = {}
    for reader, cost in found.items():
        shares = Counter(reader.channels.tolist())
        values = [cost.get(c, 0.0) / shares[c] for c in reader.channels.tolist()]
        scores[reader.weight] = {reader.axis: torch.tensor(values, dtype=torch.float64)}
    return scores


def _combined(
    found: Mapping[Reader, Mapping[int, float]], how: Callable[[Sequence[float]], float]
) -> dict[Reader, dict[int, float]]:
    """Costs by layer with others in their place that are equal in all layers and sum to what ``how`` makes of them."""
    by_channel: dict[int, list[float]] = {}
    for cost in found.values():
        for channel, amount in cost.items():
            by_channel.setdefault(channel, []).append(amount)
    share = {channel: how(amounts) / len(amounts) for channel, amounts in by_channel.items()}
    return {reader: {channel: share[channel] for channel in cost} for reader, cost in found.items()}


def _bytes(shapes: Iterable[Sequence[int]]) -> int:
    return sum(8 * groups * columns**2 for groups, *_, columns in shapes)


def compensate(
    small: Network,
    dense: Network,
    plan: PruningPlan,
    steps: Mapping[Reader | Norm, int],
    batches: Iterable[Any],
    damping: float,
) -> None:
    """Step by step, in place: readers that lost inputs, and batch norms behind the first of them.

    Args:
        small: The network cut by the plan.
        dense: The network before.
        plan: The plan.
        steps: Readers and norms in the order in which they run, and how often they do.
        batches: The inputs, as often as they are read.
        damping: λ of the layers' Hessians, as a multiple of the mean of their diagonals.
    """
    changed = False
    for step, calls in steps.items():
        if isinstance(step, Norm):
            if changed:
                _move_norm(step, small, dense, plan.kept, batches)
        elif step.axis in plan.kept.get(step.weight, {}):
            _refit_reader(step, calls, small, dense, plan, batches, damping)
            changed = True


def _refit_reader(
    reader: Reader,
    calls: int,
    small: Network,
    dense: Network,
    plan: PruningPlan,
    batches: Iterable[Any],
    damping: float,
) -> None:
    tensors = small.tensors
    bias = None if reader.bias is None else dense.tensors[reader.bias]
    weight = reader.matrix(tensors)
    cross = torch.zeros_like(weight)
    gram = weight.new_zeros((len(weight), weight.shape[2], weight.shape[2]))
    rows_kept = plan.kept.get(reader.weight, {}).get(1 - reader.axis)
    kept = None if rows_kept is None else torch.tensor(rows_kept, device=weight.device)
    wanted: list[Tensor] = []
    by = _factors_of_queries(reader, kept, plan)

    def remember(application: Application) -> None:
        rows = application.outputs(bias)
        rows = rows if kept is None else rows.index_select(1, kept)
        wanted.append(rows if by is None else rows * by)
        if len(wanted) == calls:
            raise Enough

    def add(application: Application) -> None:
        outputs, start = wanted.pop(0), 0
        for x in application.inputs():
            y = outputs[start : start + x.shape[1]].unflatten(1, (len(x), -1))  # (rows, groups, channels)
            start += x.shape[1]
            gram.add_(x.mT @ x)
            cross.add_(y.permute(1, 2, 0) @ x)
        if not wanted:
            raise Enough

    on_dense, on_small = dense.watch_readers([reader], remember), small.watch_readers([reader], add)
    for batch in batches:
        on_dense(batch)
        on_small(batch)
    reader.write_(tensors, refit(weight, gram, cross, damping))


def _factors_of_queries(reader: Reader, kept: Tensor | None, plan: PruningPlan) -> Tensor | None:
    """What the small network has multiplied of the outputs of a reader; None if nothing."""
    rows = plan.scaled.get(reader.weight, {}).get(1 - reader.axis)
    if rows is None or kept is None:
        return None
    sides: list[Tensor | None] = [kept, kept]
    (_, _, by), *_ = factors({reader.weight: sides}, {reader.weight: {1 - reader.axis: rows}})
    return by


def compensate_own(
    passed: Network,
    dense: Network,
    plan: PruningPlan,
    steps: Iterable[Reader | Norm],
    batches: Iterable[Any],
    damping: float,
) -> None:
    """Step by step, in place, in a copy of the dense network whose layers stop reading what the plan removes.

    Each layer is fitted to the outputs that its dense weights have on the inputs that passed the layers before it. What
    the plan keeps of the copy is the small network.

    Args:
        passed: The copy, of dense width.
        dense: The network before.
        plan: The plan.
        steps: Readers and norms in the order in which they run.
        batches: The inputs, as often as they are read.
        damping: λ of the layers' Hessians, as a multiple of the mean of their diagonals.
    """
    changed = False
    for step in steps:
        if isinstance(step, Norm):
            if changed:
                _move_norm(step, passed, dense, {}, batches)
        elif (kept := plan.kept.get(step.weight, {}).get(step.axis)) is not None:
            _refit_own(step, kept, passed, batches, damping)
            changed = True


def _refit_own(
    reader: Reader, kept: Sequence[int], passed: Network, batches: Iterable[Any], damping: float
) -> None:
    tensors = passed.tensors
    weight = reader.matrix(tensors)
    gram = weight.new_zeros((len(weight), weight.shape[2], weight.shape[2]))

    def add(application: Application) -> None:
        for x in application.inputs():
            gram.add_(x.mT @ x)

    run = passed.watch_readers([reader], add)
    for batch in batches:
        run(batch)
    stays = torch.ones(weight.shape[2], dtype=torch.bool)
    each = (weight.shape[2] - (reader.bias is not None)) // len(reader.channels)  # of kernel positions
    channels = torch.zeros(len(reader.channels), dtype=torch.bool)
    channels[list(kept)] = True
    stays[: each * len(channels)] = channels.repeat_interleave(each)
    stays = stays.to(weight.device)
    fitted = torch.zeros_like(weight)
    fitted[:, :, stays] = refit(
        weight[:, :, stays], gram[:, stays][:, :, stays], weight @ gram[:, :, stays], damping
    )
    reader.write_(tensors, fitted)


def _move_norm(
    norm: Norm,
    small: Network,
    dense: Network,
    kept_of: Mapping[str, Mapping[int, Sequence[int]]],
    batches: Iterable[Any],
) -> None:
    before, after = (_statistics(network, norm, batches) for network in (dense, small))
    kept = kept_of.get(norm.mean, {}).get(0)
    if kept is not None:
        before = before[:, torch.tensor(kept, device=before.device)]
    small.tensors[norm.mean].add_(after[0] - before[0])
    small.tensors[norm.var].mul_(torch.where(before[1] > 0, after[1] / before[1], 1))


def _statistics(network: Network, norm: Norm, batches: Iterable[Any]) -> Tensor:
    """Mean and variance of each channel in front of a batch norm: (2, channels) float64."""
    count, sums = 0, torch.zeros(())

    def watch(x: Tensor) -> None:
        nonlocal count, sums
        x = x.double().movedim(1, 0).flatten(1)
        count += x.shape[1]
        sums = sums + torch.stack([x.sum(1), x.square().sum(1)])
        raise Enough

    run = network.watch_norm(norm, watch)
    for batch in batches:
        run(batch)
    mean, square = sums / count
    return torch.stack([mean, (square - mean.square()).clamp_min(0)])
