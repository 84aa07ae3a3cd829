"""A traced network with scores, settled at a ratio or at the smallest one that keeps to a target."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from prunefuse._inputs import Inputs
from prunefuse.pruning._choose.fit_code import Decision, Remedies
from prunefuse.pruning._choose.gradients import Evidence
from prunefuse.pruning._choose.ranking import Axes, Axis, Selection, groups_of, normalized
from prunefuse.pruning._choose.scores import channel_scores
from prunefuse.pruning._choose.targets import Costs, Latency, Target, Unreachable, find_ratio, measure
from prunefuse.pruning._graph.copies import copied, cut, named_tensors
from prunefuse.pruning._graph.couplings import Ids
from prunefuse.pruning._graph.export import without_collections
from prunefuse.pruning._graph.program import Program
from prunefuse.pruning._graph.trace import Note, Trace, fix_unranked, note_lines
from prunefuse.pruning._walk import trace
from prunefuse.pruning.options import Options

_LATENCY_STEPS = 6  # every step runs the small model, and noise hides finer ones


@dataclass(frozen=True)
class Dense:
    """A dense model that can be ranked.

    Attributes:
        model: The model.
        inputs: Its example inputs.
        evaluation: Its graph in evaluation mode.
        training: That in training mode, where parameters are used there and nowhere else; else None.
        options: How channels are scored, and how many leave.
        evidence: What that needs of the user's data.
        ignored: Paths of modules that keep their output channels.
        free: Whether the exported program is pruned, in which every size can follow.
    """

    model: nn.Module
    inputs: Inputs
    evaluation: Program
    training: Program | None
    options: Options
    evidence: Evidence
    ignored: set[str]
    free: bool

    @property
    def batch(self) -> int:
        """How many inputs the example is."""
        return self.inputs.batch

    @property
    def heads(self) -> str:
        """What attention loses; whole heads where values make the graph, as numbers are not compared there."""
        return "whole" if self.evaluation.by_values and not self.free else self.options.heads

    def ranked(self, remedies: Remedies) -> Ranked:
        """The model with scores, where modules are treated as the remedies say."""
        scored = self._scored(remedies)
        traced = scored.trace
        own_ratios = {
            name: self.options.own_ratios[path]
            for name in traced.writers
            if (path := name.rpartition(".")[0]) in self.options.own_ratios
        }
        return _ranked(scored, self.options, own_ratios, self.batch, remedies)

    def _scored(self, remedies: Remedies) -> Scored:
        """The model traced and scored; remedies that only change attributes, or what is equally long, share that."""
        kinds = (frozenset(remedies.whole.items()), frozenset(remedies.smallest), remedies.whole_heads)
        if kinds not in self._known:
            with without_collections():
                traced = trace(
                    self.model,
                    self.evaluation,
                    self.ignored,
                    self.training,
                    remedies.whole,
                    self.free,
                    smallest=remedies.smallest,
                    heads=self.heads,
                    whole_heads=remedies.whole_heads,
                )
            self._known[kinds] = Scored.of(traced, named_tensors(self.model), self.options, self.evidence)
        return self._known[kinds]

    @cached_property
    def _known(self) -> dict[Hashable, Scored]:
        return {}


@dataclass(frozen=True)
class Scored:
    """A traced network with scores.

    Attributes:
        trace: The network.
        tensors: Its parameters and buffers.
        component: The coupled channel of every node; 0 = stays.
        scores: One for each coupled channel, not normalized.
        notes: What stays whole, and why.
    """

    trace: Trace
    tensors: Mapping[str, Tensor]
    component: Ids
    scores: npt.NDArray[np.float64]
    notes: tuple[Note, ...]

    @staticmethod
    def of(
        traced: Trace, tensors: Mapping[str, Tensor], options: Options, evidence: Evidence, least: int = 1
    ) -> Scored:
        """Score the channels of a trace; the arguments are those of :func:`rank`."""
        component, unranked = fix_unranked(traced, least=least)
        scores = channel_scores(options.scoring, traced, component, tensors, evidence)
        component, unscored = _fix_unscored(component, scores, traced, options.scoring.name)
        return Scored(traced, tensors, component, scores, (*traced.notes, *unranked, *unscored))


@dataclass(frozen=True)
class Ranked:
    """A traced network with scores, that can be settled at any ratio.

    Attributes:
        trace: The network.
        tensors: Its parameters and buffers.
        batch: How many inputs the example is.
        component: The coupled channel of every node; 0 = stays.
        axes: The coupled channels of every axis.
        scores: One for each coupled channel.
        selection: How many of them are kept.
        remedies: How modules are treated whose code could not run with what was decided before.
        notes: What stays whole, and why.
    """

    trace: Trace
    tensors: Mapping[str, Tensor]
    batch: int
    component: Ids
    axes: Axes
    scores: npt.NDArray[np.float64]
    selection: Selection
    remedies: Remedies
    notes: tuple[Note, ...]

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
        arrays = {id(ids): ids for call in self.trace.calls for out in call.outputs for ids in out.axes}
        labels = (np.unique(self.component[ids]) for ids in arrays.values())
        return list(
            {channels.tobytes(): channels for channels in labels if len(channels) and channels[0]}.values()
        )

    @cached_property
    def costs(self) -> Costs:
        """What the network costs with some of its coupled channels."""
        return Costs(self.trace, self.component, self.tensors, self.batch)

    def cost(self, target: Target, ratio: Fraction | None = None) -> int:
        """What a target limits, of the network settled at a ratio; None: of the dense one."""
        keep = np.ones(len(self.scores), dtype=np.bool_) if ratio is None else self.choose(ratio)
        return self.costs.amount(target.quantity, keep)

    def at(self, goal: Fraction | Target) -> Decision:
        """Which nodes stay, at a ratio or for a target; errors are those of :meth:`at_target`."""
        return self.at_target(goal) if isinstance(goal, Target) else self.at_ratio(goal)

    def at_ratio(self, ratio: Fraction) -> Decision:
        """Which nodes stay."""
        return Decision(self.trace, self.choose(ratio)[self.component], self.remedies, ratio)

    def at_target(self, target: Target) -> Decision:
        """Which nodes stay at the smallest ratio that keeps to a target for parameters, FLOPs or memory.

        Raises:
            ValueError: the dense network keeps to it already, or no ratio does.
        """
        dense = self.cost(target)
        if dense <= target.limit(dense):
            raise _reached_already(target, dense)
        try:
            ratio = find_ratio(lambda tried: self.cost(target, tried), target.limit(dense))
        except Unreachable as error:
            raise _not_reached(target, dense, error.least, self.notes) from None
        return self.at_ratio(ratio)


def rank(
    traced: Trace,
    tensors: Mapping[str, Tensor],
    options: Options,
    evidence: Evidence,
    own_ratios: Mapping[str, Fraction],
    batch: int,
    remedies: Remedies,
    *,
    least: int = 1,
) -> Ranked:
    """Score the channels of a trace.

    Args:
        traced: The trace.
        tensors: Its parameters and buffers.
        options: How channels are scored, and how many leave.
        evidence: What that needs of the user's data.
        own_ratios: Name of a tensor -> the ratio of the channels that it writes.
        batch: How many inputs the example is.
        remedies: How modules are treated, of which some keep axes equally long.
        least: See :func:`fix_unranked`.
    """
    scored = Scored.of(traced, tensors, options, evidence, least)
    return _ranked(scored, options, own_ratios, batch, remedies)


def _ranked(
    scored: Scored, options: Options, own_ratios: Mapping[str, Fraction], batch: int, remedies: Remedies
) -> Ranked:
    traced, tensors, component, scores = scored.trace, scored.tensors, scored.component, scored.scores
    every = [ids for name in tensors for ids in traced.tensors[name].axes]
    axes = [component[ids] for ids in every]
    alike: Sequence[Sequence[Ids]] = remedies.alike_axes(traced)
    if options.uniform:
        lengths = {len(labels) for labels in axes}
        alike = [*alike, *([ids for ids in every if len(ids) == size] for size in sorted(lengths))]
    groups = groups_of(axes, len(scores))
    own: dict[int, Fraction] = {}
    for name, axis in traced.writers.items():
        for channel in component[traced.tensors[name].axes[axis]].tolist() if name in own_ratios else ():
            own[channel] = min(own.get(channel, Fraction(1)), own_ratios[name])
    own.pop(0, None)
    return Ranked(
        traced,
        tensors,
        batch,
        component,
        Axes.of(axes, [[component[ids] for ids in members] for members in alike]),
        normalized(scores, groups, options.normalization),
        replace(
            options.selection,
            own=own,
            chosen=_chosen(traced, component),
            multiples=_multiples(traced, component),
        ),
        remedies,
        scored.notes,
    )


def _chosen(traced: Trace, component: Ids) -> dict[int, int]:
    """Coupled channel, an expert -> how many of its axis a router chooses, less the places that stay."""
    chosen: dict[int, int] = {}
    for ids, count in traced.chosen:
        if axis := Axis.of(component[ids]):
            least = -(-(count - axis.fixed) // axis.unit)
            chosen.update((c, max(least, chosen.get(c, 0))) for c in axis.channels.tolist())
    return chosen


def _multiples(traced: Trace, component: Ids) -> dict[int, int]:
    """Coupled channel -> of its axis a multiple of so many stays, where a kernel takes nothing else."""
    multiples: dict[int, int] = {}
    for ids, of in traced.multiples:
        axis = Axis.of(component[ids])
        if axis is not None and not axis.fixed:
            step = of // math.gcd(of, axis.unit)
            multiples.update((c, math.lcm(step, multiples.get(c, 1))) for c in axis.channels.tolist())
    return multiples


@dataclass(frozen=True)
class Race:
    """Forwards of a dense model and of smaller ones, timed in turns, against a target for latency."""

    model: nn.Module
    inputs: Inputs
    target: Target

    def time(self, decision: Decision) -> Latency:
        """The dense model beside the one that a decision leaves."""
        kept = decision.indices(named_tensors(self.model))
        small = cut(self.model, kept, decision.attributes()).eval()
        return measure(copied(self.model).eval(), small, self.inputs, self.target.repeats)

    def ratio(self, ranked: Ranked) -> Fraction:
        """The smallest ratio that keeps to the target.

        Raises:
            ValueError: the dense model keeps to it already, or no ratio does.
        """
        whole = self.time(ranked.at_ratio(Fraction(0))).dense
        if whole <= self.target.limit(whole):
            raise _reached_already(self.target, whole)
        try:
            return find_ratio(lambda ratio: self._taken(ranked.at_ratio(ratio)), 1, _LATENCY_STEPS)
        except Unreachable as error:
            raise _not_reached(
                self.target, whole, error.least * self.target.limit(whole), ranked.notes
            ) from None

    def describe(self, decision: Decision) -> str:
        """What was asked for and what a decision reaches."""
        taken = self.time(decision)
        return f"{self.target.describe(taken.dense, taken.small)}: {taken.describe(self.target.repeats)}"

    def _taken(self, decision: Decision) -> float:
        """The part of the allowed time, which may be relative to the dense model's in the same minute."""
        taken = self.time(decision)
        return taken.small / self.target.limit(taken.dense)


def _reached_already(target: Target, dense: float) -> ValueError:
    return ValueError(
        f"target must be less than the {target.quantity} of the dense model, {dense:,.4g}, got {target.limit(dense):,.4g}: "
        "nothing to prune"
    )


def _not_reached(target: Target, dense: float, least: float, notes: Sequence[Note]) -> ValueError:
    stays = "".join(f"; {line}" for line in note_lines(notes))
    return ValueError(
        f"target must be at least {least:,.4g} for {target.quantity}, got {target.limit(dense):,.4g}: so much is left of the "
        f"dense model's {dense:,.4g} with every axis at its smallest width "
        f"(of which min_channels, min_fraction and round_to have a say){stays}"
    )


def _fix_unscored(
    component: Ids, scores: npt.NDArray[np.float64], traced: Trace, criterion: str
) -> tuple[Ids, list[Note]]:
    """Keep what the criterion has no score for; also the notes on that."""
    unscored = np.isnan(scores)
    unscored[0] = False
    notes = [
        Note(name, f"{criterion} gives these channels no score")
        for name, axis in traced.writers.items()
        if unscored[component[traced.tensors[name].axes[axis]]].any()
    ]
    return np.where(unscored[component], 0, component), notes
