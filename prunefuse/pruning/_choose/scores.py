"""What a coupled channel is worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from prunefuse.pruning._choose.gradients import Evidence
from prunefuse.pruning._graph.couplings import Ids
from prunefuse.pruning._graph.trace import Trace

Function: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]
"""A user's criterion: (parameter, its gradient or None) -> a score for every element, the larger the more it is worth."""
Scores: TypeAlias = Mapping[str, Mapping[int, Tensor]]
"""Tensor name -> axis -> a score for every index there."""

_ORDERS = {"l2": 2, "l1": 1}
_BLOCK = 2**22  # elements of a weight that are scored at once
CRITERIA = (*_ORDERS, "random")
"""Those that need nothing but weights at initialization."""

_ELEMENTS: dict[str, tuple[str, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "snip": ("gradient", lambda x, g, _: (x * g).abs()),
    "taylor": ("gradient", lambda x, g, _: x * g),
    "grasp": ("product", lambda x, _, s: x * s),  # -x * s is largest where removing is best
    "crop": ("product", lambda x, _, s: (x * s).abs()),
    "fisher": ("squared", lambda x, _, s: x * x * s / 2),
    "obd": ("diagonal", lambda x, _, s: x * x * s / 2),
}
NEEDS = {name: kind for name, (kind, _) in _ELEMENTS.items()} | {"activation": "activation"}
"""Criterion -> what of the user's data it needs; see :func:`prunefuse.pruning._choose.gradients.gather`."""
ALL_CRITERIA = (*CRITERIA, "bn_scale", *NEEDS)
SCOPES = ("writers", "coupled")
AGGREGATIONS = ("norm", "sum", "mean", "max", "l2")


@dataclass(frozen=True)
class Scoring:
    """How coupled channels are scored; the larger the score, the more a channel is worth keeping.

    Of an element θ of a weight, with g the gradient of the loss, H its Hessian:

    ========== ================ =====================================================================
    l1         ``|θ|``
    l2         ``θ²``
    snip       ``|θ g|``        Lee et al. 2019
    taylor     ``θ g``          of a channel ``|Σ θ g|``: the change of the loss, to first order; Molchanov et al. 2019
    grasp      ``θ (H g)``      Wang et al. 2020, where ``-θ (H g)`` is the score and the largest are removed
    crop       ``|θ (H g)|``    Rachwan et al. 2022
    fisher     ``θ² g² / 2``    Hessian by squared gradients of batches (of samples, if they have one each)
    obd        ``θ² diag(H)/2`` LeCun et al. 1990; the diagonal by products with random signs
    random     one uniform number for each channel
    bn_scale   ``|γ|`` of the norm layers on the channel; Liu et al. 2017
    activation mean magnitude of the channel in the inputs of the layers that read it
    ========== ================ =====================================================================

    Attributes:
        criterion: A name from the table; or a function (parameter, gradient) -> scores of its elements.
        scope: ``"writers"`` (PruneFuse): the slices of the weights that compute the channel; ``"coupled"`` (SPA):
            every element of every parameter that leaves with it, each once.
        aggregation: ``"sum"``, ``"mean"``, ``"max"`` or ``"l2"`` (root of the sum of squares) of the elements'
            scores. ``"norm"`` (PruneFuse): the sum, and of ``"l2"`` its root: ``|W[j, ...]|`` where a channel has
            one writer. Several writers, as of a residual axis, count together.
        seed: For ``"random"``.
        scores: Scores for indices of axes, which take the place of those of elements.
    """

    criterion: str | Function = "l2"
    scope: str = "writers"
    aggregation: str = "norm"
    seed: int = 0
    scores: Scores | None = None

    @property
    def name(self) -> str:
        """For plans."""
        if self.scores is not None:
            return "scores"
        if isinstance(self.criterion, str):
            return self.criterion
        return str(getattr(self.criterion, "__name__", type(self.criterion).__name__))


def _matrix(values: Tensor) -> Tensor:
    return values.flatten(1) if values.ndim > 1 else values[:, None]


@dataclass(frozen=True)
class _Part:
    """Some scores: index i of the first axis belongs to coupled channel ``channels[i]``.

    Of its elements those count that ``counting`` says; None: all.
    """

    name: str
    channels: Ids
    rows: Tensor
    counting: Tensor | None = None

    def blocks(self) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """Some rows at a time, as matrices, with what counts there: what is computed from them needs little memory."""
        step = max(1, _BLOCK * len(self.rows) // max(1, self.rows.numel()))
        for first in range(0, len(self.rows), step):
            part = slice(first, first + step)
            counting = None if self.counting is None else _matrix(self.counting[part])
            yield part, _matrix(self.rows[part]), counting


def channel_scores(
    scoring: Scoring, traced: Trace, component: Ids, tensors: Mapping[str, Tensor], evidence: Evidence
) -> npt.NDArray[np.float64]:
    """Score every coupled channel; the largest are kept.

    Args:
        scoring: How.
        traced: The trace of the model.
        component: The coupled channel of every node of the trace.
        tensors: The parameters and buffers of the model.
        evidence: What the criterion needs of the user's data.

    Returns:
        (number of coupled channels,) float64; NaN where nothing gives the channel a score.

    Raises:
        TypeError: a user's function does not return a tensor.
        ValueError: a weight has no values (meta device), a score is not finite or has the wrong shape.
    """
    count = int(component.max()) + 1
    if scoring.scores is None and scoring.criterion == "random":
        return np.random.default_rng(scoring.seed).random(count)
    order = _ORDERS.get(scoring.criterion, 0) if isinstance(scoring.criterion, str) else 0
    order = 0 if scoring.scores is not None else order
    total = np.zeros(count)
    elements = np.zeros(count)
    largest = np.full(count, -np.inf)
    for part in _parts(scoring, traced, component, tensors, evidence):
        amounts, sizes = np.zeros(len(part.channels)), np.zeros(len(part.channels))
        for place, rows, counting in part.blocks():
            if counting is not None and scoring.aggregation != "max":
                rows = rows.where(counting, 0)
            amounts[place] = _row_scores(scoring, order, rows).numpy()
            sizes[place] = rows.shape[1] if counting is None else counting.sum(1).numpy()
        if not np.isfinite(amounts).all():
            raise ValueError(
                f"model must be finite to be ranked, got others: {part.name} has values that are not finite"
            )
        total += np.bincount(part.channels, weights=amounts, minlength=count)
        elements += np.bincount(part.channels, weights=sizes, minlength=count)
        np.maximum.at(largest, part.channels, amounts)
    if scoring.aggregation == "max":
        total = np.where(elements > 0, largest, 0)
    if scoring.aggregation == "mean":
        total = total / np.maximum(elements, 1)
    if scoring.aggregation == "l2" or (order and scoring.aggregation == "norm"):
        total = total ** (1 / (order if scoring.aggregation == "norm" else 2))
    if scoring.criterion == "taylor":
        total = np.abs(total)
    result: npt.NDArray[np.float64] = np.where(elements > 0, total, np.nan)
    return result


def _row_scores(scoring: Scoring, order: int, rows: Tensor) -> Tensor:
    """Row by row, what its elements amount to; with an order they are the weights themselves."""
    norm = torch.linalg.vector_norm
    result: Tensor
    if order and scoring.aggregation in ("norm", "sum", "mean"):
        result = norm(rows, order, dim=1, dtype=torch.float64).pow(order)
        return result
    if order:
        rows = rows.abs() if order == 1 else rows.double().square()
    if scoring.aggregation == "l2":
        result = norm(rows, 2, dim=1, dtype=torch.float64).square()
    elif scoring.aggregation == "max":
        result = (rows.abs() if scoring.criterion == "taylor" else rows).amax(1).double()
    else:
        result = rows.sum(1, dtype=torch.float64)
    return result


def _parts(
    scoring: Scoring, traced: Trace, component: Ids, tensors: Mapping[str, Tensor], evidence: Evidence
) -> Iterator[_Part]:
    axes = {name: [component[ids] for ids in traced.tensors[name].axes] for name in tensors}
    if scoring.scores is not None:
        yield from _of_indices(scoring.scores, axes)
    elif scoring.criterion == "activation":
        yield from _activations(traced, component, evidence)
    elif scoring.criterion == "bn_scale":
        for name in _norm_weights(traced):
            for axis, channels in enumerate(axes[name]):
                yield _Part(name, channels, _values(tensors[name], name, scoring).abs().movedim(axis, 0))
    else:
        for name, tensor in tensors.items():
            if scoring.scope == "writers":
                scored = [traced.writers[name]] if name in traced.writers else []
            else:
                scored = [a for a, channels in enumerate(axes[name]) if channels.any()]
                scored = scored if isinstance(tensor, nn.Parameter) else []
            if not scored:
                continue
            values = _element_scores(scoring, name, _values(tensor, name, scoring), evidence)
            for position, axis in enumerate(scored):
                counting = None
                if position:  # an element that is on a channel by an earlier axis too counts once
                    counting = torch.ones(values.shape, dtype=torch.bool)
                    for earlier in scored[:position]:
                        counting &= ~_double(axes[name], earlier, axis)
                    counting = counting.movedim(axis, 0)
                yield _Part(name, axes[name][axis], values.movedim(axis, 0), counting)


def _values(tensor: Tensor, name: str, scoring: Scoring) -> Tensor:
    if tensor.is_meta:
        raise ValueError(f"model must have values to rank by {scoring.name}, got {name} on the meta device")
    return tensor.detach().cpu()


def _element_scores(scoring: Scoring, name: str, x: Tensor, evidence: Evidence) -> Tensor:
    """Scores of the elements of one tensor; for the orders of a norm its values."""
    if scoring.criterion in _ORDERS:
        return x
    gradient = evidence.gradient.get(name)
    if isinstance(scoring.criterion, str):
        zeros = torch.zeros_like(x)  # for what the loss does not depend on
        function = _ELEMENTS[scoring.criterion][1]
        return function(
            x,
            zeros if gradient is None else gradient.cpu(),
            evidence.second[name].cpu() if name in evidence.second else zeros,
        )
    result = scoring.criterion(x, None if gradient is None else gradient.cpu())
    if not isinstance(result, Tensor):
        raise TypeError(f"criterion must return a tensor, got {type(result).__name__}")
    if result.shape != x.shape:
        raise ValueError(
            f"criterion must return a score for every element of {name}, shape {tuple(x.shape)}, got {tuple(result.shape)}"
        )
    return result.detach().cpu()


def _double(axes: list[Ids], one: int, other: int) -> Tensor:
    """Where an element's coupled channel by one axis is that by another axis too, to be broadcast."""
    rows, columns = [1] * len(axes), [1] * len(axes)
    rows[one], columns[other] = len(axes[one]), len(axes[other])
    return torch.from_numpy(axes[one].reshape(rows) == axes[other].reshape(columns))


def _of_indices(scores: Scores, axes: Mapping[str, list[Ids]]) -> Iterator[_Part]:
    for name, mine in scores.items():
        for axis, values in mine.items():
            if name not in axes or not 0 <= axis < len(axes[name]):
                raise ValueError(f"scores must be of axes of the model, got axis {axis} of a tensor {name!r}")
            if values.shape != axes[name][axis].shape or not values.isfinite().all():
                raise ValueError(
                    f"scores must be {len(axes[name][axis])} finite numbers for axis {axis} of {name!r}, got shape "
                    f"{tuple(values.shape)}"
                )
            yield _Part(name, axes[name][axis], values.detach().cpu())


def _norm_weights(traced: Trace) -> list[str]:
    kinds = {
        "aten::batch_norm",
        "aten::instance_norm",
        "aten::layer_norm",
        "aten::rms_norm",
        "aten::group_norm",
    }
    weights = [call.inputs[1].name for call in traced.calls if call.op in kinds and len(call.inputs) > 1]
    return list(dict.fromkeys(name for name in weights if name is not None))


def _activations(traced: Trace, component: Ids, evidence: Evidence) -> Iterator[_Part]:
    for path, axes in evidence.activations.items():
        call = next((call for call in traced.calls if call.module == path and call.inputs), None)
        for axis, amounts in axes.items():
            if call is not None and axis < len(call.inputs[0].axes):
                channels = component[call.inputs[0].axes[axis]]
                if len(channels) == len(amounts) and channels.any():
                    yield _Part(f"the input of {path!r}", channels, amounts.cpu())
