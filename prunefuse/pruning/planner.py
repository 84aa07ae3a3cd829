"""Planning: from a dense model to which of its channels are kept."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from torch import Tensor, nn

from prunefuse.pruning._choose.fit_code import Decision
from prunefuse.pruning._choose.gradients import Evidence, Loss, gather
from prunefuse.pruning._choose.scores import ALL_CRITERIA, NEEDS, Function, Scores, Scoring
from prunefuse.pruning._choose.targets import Target
from prunefuse.pruning._graph.copies import fingerprint
from prunefuse.pruning._graph.export import TensorSpec
from prunefuse.pruning._graph.trace import Product, Trace
from prunefuse.pruning.arguments import check_choice, checked_inputs, matching_modules
from prunefuse.pruning.options import checked_options
from prunefuse.pruning.plan import EXPRESSED_BY, Layer, PruningPlan
from prunefuse.pruning.search import Search


def plan_pruning(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    *,
    ratio: float | Fraction | None = None,
    target: Target | None = None,
    criterion: str | Function = "l2",
    ranking: str | None = None,
    rounding: str = "floor",
    ignore: Iterable[str] | str = (),
    seed: int = 0,
    preset: str = "prunefuse",
    scope: str | None = None,
    aggregation: str | None = None,
    normalization: str | None = None,
    ratios: Mapping[str, float] | None = None,
    round_to: int = 1,
    min_channels: int = 1,
    loss: Loss | None = None,
    batches: Iterable[Any] | None = None,
    scores: Scores | None = None,
    expressed_by: str = "module",
) -> PruningPlan:
    """Decide which channels of a model to keep, from its exported graph.

    Every axis of n channels keeps ``round(n * (1 - ratio))`` of them, computed exactly, at least one: those
    with the largest scores on that axis. Channels that operators tie together (a residual sum, a norm, the
    weights that read them) leave together; where axes of different width are tied, the narrow one is settled
    first, and the wider keeps its tied channels and fills up from its own. Attention loses whole heads, a grouped
    convolution the same channels of every group; their counts are rounded in these units. Inputs and outputs of
    the model stay as they are, and so does what the code of a module cannot express (see the plan's notes).

    Args:
        model: The dense model, of any class that ``torch.export`` captures. It is not changed.
        example_inputs: The input of its forward, or the inputs in order. Only shapes and dtypes matter (to a
            latency the values too, if the model's code looks at them); axis 0 of the first is taken as the batch.
        ratio: The fraction of channels to remove, 0 <= ratio < 1. None means 0.5; beside ``ratios``, 0.
        target: Instead of ``ratio``, what the small model may cost: the smallest ratio is taken that keeps to it.
        criterion: A name or a function (parameter, gradient or None) -> scores of its elements; see
            :class:`prunefuse.pruning._choose.scores.Scoring`, also for ``scope`` and ``aggregation``.
        ranking: ``"local"``: within each axis; ``"global"``: the ratio is of all coupled channels, each counts once.
        rounding: ``"floor"``, ``"nearest"`` (halves up) or ``"ceil"``, of the kept count. Which of them the
            PruneFuse paper uses is unknown; the default is ours.
        ignore: Names of modules, or patterns such as ``"stage1.*.conv2"`` (:mod:`fnmatch`), whose output
            channels are kept whole; a module stands for all those inside it. What is tied to those channels
            stays whole as well.
        seed: For ``"random"``, and for what is random in ``loss``.
        preset: ``"prunefuse"``: the norm of the weights that write a channel, local ranking; ``"spa"``: the sum over
            all parameters of the coupled channel, over that of its group, global ranking. What is given beside it
            takes the place of the preset's.
        scope: ``"writers"`` or ``"coupled"``.
        aggregation: ``"norm"``, ``"sum"``, ``"mean"``, ``"max"`` or ``"l2"``.
        normalization: ``"none"``, or scores divided by the ``"sum"``, ``"mean"`` or ``"max"`` of magnitudes in the
            group: the channels that live on the same axes of the same tensors.
        ratios: Name or pattern of modules -> the ratio for the channels that they write, whatever the others lose;
            the last that matches holds, and of tied channels with several ratios the smallest.
        round_to: Axes keep multiples of so many channels, where couplings allow it, or stay whole.
        min_channels: Axes keep at least so many.
        loss: For criteria with gradients: (model, batch) -> the loss. None: cross entropy for batches (x, y).
        batches: The data of criteria that need some: a list of batches, a data loader. Its length is the user's
            choice; read in the mode that the model is in, from a copy. A function as criterion is given gradients
            if there are batches; other criteria do not read them.
        scores: Instead of a criterion: tensor name -> axis -> a score for each index there, summed (or as
            ``aggregation`` says) over what is coupled. Channels that have none are kept.
        expressed_by: What the small network will be. ``"module"``: a model of the same class, so that channels stay
            where the code of a module has sizes written in it. ``"program"``: the exported program, in whose graph
            every size follows.

    Returns:
        The plan; ``plan.extract(model)`` is the small model, or ``plan.extract_program(model, example_inputs)``
        the small program.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has a value that is not allowed, a target cannot be reached, or nothing would be pruned.
        RuntimeError: ``torch.export`` cannot capture the model; the message names the module and the reason.
    """
    start = time.perf_counter()
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    inputs = checked_inputs(example_inputs)
    options = checked_options(
        ratio=ratio,
        target=target,
        criterion=criterion,
        criteria=ALL_CRITERIA,
        ranking=ranking,
        rounding=rounding,
        seed=seed,
        preset=preset,
        scope=scope,
        aggregation=aggregation,
        normalization=normalization,
        ratios=ratios,
        matching=lambda pattern: matching_modules(model, "ratios", pattern),
        round_to=round_to,
        min_channels=min_channels,
        scores=scores,
    )
    check_choice("expressed_by", expressed_by, EXPRESSED_BY)
    if expressed_by == "program" and target is not None and target.quantity == "latency":
        raise ValueError(
            'target: expected parameters, flops or memory with expressed_by="program", got latency'
        )
    evidence = _gathered(model, options.scoring, loss, batches)
    search = Search(
        model,
        inputs,
        options,
        evidence,
        matching_modules(model, "ignore", ignore),
        expressed_by == "program",
    )
    fraction = options.ratio
    target_notes: tuple[str, ...] = ()
    if target is None:
        decision = search.at_ratio(fraction)
    else:
        decision, fraction, target_notes = search.at_target(target)
    found = decision.found
    tensors = search.tensors
    kept = decision.kept(tensors)
    options.check_pruned(kept, fraction, found)
    plan = PruningPlan(
        fingerprint=fingerprint(model),
        ratio=float(fraction),
        criterion=options.scoring.name,
        ranking=options.selection.ranking,
        rounding=rounding,
        seed=seed,
        inputs=tuple(map(TensorSpec.of, inputs)),
        outputs=found.outputs,
        kept=kept,
        attributes=decision.attributes(),
        layers=_layers(decision, tensors, kept, search.batch),
        notes=(*options.notes, *target_notes, *found.note_lines()),
        expressed_by=expressed_by,
    )
    total = time.perf_counter() - start
    return replace(plan, seconds=(total, total - search.exporter.seconds))


def _gathered(
    model: nn.Module, scoring: Scoring, loss: Loss | None, batches: Iterable[Any] | None
) -> Evidence:
    """What the criterion needs of the user's data."""
    criterion = scoring.criterion
    if scoring.scores is not None:
        return Evidence()
    kind = NEEDS.get(criterion, "") if isinstance(criterion, str) else "gradient" * (batches is not None)
    if not kind:
        return Evidence()
    if batches is None:
        raise ValueError(f"batches: the criterion {criterion!r} needs data, such as [(x, y)]")
    return gather(model, kind, loss, batches, scoring.seed)


def _layers(
    decision: Decision, tensors: dict[str, Tensor], kept: dict[str, dict[int, tuple[int, ...]]], batch: int
) -> tuple[Layer, ...]:
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, nn.Parameter):
            shapes.setdefault(name.rpartition(".")[0], {})[name] = tuple(tensor.shape)
    kinds = {path: type(module).__name__ for path, module in decision.found.modules.items()}
    return counted_layers(kinds, shapes, decision, kept, batch)


def counted_layers(
    kinds: Mapping[str, str],
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]],
    decision: Decision,
    kept: Mapping[str, Mapping[int, tuple[int, ...]]],
    batch: int,
) -> tuple[Layer, ...]:
    """The record of every layer with parameters of its own, and of those that multiply computed tensors only.

    Args:
        kinds: Name -> type of all layers.
        shapes: Name -> the parameters that are counted there -> their shapes.
        decision: What stays.
        kept: The same, by tensor.
        batch: How many inputs the example is.
    """
    owner = {tensor: name for name, tensors in shapes.items() for tensor in tensors}
    products: dict[str, list[Product]] = {}
    for product in decision.found.products:
        products.setdefault(owner.get(product.weight or "", product.module), []).append(product)
    layers = []
    for name, kind in kinds.items():
        mine = products.get(name, [])
        before = sum(product.times * math.prod(map(len, product.axes)) for product in mine)
        after = sum(product.times * math.prod(map(decision.count, product.axes)) for product in mine)
        layer = Layer(name, kind, 0, 0, 0, 0, 0, 2 * before // batch, 2 * after // batch)
        if name in shapes:
            layers.append(_with_parameters(layer, shapes[name], decision.found, mine, kept, batch))
        elif mine:
            layers.append(layer)
    return tuple(layers)


def _with_parameters(
    layer: Layer,
    shapes: Mapping[str, tuple[int, ...]],
    found: Trace,
    products: Sequence[Product],
    kept: Mapping[str, Mapping[int, tuple[int, ...]]],
    batch: int,
) -> Layer:
    """The record with the sizes of parameters, of which the first that writes channels gives the width."""
    after = {
        tensor: [len(kept.get(tensor, {}).get(axis, range(size))) for axis, size in enumerate(shape)]
        for tensor, shape in shapes.items()
    }
    main = next((tensor for tensor in shapes if tensor in found.writers), next(iter(shapes)))
    axis = found.writers.get(main, 0)
    whole = max(1, math.prod(shapes[main]))
    applied = sum(x.times * math.prod(map(len, x.axes)) for x in products if x.weight == main)
    return replace(
        layer,
        width_before=shapes[main][axis] if shapes[main] else 1,
        width_after=after[main][axis] if after[main] else 1,
        params_before=sum(map(math.prod, shapes.values())),
        params_after=sum(map(math.prod, after.values())),
        positions=applied // (whole * batch),
    )
