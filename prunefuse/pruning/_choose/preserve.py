"""What a fused network must hold so that it computes the small one's function; see :meth:`PruningPlan.fuse_`.

The kept outputs of every call must not depend on channels that leave. There are two ways in which they could:

* A call sums over channels. Then one of its factors is zero at those that leave: a weight, in the rows of the outputs
  that are kept. Its other rows hold what they held, and so does all that makes the channels that leave. These have a
  gradient as soon as the zeros have moved.
* A norm takes a mean or a variance over channels. Then those that leave are copies of kept ones, each equally often:
  whatever makes the one makes the other in the same way. Where numbers do not divide, nothing keeps the statistic.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
from torch import nn

from prunefuse.pruning._choose.fit_code import Decision
from prunefuse.pruning._graph.couplings import Ids, Place, Value
from prunefuse.pruning._graph.normed import normed_weights
from prunefuse.pruning._graph.trace import Record, Statistic, Sum, Trace

Read = tuple[str, tuple[int, ...]]
"""A tensor and axes of it that are summed over together."""

_SAME = frozenset(
    (
        *(
            "to",
            "_to_copy",
            "type_as",
            "contiguous",
            "clone",
            "detach",
            "alias",
            "lift_fresh",
            "lift_fresh_copy",
        ),
        *("neg", "tanh", "silu", "gelu", "leaky_relu", "hardswish"),
        *("dropout", "feature_dropout", "alpha_dropout"),
    )
)
"""Operators that give zero for zero, element by element, and have a slope there: a zero behind a ReLU would stay one."""
_MOVED = frozenset(
    (
        *("t", "transpose", "permute", "swapaxes", "swapdims", "numpy_T", "mT", "expand", "expand_as"),
        *("slice", "narrow", "chunk", "split", "split_with_sizes", "tensor_split"),
    )
)
"""Operators that move axes, or leave out a part of some."""
_RESHAPED = frozenset(
    (
        "view",
        "reshape",
        "_unsafe_view",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "view_as",
        "reshape_as",
    )
)
_DEEP = 40
"""Through so many calls a zero is followed."""


@dataclass(frozen=True)
class Preserving:
    """What :func:`preserving` finds; see the attributes of a plan that have these names."""

    reads: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    copies: dict[str, dict[int, tuple[int, ...]]] = field(default_factory=dict)
    not_preserved: dict[str, str] = field(default_factory=dict)


def preserving(decision: Decision, model: nn.Module) -> Preserving:
    """What must be zero and what copied in a fused network, and where that does not keep the function."""
    return _Search(decision, model).found()


@dataclass(frozen=True, eq=False)
class _Search:
    decision: Decision
    model: nn.Module

    def found(self) -> Preserving:
        not_preserved: dict[str, str] = {}
        reads = self._reads(not_preserved)
        names = {str(value.name): value for value in self.trace.tensors.values()}
        listed = {
            name: tuple(axes for at, axes in sorted(reads) if at == name)
            for name in names
            if any(at == name for at, _ in reads)
        }
        copies: dict[str, dict[int, tuple[int, ...]]] = {}
        broken = np.zeros(len(self.copied), dtype=np.bool_)
        for name, value in names.items():
            for axis, ids in enumerate(value.axes):
                if not self.wants_copies(ids):
                    continue
                if not any(axis in axes for axes in listed.get(name, ())):
                    copies.setdefault(name, {})[axis] = self._sources(ids)
                elif self._made_by(
                    name, {call for at, calls in reads.items() if at[0] == name for call in calls}
                ):
                    broken[self.component[ids]] = True
        for statistic in self.statistics:
            if why := self._change(statistic, broken):
                not_preserved.setdefault(statistic.where.module, why)
        for normed in normed_weights(self.model):
            value = self.trace.tensors[normed.matrix]
            if normed.right and any(map(self.loses, value.axes)):
                why = "a spectral norm is of all weights: in training mode its power iteration finds another one"
                not_preserved.setdefault(normed.owner, why)
        return Preserving(listed, copies, not_preserved)

    @property
    def trace(self) -> Trace:
        return self.decision.trace

    @property
    def component(self) -> Ids:
        return self.decision.trace.component

    def loses(self, ids: Ids) -> bool:
        """Whether channels of an axis leave."""
        return not self.decision.keep[ids].all()

    # What is summed over.

    def _reads(self, not_preserved: dict[str, str]) -> dict[Read, set[int]]:
        """What must be zero -> the calls that it is for, through which it is read."""
        sums = [
            one
            for one in self._sums()
            if any(self.loses(one.factors[0][0].axes[a]) for a in one.factors[0][1])
        ]
        reads: dict[Read, set[int]] = {}
        uncertain: list[tuple[Sum, list[dict[Read, int]]]] = []
        for one in sums:
            first = self._zeros(*one.factors[0], one.call)
            options = [] if first is None else [first]
            weights = [x.name for x, _ in one.factors if x.name is not None]
            if options and len(options[0]) == 1 and len(weights) < 2:
                self._take(options[0], reads)
            else:
                uncertain.append((one, options))
        for one, options in uncertain:
            options += self._others(one)
            done = [option for option in options if option.keys() <= reads.keys()]
            if done or options:
                self._take((done or options)[0], reads)
            else:
                why = "sums over channels that leave, and no weight of its own could be zero there"
                not_preserved.setdefault(one.where.module, why)
        self._untie(sums, reads)
        return reads

    def _untie(self, sums: Sequence[Sum], reads: dict[Read, set[int]]) -> None:
        """Where a weight also makes the channels that it reads, and these are to be copies, zero what it is multiplied by.

        So of an embedding that is tied to a classifier, whose inputs a norm makes: its weight and bias are zero instead.
        """
        for read, calls in list(reads.items()):
            name, axes = read
            made = [ids for axis, ids in enumerate(self.trace.tensors[name].axes) if axis in axes]
            if len(axes) != 1 or not self.wants_copies(made[0]) or not self._made_by(name, calls):
                continue
            mine = [one for one in sums if (one.factors[0][0].name, one.factors[0][1]) == read]
            options = [self._others(one) for one in mine]  # several: one in each graph, or one for each use
            if {id(one.call) for one in mine} == calls and all(options):
                del reads[read]
                for option in options:
                    self._take(option[0], reads)

    def _others(self, one: Sum) -> list[dict[Read, int]]:
        """What must be zero for another factor than the first to be so; of a norm's output only where nobody else sees it."""
        options = (
            self._zeros(x, axes, one.call)
            for x, axes in one.factors[1:]
            if x.name is not None or self._serves_alone(x)
        )
        return [option for option in options if option is not None]

    def _take(self, option: Mapping[Read, int], reads: dict[Read, set[int]]) -> None:
        for read, call in option.items():
            reads.setdefault(read, set()).add(call)

    def _sums(self) -> Iterable[Sum]:
        yield from self.trace.sums
        for call in self.trace.unlisted:  # what loses channels in it is summed over
            there = {
                int(c) for value in call.outputs for ids in value.axes for c in np.unique(self.component[ids])
            }
            gone = []
            for value in call.inputs:
                lost = [
                    axis
                    for axis, ids in enumerate(value.axes)
                    if self.loses(ids) and not there.intersection(self.component[ids].tolist())
                ]
                if lost:
                    gone.append((value, tuple(lost)))
            if gone:
                yield Sum(
                    Place(call.op, call.module),
                    tuple(sorted(gone, key=lambda factor: factor[0].name is None)),
                    call,
                )

    def _made_by(self, name: str, calls: Collection[int]) -> bool:
        """Whether a tensor is used otherwise than by these calls."""
        return not self._uses.get(name, set()) <= set(calls)

    @cached_property
    def _uses(self) -> dict[str, set[int]]:
        uses: dict[str, set[int]] = {}
        for call in self.trace.made.values():
            for value in _read(call):
                if value.name is not None:
                    uses.setdefault(value.name, set()).add(id(call))
        return uses

    def _serves_alone(self, x: Value) -> bool:
        """Whether a tensor, and all on the way to it from where parameters come in, has one use."""
        for _ in range(_DEEP):
            made = self.trace.made.get(id(x))
            if made is None or len(self._takers.get(id(x), ())) > 1:
                return False
            if any(value.name is not None for value in made.inputs):
                return True
            x = made.inputs[0]
        return False

    @cached_property
    def _takers(self) -> dict[int, set[int]]:
        takers: dict[int, set[int]] = {}
        for call in self.trace.made.values():
            for value in _read(call):
                takers.setdefault(id(value), set()).add(id(call))
        return takers

    def _zeros(
        self, x: Value, axes: tuple[int, ...], call: Record | None, deep: int = 0
    ) -> dict[Read, int] | None:
        """Which tensors must be zero where, and the call that takes each, for a tensor to be so along these axes.

        None where that is not known.
        """
        axes = tuple(axis for axis in axes if self.loses(x.axes[axis]))
        if not axes:
            return {}
        if x.name is not None:
            return {} if x.name in self._gains else {(x.name, axes): id(call)}
        made = self.trace.made.get(id(x))
        if made is None or deep > _DEEP:
            return None
        name = made.op.rpartition("::")[2]
        name = name if name.startswith("_") else name.rstrip("_")
        if name in _SAME or name == "div":
            return self._zeros_like(made.inputs[:1], x, axes, made, deep)
        if name in _MOVED:
            return self._zeros_moved(made.inputs[0], x, axes, made, deep)
        if name in _RESHAPED:
            return self._zeros_reshaped(made.inputs[0], x, axes, made, deep)
        if name == "_weight_norm" or (
            name == "batch_norm" and 1 not in axes
        ):  # of weights, which it brings near to zero
            return self._zeros_like(made.inputs[:1], x, axes, made, deep)
        if name in ("add", "sub", "cat", "concat"):  # a number that is added is no zero
            return None if made.numbers else self._zeros_like(made.inputs, x, axes, made, deep)
        if name == "mul":
            for factor in sorted(made.inputs, key=lambda value: value.name is None):
                if (option := self._zeros_like([factor], x, axes, made, deep)) is not None:
                    return option
            return None
        if name in ("matmul", "mm", "bmm"):
            return self._zeros_of_product(made, x, axes, deep)
        affine = {"layer_norm": (1, 2), "rms_norm": (1,), "batch_norm": (1, 2)}.get(name, ())
        if not affine or len(made.inputs) <= max(affine) or None in (made.inputs[i].name for i in affine):
            return None
        parameters = [made.inputs[i] for i in affine]
        if name == "batch_norm":
            return self._all(((p, (0,)) for p in parameters), made, deep) if axes == (1,) else None
        return self._zeros_like(parameters, x, axes, made, deep)

    def _zeros_like(
        self, inputs: Sequence[Value], x: Value, axes: tuple[int, ...], call: Record, deep: int
    ) -> dict[Read, int] | None:
        """All of these inputs are zero, of which each has the axes, counted from the last one on."""
        asked = []
        for value in inputs:
            there = tuple(axis - len(x.axes) + len(value.axes) for axis in axes)
            if min(there) < 0 or any(len(value.axes[b]) == 1 for b in there):
                return None
            asked.append((value, there))
        return self._all(asked, call, deep)

    def _zeros_moved(
        self, value: Value, x: Value, axes: tuple[int, ...], call: Record, deep: int
    ) -> dict[Read, int] | None:
        """The input is zero along the axes that have the same channels."""
        there = []
        for axis in axes:
            nodes = np.setdiff1d(x.axes[axis], 0)
            same = [b for b, ids in enumerate(value.axes) if len(nodes) and np.isin(nodes, ids).all()]
            if len(same) != 1:
                return None
            there += same
        return self._all([(value, tuple(there))], call, deep)

    def _zeros_reshaped(
        self, value: Value, x: Value, axes: tuple[int, ...], call: Record, deep: int
    ) -> dict[Read, int] | None:
        """The input is zero along the axes that hold the same elements, or some of them."""
        there: set[int] = set()
        for axis in axes:
            first, end = _span(x.shape, axis)
            spans = (_span(value.shape, b) for b in range(len(value.axes)))
            within = {b for b, (start, stop) in enumerate(spans) if start < end and first < stop}
            mine = {b for b in within if self.loses(value.axes[b])}
            if not mine:
                return None
            there |= mine
        return self._all([(value, tuple(sorted(there)))], call, deep)

    def _zeros_of_product(
        self, call: Record, x: Value, axes: tuple[int, ...], deep: int
    ) -> dict[Read, int] | None:
        """One factor is zero along its own axis, and the other along the one that is summed over."""
        left, right = call.inputs[:2]
        if axes == (len(x.axes) - 1,):
            own, other = (right, (len(right.axes) - 1,)), (left, (len(left.axes) - 1,))
        elif axes == (len(x.axes) - 2,):
            own, other = (left, (len(left.axes) - 2,)), (right, (len(right.axes) - 2,))
        else:
            return None
        return self._all([own, other], call, deep)

    def _all(
        self, asked: Iterable[tuple[Value, tuple[int, ...]]], call: Record, deep: int
    ) -> dict[Read, int] | None:
        result: dict[Read, int] = {}
        for value, axes in asked:
            option = self._zeros(value, axes, call, deep + 1)
            if option is None:
                return None
            result.update(option)
        return result

    @cached_property
    def _gains(self) -> set[str]:
        """What fusing sets so that normed weights are applied as in the small network."""
        return {name for normed in normed_weights(self.model) for name in (normed.gain, normed.right) if name}

    # What statistics are taken over.

    @cached_property
    def statistics(self) -> list[Statistic]:
        """The calls that take statistics over channels of which some leave."""
        return [one for one in self.trace.statistics if any(map(self.loses, one.axes))]

    @cached_property
    def copied(self) -> Ids:
        """For every coupled channel the kept one that it is to be a copy of; itself where it is none."""
        source = np.arange(int(self.component.max()) + 1, dtype=np.int64)
        near = [one for one in self.statistics if one.near]
        if not near:
            return source
        kept = np.zeros(len(source), dtype=np.bool_)
        kept[self.component[self.decision.keep]] = True
        kinds = self._kinds(len(source))
        done = kept.copy()
        for one in near:
            for ids in one.axes:
                channels = np.array(list(dict.fromkeys(self.component[ids].tolist())), dtype=np.int64)
                for kind in np.unique(kinds[channels[~done[channels]]]):
                    alike = channels[kinds[channels] == kind]
                    leave, stay = alike[~done[alike]], alike[kept[alike] & (alike > 0)]
                    if len(stay):
                        source[leave] = np.resize(stay, len(leave))
                done[channels] = True
        return source

    def _kinds(self, count: int) -> npt.NDArray[np.uint64]:
        """A number for every coupled channel, the same for those that are on the same axes equally often."""
        calls = {id(call): call for call in self.trace.made.values()}.values()
        values = (value for call in calls for value in (*call.inputs, *call.outputs))
        arrays = {id(ids): ids for value in (*self.trace.tensors.values(), *values) for ids in value.axes}
        wanted = np.zeros(count, dtype=np.bool_)
        for one in self.statistics:
            for ids in one.axes:
                wanted[self.component[ids]] = True
        wanted[0] = False
        random = np.random.default_rng(0)
        kinds = np.zeros(count, dtype=np.uint64)
        for ids in arrays.values():
            labels = self.component[ids]
            there, counts = np.unique(labels[wanted[labels]], return_counts=True)
            kinds[there] += counts.astype(np.uint64) * random.integers(1, 2**63, dtype=np.uint64)
        return kinds

    def wants_copies(self, ids: Ids) -> bool:
        """Whether channels of an axis are to be copies of others."""
        labels = self.component[ids]
        return bool((self.copied[labels] != labels).any())

    def _sources(self, ids: Ids) -> tuple[int, ...]:
        """For every index of an axis that leaves, the one that it is to be a copy of; itself where it is none."""
        labels = self.component[ids]
        order = np.argsort(labels, kind="stable")
        starts = np.searchsorted(labels[order], labels)
        occurrence = np.empty(len(ids), dtype=np.int64)
        occurrence[order] = np.arange(len(ids))
        occurrence -= starts
        first = np.searchsorted(labels[order], self.copied[labels])
        sources = np.where(
            self.copied[labels] == labels, np.arange(len(ids)), order[(first + occurrence) % len(ids)]
        )
        return tuple(sources[~self.decision.keep[ids]].tolist())

    def _change(self, statistic: Statistic, broken: npt.NDArray[np.bool_]) -> str:
        """Why copies do not keep a statistic; "" if they do."""
        if statistic.unlike:
            return statistic.unlike
        for ids in filter(self.loses, statistic.axes):
            labels, keep = self.component[ids], self.decision.keep[ids]
            if broken[labels].any():
                return "takes statistics over channels that a weight both makes and reads"
            places = np.bincount(self.copied[labels], minlength=len(self.copied))
            own = np.bincount(labels[keep], minlength=len(self.copied))
            times = np.unique(places[own > 0] / own[own > 0])
            if len(times) > 1 or places[own == 0].any():
                return f"takes statistics over {len(ids)} channels, which are not {int(keep.sum())} kept ones equally often"
        return ""


def _read(call: Record) -> Sequence[Value]:
    """The tensors of which a call takes more than a shape or a type."""
    if call.op.endswith("_like"):
        return ()
    return call.inputs[:1] if call.op.endswith("_as") else call.inputs


def _span(shape: Sequence[int], axis: int) -> tuple[int, int]:
    """How far apart in memory two neighbors on an axis are, and its ends."""
    inner = math.prod(shape[axis + 1 :])
    return inner, inner * shape[axis]
