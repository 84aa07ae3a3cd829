"""Settling a traced model at a ratio, or at the smallest one that keeps to a target."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from prunefuse.pruning._choose.fit_code import STEPS, Decision, Programs, Remedies, alike_axes, settle_sizes
from prunefuse.pruning._choose.gradients import Evidence
from prunefuse.pruning._choose.ranking import Axes, Selection, groups_of, normalized
from prunefuse.pruning._choose.scores import channel_scores
from prunefuse.pruning._choose.targets import Costs, Latency, Target, Unreachable, find_ratio, measure
from prunefuse.pruning._graph.copies import cut, named_tensors
from prunefuse.pruning._graph.couplings import Ids
from prunefuse.pruning._graph.export import Exporter
from prunefuse.pruning._graph.trace import Trace, fix_unranked
from prunefuse.pruning._walk import trace
from prunefuse.pruning.options import Options

_LATENCY_STEPS = 6  # every step runs the small model, and noise hides finer ones


@dataclass(frozen=True)
class Ranked:
    """A traced model with scores, that can be settled at any ratio."""

    found: Trace
    component: Ids
    axes: Axes
    scores: npt.NDArray[np.float64]
    selection: Selection

    def choose(self, ratio: Fraction) -> npt.NDArray[np.bool_]:
        """Which coupled channels stay; of every part that an axis is cut into, at least the best one."""
        keep = self.selection.choose(self.axes, self.scores, ratio)
        for channels in self._parts:
            if not keep[channels].any():
                keep[channels[np.argmax(self.scores[channels])]] = True
        return keep

    @cached_property
    def _parts(self) -> list[Ids]:
        """The different axes of computed tensors that may lose all they have."""
        arrays = {id(ids): ids for call in self.found.calls for out in call.outputs for ids in out.axes}
        labels = (np.unique(self.component[ids]) for ids in arrays.values())
        return list({channels.tobytes(): channels for channels in labels if channels[0]}.values())

    def decision(self, ratio: Fraction, remedies: Remedies) -> Decision:
        """Which nodes stay."""
        return Decision(self.found, self.choose(ratio)[self.component], remedies)


def rank(
    found: Trace,
    tensors: Mapping[str, Tensor],
    options: Options,
    evidence: Evidence,
    own_ratios: Mapping[str, Fraction],
    *,
    alike: Sequence[Sequence[Ids]] = (),
    least: int = 1,
) -> Ranked:
    """Score what a trace has found.

    Args:
        found: The trace.
        tensors: Its parameters and buffers.
        options: How channels are scored, and how many leave.
        evidence: What that needs of the user's data.
        own_ratios: Name of a tensor -> the ratio of the channels that it writes.
        alike: Sets of axes that keep equally many indices.
        least: See :func:`fix_unranked`.
    """
    component = fix_unranked(found.couplings.components(), found, least=least)
    scores = channel_scores(options.scoring, found, component, tensors, evidence)
    component = _fix_unscored(component, scores, found, options.scoring.name)
    axes = [component[ids] for name in tensors for ids in found.tensors[name].axes]
    groups = groups_of(axes, len(scores))
    own: dict[int, Fraction] = {}
    for name, axis in found.writers.items():
        for channel in component[found.tensors[name].axes[axis]].tolist() if name in own_ratios else ():
            own[channel] = min(own.get(channel, Fraction(1)), own_ratios[name])
    own.pop(0, None)
    return Ranked(
        found,
        component,
        Axes.of(axes, [[component[ids] for ids in members] for members in alike]),
        normalized(scores, groups, options.normalization),
        replace(options.selection, own=own),
    )


def ratio_for(
    ranked: Ranked, target: Target, tensors: Mapping[str, Tensor], batch: int
) -> tuple[Fraction, str]:
    """The smallest ratio that keeps to a target for parameters, FLOPs or memory, and a note on what is reached.

    Raises:
        ValueError: the dense model keeps to it already, or no ratio does.
    """
    costs = Costs(ranked.found, ranked.component, tensors, batch)
    dense = costs.amount(target.quantity, np.ones(len(ranked.scores), dtype=np.bool_))
    if dense <= target.limit(dense):
        raise _reached_already(target, dense)
    try:
        ratio = find_ratio(
            lambda tried: costs.amount(target.quantity, ranked.choose(tried)), target.limit(dense)
        )
    except Unreachable as error:
        raise _not_reached(target, dense, error.least, ranked) from None
    return ratio, target.describe(dense, costs.amount(target.quantity, ranked.choose(ratio)))


@dataclass(frozen=True)
class Search:
    """All that a plan is made from.

    Attributes:
        model: The dense model.
        inputs: Its example inputs.
        options: How channels are scored, and how many leave.
        evidence: What that needs of the user's data.
        ignored: Paths of modules that keep their output channels.
        free: Whether the exported program is pruned, in which every size can follow.
        exporter: What exports the model, and knows how long it took.
    """

    model: nn.Module
    inputs: tuple[Tensor, ...]
    options: Options
    evidence: Evidence
    ignored: set[str]
    free: bool = False
    exporter: Exporter = field(default_factory=Exporter)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The parameters and buffers of the model."""
        return named_tensors(self.model)

    @property
    def batch(self) -> int:
        """How many inputs the example is."""
        return self.inputs[0].shape[0] if self.inputs[0].ndim else 1

    def at_ratio(self, ratio: Fraction) -> Decision:
        """What is kept at a ratio, so that the model's own code can run with it."""
        return self._settled(lambda *given: self._ranked(*given).decision(ratio, given[1]))

    def at_target(self, target: Target) -> tuple[Decision, Fraction, tuple[str, ...]]:
        """What is kept at the smallest ratio that keeps to the target, that ratio, and notes on what is reached.

        Raises:
            ValueError: the dense model keeps to it already, or no ratio does.
        """
        if target.quantity == "latency":
            return self._at_latency(target)
        ratio = Fraction(0)
        note = ""

        def decide(programs: Programs, remedies: Remedies) -> Decision:
            nonlocal ratio, note
            ranked = self._ranked(programs, remedies)
            ratio, note = ratio_for(ranked, target, self.tensors, self.batch)
            return ranked.decision(ratio, remedies)

        return self._settled(decide), ratio, (note,)

    def _at_latency(self, target: Target) -> tuple[Decision, Fraction, tuple[str, ...]]:
        ranked: Ranked | None = None

        def decide(programs: Programs, remedies: Remedies) -> Decision:
            nonlocal ranked
            ranked = self._ranked(programs, remedies)
            return ranked.decision(Fraction(1, 2), remedies)

        remedies = self._settled(decide).remedies  # for the model's code to run
        assert ranked is not None
        known = ranked
        dense = copy.deepcopy(self.model).eval()

        def timed(decision: Decision) -> Latency:
            small = cut(self.model, decision.indices(self.tensors), decision.attributes()).eval()
            return measure(dense, small, self.inputs, target.repeats)

        def relative(ratio: Fraction) -> float:  # to the dense model in the same minute
            taken = timed(known.decision(ratio, remedies))
            return taken.small / target.limit(taken.dense)

        whole = timed(known.decision(Fraction(0), remedies))
        if whole.dense <= target.limit(whole.dense):
            raise _reached_already(target, whole.dense)
        try:
            ratio = find_ratio(relative, 1, _LATENCY_STEPS)
        except Unreachable as error:
            least = error.least * target.limit(whole.dense)
            raise _not_reached(target, whole.dense, least, known) from None
        decision = self.at_ratio(ratio)
        taken = timed(decision)
        reached = f"{target.describe(taken.dense, taken.small)}: {taken.describe(target.repeats)}"
        return decision, ratio, (reached,)

    def _settled(self, decide: Callable[[Programs, Remedies], Decision]) -> Decision:
        return settle_sizes(self.model, self.inputs, decide, self.exporter)

    def _ranked(self, programs: Programs, remedies: Remedies) -> Ranked:
        whole = {kind: STEPS[step].whole == "live" for kind, step in remedies.items() if STEPS[step].whole}
        found = trace(self.model, programs.evaluation, self.ignored, programs.training, whole, self.free)
        own = {
            name: self.options.own_ratios[path]
            for name in found.writers
            if (path := name.rpartition(".")[0]) in self.options.own_ratios
        }
        alike = alike_axes(found, remedies)
        return rank(found, self.tensors, self.options, self.evidence, own, alike=alike)


def _reached_already(target: Target, dense: float) -> ValueError:
    return ValueError(
        f"target: nothing to prune: the {target.quantity} of the dense model are {dense:,.4g} already, and "
        f"{target.limit(dense):,.4g} are allowed"
    )


def _not_reached(target: Target, dense: float, least: float, ranked: Ranked) -> ValueError:
    stays = "".join(f"; {line}" for line in ranked.found.note_lines())
    return ValueError(
        f"target: expected at most {target.limit(dense):,.4g} for {target.quantity}; with every axis at its smallest "
        f"width there are {least:,.4g} of the dense model's {dense:,.4g}{stays}"
    )


def _fix_unscored(component: Ids, scores: npt.NDArray[np.float64], found: Trace, criterion: str) -> Ids:
    """Keep what the criterion has no score for."""
    unscored = np.isnan(scores)
    unscored[0] = False
    for name, axis in found.writers.items():
        if unscored[component[found.tensors[name].axes[axis]]].any():
            found.note(name, f"{criterion} gives these channels no score")
    return np.where(unscored[component], 0, component)
