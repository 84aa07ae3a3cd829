"""Pruning in steps, with training in between; one plan of all steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from typing_extensions import Unpack

from prunefuse._wrapped import unwrapped
from prunefuse.pruning._choose.targets import Target
from prunefuse.pruning._graph.copies import fingerprint
from prunefuse.pruning.options import ModulePlanOptions, check_count, checked_ratio, inputs_for, lists
from prunefuse.pruning.plan import PruningPlan, check_plan
from prunefuse.pruning.planner import plan_pruning


@lists(ModulePlanOptions)
def prune_and_finetune(
    model: nn.Module,
    example_inputs: Any = None,
    finetune: Callable[[nn.Module], object] | None = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    steps: int = 1,
    **options: Unpack[ModulePlanOptions],
) -> tuple[nn.Module, PruningPlan]:
    """Return a model that was pruned in equal steps, with training in between, and the plan of all steps.

    Step k of n removes channels up to k/n of ``ratio``. Or it comes k/n of the way from the dense model to an amount of
    ``target``. Counts are rounded at every step. Each step scores what the steps before left.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 100), torch.nn.ReLU(), torch.nn.Linear(100, 2))
    >>> small, plan = prunefuse.prune_and_finetune(model, torch.zeros(1, 4), lambda small: None, steps=2, ratio=0.5)
    >>> small[0].out_features
    50

    Args:
        model: The dense model. It is not changed.
        example_inputs: As for :func:`plan_pruning`; None where all are in ``example_kwargs``.
        finetune: Called with the small model after every step, to train it in place. It must be given. It may return the
            trained model, such as a copy with the best weights, which is taken then.
        example_kwargs: As for :func:`plan_pruning`.
        steps: How many there are.
        options: Those of `ModulePlanOptions`.

    Returns:
        The small model after the last ``finetune``, and the plan that leads there from the dense model. ``fuse_`` and
        ``load_pruned`` take that plan.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: As for `plan_pruning`; or there are several steps, and ``ratios``, or a target for memory or latency.
    """
    ratio, target = options.pop("ratio", None), options.pop("target", None)
    check_count("steps", steps)
    if not callable(finetune):
        raise TypeError(f"finetune must be a function, got {type(finetune).__name__}")
    if ratio is not None and target is not None:
        raise ValueError("target must be left out beside a ratio, got both")
    if steps > 1 and target is not None and target.quantity not in ("parameters", "flops"):
        raise ValueError(f"target must be parameters or flops in several steps, got {target.quantity!r}")
    if steps > 1 and "ratios" in options:
        raise ValueError("ratios must be left out in several steps, each of which would apply them again")
    inputs = inputs_for(model, example_inputs, example_kwargs)
    whole = checked_ratio("ratio", 0.5 if ratio is None else ratio)
    dense = 0
    if target is not None and steps > 1:
        unpruned = plan_pruning(model, inputs.args, example_kwargs=inputs.kwargs, ratio=0)
        dense = unpruned.params[0] if target.quantity == "parameters" else unpruned.flops[0]
    small, plan = model, None
    for step in range(1, steps + 1):
        how: ModulePlanOptions = {**options, "target": target}
        if target is None:
            left, wanted = (1 - whole * done / steps for done in (step - 1, step))
            how["ratio"] = 1 - wanted / left
        elif steps > 1:
            amount = dense - (dense - target.limit(dense)) * step / steps
            how["target"] = Target(target.quantity, at_most=amount)
        now = plan_pruning(small, inputs.args, example_kwargs=inputs.kwargs, **how)
        small = now.extract(small)
        trained = finetune(small)
        if isinstance(trained, nn.Module):
            small = _trained(trained, small)
        plan = now if plan is None else compose(plan, now)
    assert plan is not None
    return small, replace(plan, ratio=float(whole)) if target is None else plan


def _trained(returned: nn.Module, small: nn.Module) -> nn.Module:
    """The model that a user's training returned, without what that put around it."""
    trained = unwrapped(returned, "what finetune returns")
    if fingerprint(trained) != fingerprint(small):
        raise ValueError(
            f"finetune must return the small model it was given, trained, or nothing, got another {type(trained).__name__}"
        )
    return trained


def compose(first: PruningPlan, second: PruningPlan) -> PruningPlan:
    """Return the plan that does what ``first`` does and then, to its small model, ``second``.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 100), torch.nn.ReLU(), torch.nn.Linear(100, 2))
    >>> first = prunefuse.plan_pruning(model, torch.zeros(1, 4), ratio=0.5)
    >>> second = prunefuse.plan_pruning(first.extract(model), torch.zeros(1, 4), ratio=0.5)
    >>> prunefuse.pruning.compose(first, second).extract(model)[0].out_features
    25

    Args:
        first: A plan for the dense model.
        second: A plan for the small model of ``first``.

    Raises:
        TypeError: An argument is not a plan.
        ValueError: The plans do not follow each other.
    """
    for plan in (first, second):
        check_plan(plan)
    before = {layer.name: layer for layer in first.layers}
    if (
        first.expressed_by != second.expressed_by
        or first.params[1] != second.params[0]
        or list(before) != [layer.name for layer in second.layers]
    ):
        raise ValueError("second must be a plan for the small model of the first")
    kept = {name: dict(axes) for name, axes in first.kept.items()}
    for name, axes in second.kept.items():
        mine = kept.setdefault(name, {})
        for axis, indices in axes.items():
            mine[axis] = tuple(mine[axis][i] for i in indices) if axis in mine else indices
    scaled = {name: axes for name, axes in second.scaled.items() if name not in first.scaled} | first.scaled
    attributes = {path: dict(values) for path, values in first.attributes.items()}
    for path, values in second.attributes.items():
        attributes.setdefault(path, {}).update(values)
    layers = tuple(
        replace(
            layer,
            width_before=before[layer.name].width_before,
            params_before=before[layer.name].params_before,
            flops_before=before[layer.name].flops_before,
        )
        for layer in second.layers
    )
    notes = dict.fromkeys((*first.notes, *second.notes))
    reads = _joined(first.reads, second.reads)
    return replace(
        second,
        ratio=1 - (1 - first.ratio) * (1 - second.ratio),
        fingerprint=first.fingerprint,
        kept=kept,
        attributes=attributes,
        scaled=scaled,
        standardized={**second.standardized, **first.standardized},
        layers=layers,
        notes=tuple(notes),
        reads=reads,
        copies={} if reads is None else _copies(first, second),
        not_preserved={} if reads is None else {**second.not_preserved, **first.not_preserved},
        couplings=first.couplings,
        seconds=(
            (first.seconds[0] + second.seconds[0], first.seconds[1] + second.seconds[1])
            if first.seconds and second.seconds
            else None
        ),
    )


def _joined(
    first: Mapping[str, tuple[tuple[int, ...], ...]] | None,
    second: Mapping[str, tuple[tuple[int, ...], ...]] | None,
) -> dict[str, tuple[tuple[int, ...], ...]] | None:
    """The uses of both; two of one call may be of some axes that one of the plans alone cuts."""
    if first is None or second is None:
        return None
    reads = {}
    for name in dict.fromkeys((*first, *second)):
        uses = {*first.get(name, ()), *second.get(name, ())}
        reads[name] = tuple(sorted(use for use in uses if not any(set(use) < set(other) for other in uses)))
    return reads


def _copies(first: PruningPlan, second: PruningPlan) -> dict[str, dict[int, tuple[int, ...]]]:
    """What leaves with the second plan is a copy of what the small model keeps, and what left before of that."""
    copies = {name: dict(axes) for name, axes in second.copies.items() if name not in first.kept}
    for name, kept in first.kept.items():
        for axis in first.copies.get(name, {}).keys() | second.copies.get(name, {}).keys():
            before, sources = kept.get(axis), first.copies.get(name, {}).get(axis, ())
            then = second.kept.get(name, {}).get(axis)
            own = second.copies.get(name, {}).get(axis, ())
            if before is None:
                copies.setdefault(name, {})[axis] = own
                continue
            source = dict(zip(_left(before, len(before) + len(sources)), sources, strict=True))
            if then is not None:
                left = _left(then, len(before))
                moved = {before[i]: before[j] for i, j in zip(left, own or left, strict=True)}
                source = {i: moved.get(j, j) for i, j in source.items()} | moved
            copies.setdefault(name, {})[axis] = tuple(source[i] for i in sorted(source))
    return copies


def _left(kept: tuple[int, ...], size: int) -> list[int]:
    """The indices that are not kept."""
    held = set(kept)
    return [i for i in range(size) if i not in held]
