"""Planning: from a dense model to which of its channels are kept."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from torch import Tensor, nn
from typing_extensions import Unpack

from prunefuse._inputs import list_as_argument
from prunefuse._wrapped import unwrapped
from prunefuse.pruning._choose.fit_code import (
    Decision,
    Fault,
    Remedies,
    first_fault,
    next_remedies,
    number_that_stays,
    remedies_before_whole,
    remedies_for_comparisons,
)
from prunefuse.pruning._choose.gradients import Evidence, Loss, gather
from prunefuse.pruning._choose.preserve import preserving
from prunefuse.pruning._choose.scores import ALL_CRITERIA, NEEDS, Scoring
from prunefuse.pruning._choose.targets import Target
from prunefuse.pruning._explain import Coupled
from prunefuse.pruning._graph.caches import caches, without_caches
from prunefuse.pruning._graph.copies import fingerprint, named_tensors
from prunefuse.pruning._graph.export import CaptureError, Exporter
from prunefuse.pruning._graph.program import Program
from prunefuse.pruning._graph.standardized import change, loses_columns
from prunefuse.pruning._graph.trace import Note, Product, Trace, note_lines
from prunefuse.pruning._rules.heads import VALUES
from prunefuse.pruning._rules.standardized import standardized_weights
from prunefuse.pruning.extract import checkable_outputs
from prunefuse.pruning.options import (
    ModulePlanOptions,
    check_choice,
    checked_options,
    completed,
    inputs_for,
    lists,
    matching_modules,
)
from prunefuse.pruning.plan import EXPRESSED_BY, Layer, PruningPlan
from prunefuse.pruning.search import Dense, Race, Ranked


@lists(ModulePlanOptions)
def plan_pruning(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    **options: Unpack[ModulePlanOptions],
) -> PruningPlan:
    """Return a plan: which channels of a model are kept, by its exported graph.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 100), torch.nn.ReLU(), torch.nn.Linear(100, 2))
    >>> plan = prunefuse.plan_pruning(model, torch.zeros(1, 4), ratio=0.8)
    >>> plan.extract(model)[0].out_features
    20

    Every axis of n channels keeps ``round(n * (1 - ratio))`` of them, computed exactly, and at least one. It keeps those
    with the largest scores on that axis. Channels leave together that operators tie: a residual sum, a norm, the weights
    that read them. Where axes of different width are tied, the narrow one is settled first. The wider one keeps its tied
    channels and fills up from its own.

    Where a router chooses of experts, whole ones leave with their rows of it, and at least as many stay as it chooses. All
    stay with the router's weight in ``ignore``, as in ``["*.gate.weight"]``.

    Attention loses whole heads, a grouped convolution the same channels of every group. Their counts are rounded in these
    units. Inputs and outputs of the model stay as they are. So does what the code of a module cannot express; the plan's
    notes name it, and ``plan.explain`` tells of a layer.

    Args:
        model: The dense model, also inside of ``DataParallel``, ``DistributedDataParallel``, ``AveragedModel`` or
            ``torch.compile``. It is not changed. A copy of it runs once, on shapes alone where its code allows that.
        example_inputs: The input of its forward, or a tuple or list of the inputs in order. Inputs are tensors, or anything
            that holds some. A list of tensors is one input where the forward says ``images: list[Tensor]``. A dictionary is
            inputs by name where the forward takes these names, else it is one input. Only shapes and dtypes matter, unless
            the model's code looks at values. Axis 0 of the first tensor is taken as the batch. They may be on another
            device than the model.
        example_kwargs: More inputs, by name: a dictionary, or what a tokenizer returns.
        options: Those of `ModulePlanOptions`.

    Returns:
        The plan. ``plan.extract(model)`` is the small model, ``plan.extract_program(model, example_inputs)`` the small
        program.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has a value that is not allowed, a target cannot be reached, or nothing would be pruned.
        RuntimeError: The model cannot run, or not be exported where ``expressed_by`` is ``"program"``. The message names
            the module and the reason.

    References:
        Kousar, Bhatti and Moon 2025, *PruneFuse: Efficient Data Selection via Weight Pruning and Network Fusion*. Wang,
        Rachwan, Günnemann and Charpentier 2024, *Structurally Prune Anything: Any Architecture, Any Framework, Any Time*.
    """
    start = time.perf_counter()
    model = unwrapped(model)
    inputs = inputs_for(model, example_inputs, example_kwargs)
    wanted: ModulePlanOptions = completed("plan_pruning", ModulePlanOptions, options)
    expressed_by, target = wanted["expressed_by"], wanted["target"]
    checked = checked_options(
        wanted, ALL_CRITERIA, lambda pattern: matching_modules(model, "ratios", pattern)
    )
    check_choice("expressed_by", expressed_by, EXPRESSED_BY)
    free = expressed_by == "program"
    if free and target is not None and target.quantity == "latency":
        raise ValueError(
            'target must be parameters, flops or memory with expressed_by="program", got latency'
        )
    ignored = matching_modules(model, "ignore", wanted["ignore"], tensors=True)
    evidence = _gathered(model, checked.scoring, wanted["loss"], wanted["batches"])

    exporter = Exporter(model, inputs, exported=free)
    try:
        evaluation = exporter.dense()
    except CaptureError as error:
        if not list_as_argument(model, example_inputs):
            raise
        hint = "a list is the arguments in order: where it is one argument, write example_inputs=([...],)"
        raise CaptureError(f"{error}; {hint}", error.module) from error
    dense = Dense(model, inputs, evaluation, None, checked, evidence, ignored, free)
    if _has_unread(dense.evaluation):
        dense = replace(dense, training=exporter.dense_in_training())
    ranked = dense.ranked(Remedies())
    found: dict[str, dict[str, int | tuple[int, ...]]] = {}
    if ranked.trace.pinning and (found := caches(model, inputs, ranked.trace.pinning)):
        fresh = without_caches(model, found)
        exporter = Exporter(fresh, inputs)
        evaluation = exporter.dense()
        training = exporter.dense_in_training() if _has_unread(evaluation) else None
        dense = replace(dense, model=fresh, evaluation=evaluation, training=training)
        ranked = dense.ranked(Remedies())
    unused = ranked.trace.unused()

    reached: tuple[str, ...] = ()
    if target is None:
        settled, decision = _settled(dense, ranked, checked.ratio, exporter)
    elif target.quantity != "latency":
        settled, decision = _settled(dense, ranked, target, exporter)
        reached = (target.describe(settled.cost(target), settled.cost(target, decision.ratio)),)
    else:
        race = Race(dense.model, inputs, target)
        runnable, _ = _settled(dense, ranked, Fraction(1, 2), exporter)
        settled, decision = _settled(dense, ranked, race.ratio(runnable), exporter)
        reached = (race.describe(decision),)

    tensors = named_tensors(model)
    kept = decision.kept(tensors)
    gains, changes = _standardized(dense, tensors, decision.indices(tensors))
    notes = (
        *changes,
        *_notes_on_capture(exporter, [name for name in unused if name in tensors]),
        *((VALUES,) if settled.trace.products and dense.heads != checked.heads else ()),
        *note_lines(settled.notes),
    )
    couplings = Coupled.of(settled.trace, ignored, settled.notes)
    checked.check_pruned(kept, decision.ratio, notes, couplings.reasons)
    layers = _layers(decision, tensors, kept, dense.batch)
    outputs = decision.trace.outputs
    attributes = decision.attributes()
    for path, states in found.items():
        attributes[path] = {**attributes.get(path, {}), **states}
    if exporter.by_values:
        outputs = checkable_outputs(model, inputs, outputs)
    preserved = preserving(decision, dense.model)
    plan = PruningPlan(
        fingerprint=fingerprint(model),
        ratio=float(decision.ratio),
        criterion=checked.scoring.name,
        ranking=checked.selection.ranking,
        rounding=checked.selection.rounding,
        seed=wanted["seed"],
        inputs=inputs.specs,
        outputs=outputs,
        kept=kept,
        attributes=attributes,
        layers=layers,
        notes=(*checked.notes, *reached, *thin_notes(layers), *notes),
        expressed_by=expressed_by,
        structure=inputs.structure,
        heads=checked.heads,
        scaled=_scaled(settled.trace, kept),
        standardized=gains,
        reads=preserved.reads,
        copies=preserved.copies,
        not_preserved=preserved.not_preserved,
        couplings=couplings,
        example=inputs.on_meta(),
    )
    total = time.perf_counter() - start
    return replace(plan, seconds=(total, total - exporter.seconds))


def _scaled(
    trace: Trace, kept: Mapping[str, Mapping[int, tuple[int, ...]]]
) -> dict[str, dict[int, tuple[int, ...]]]:
    """Tensor -> axis -> its indices that make queries, where some of these leave."""
    return {
        name: {axis: rows}
        for name, (axis, rows) in trace.queries.items()
        if name in kept and axis in kept[name] and not set(rows) <= set(kept[name][axis])
    }


def _standardized(
    dense: Dense, tensors: Mapping[str, Tensor], kept: Mapping[str, Sequence[Tensor | None]]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Weights that are standardized before they are applied and lose inputs -> their gains, and notes on these weights."""
    program = dense.evaluation
    found = standardized_weights(program.graph, program.tensors)
    found = {name: gain for name, gain in found.items() if loses_columns(kept[name])}
    notes = []
    for name, gain in found.items():
        told = "gains keep the norm of each row" if gain else "no gains keep the norms of rows"
        why = f"standardized over what is left of them, weights change as they are applied, relative to their norm; {told}"
        amount = change(tensors[name], kept[name], tensors.get(gain))
        notes.append(Note(f"{name} {100 * amount:.2g} %", why))
    return {name: gain for name, gain in found.items() if gain}, note_lines(notes)


def _has_unread(program: Program) -> bool:
    """Whether there are parameters or buffers with axes that no call takes: training may."""
    return any(
        not node.users and node.meta["val"].ndim
        for node in program.graph.find_nodes(op="placeholder")
        if node.name in program.tensors
    )


def _notes_on_capture(exporter: Exporter, unused: Sequence[str]) -> tuple[str, ...]:
    """What a user must know of how the graphs were made."""
    notes: tuple[str, ...] = ()
    if exporter.by_values:
        notes += (
            f"planned by one run on the example inputs: where code looks at values, these decide ({exporter.by_values})",
        )
    if exporter.training_refusal and unused:
        why = (
            "evaluation does not use these, and training mode cannot be followed "
            f"({exporter.training_refusal}), so they keep their size, which may not fit what they meet there"
        )
        notes += note_lines(Note(name, why) for name in unused)
    return notes


def _settled(
    dense: Dense, ranked: Ranked, goal: Fraction | Target, exporter: Exporter
) -> tuple[Ranked, Decision]:
    """What is kept at a ratio, or for a target, so that the model's own code can run with it."""
    decision = ranked.at(goal)
    while fault := first_fault(decision, exporter):
        if attribute := number_that_stays(decision, fault, exporter):
            ranked = replace(ranked, remedies=ranked.remedies.with_staying(attribute))
        elif comparing := remedies_for_comparisons(decision, fault):
            ranked = replace(ranked, remedies=comparing)
        elif remedies := next_remedies(decision, fault):
            ranked = _with_attributes_that_stay(dense, decision, fault, goal, exporter) or dense.ranked(
                remedies
            )
        else:
            break  # extraction will say what is wrong
        decision = ranked.at(goal)
    return ranked, decision


def _with_attributes_that_stay(
    dense: Dense, decision: Decision, fault: Fault, goal: Fraction | Target, exporter: Exporter
) -> Ranked | None:
    """The model ranked so that nothing has to stay whole for this fault; None if none of what is tried helps."""
    for remedies, last in remedies_before_whole(decision, fault):
        ranked = dense.ranked(remedies)
        next_fault = first_fault(ranked.at(goal), exporter)
        if next_fault is None or next_fault.call > last:
            return ranked
    return None


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
        raise ValueError(f"batches must be data, such as [(x, y)], for the criterion {criterion!r}, got None")
    return gather(model, kind, loss, batches, scoring.seed)


def _layers(
    decision: Decision, tensors: dict[str, Tensor], kept: dict[str, dict[int, tuple[int, ...]]], batch: int
) -> tuple[Layer, ...]:
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, nn.Parameter):
            shapes.setdefault(name.rpartition(".")[0], {})[name] = tuple(tensor.shape)
    kinds = {path: type(module).__name__ for path, module in decision.trace.modules.items()}
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
    for product in decision.trace.products:
        products.setdefault(owner.get(product.weight or "", product.module), []).append(product)
    layers = []
    for name, kind in kinds.items():
        mine = products.get(name, [])
        before = sum(product.times * math.prod(map(len, product.axes)) for product in mine)
        after = sum(product.times * math.prod(map(decision.count, product.axes)) for product in mine)
        layer = Layer(name, kind, 0, 0, 0, 0, 0, 2 * before // batch, 2 * after // batch)
        if name in shapes:
            layers.append(_with_parameters(layer, shapes[name], decision.trace, mine, kept, batch))
        elif mine:
            layers.append(layer)
    return tuple(layers)


def thin_notes(layers: Iterable[Layer]) -> tuple[str, ...]:
    """Name the layers that lose more than nine tenths of their output channels."""
    why = "more than nine tenths of the channels leave, which may be more than training makes up for (min_fraction= is a limit)"
    thin = [layer for layer in layers if 10 * layer.width_after < layer.width_before]
    return note_lines(
        Note(f"{layer.name} ({layer.width_before} -> {layer.width_after})", why) for layer in thin
    )


def _with_parameters(
    layer: Layer,
    shapes: Mapping[str, tuple[int, ...]],
    traced: Trace,
    products: Sequence[Product],
    kept: Mapping[str, Mapping[int, tuple[int, ...]]],
    batch: int,
) -> Layer:
    """The record with the sizes of parameters, of which the first that writes channels gives the width."""
    after = {
        tensor: [len(kept.get(tensor, {}).get(axis, range(size))) for axis, size in enumerate(shape)]
        for tensor, shape in shapes.items()
    }
    main = next((tensor for tensor in shapes if tensor in traced.writers), next(iter(shapes)))
    axis = traced.writers.get(main, 0)
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
