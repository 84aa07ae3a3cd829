"""Planning: from a dense model to which of its channels are kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from fractions import Fraction
from numbers import Real

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from prunefuse.pruning.coupling import Ids
from prunefuse.pruning.criteria import CRITERIA, channel_scores
from prunefuse.pruning.fitting import STEPS, Decision, Programs, Remedies, alike_axes, settle_sizes
from prunefuse.pruning.graph import trace
from prunefuse.pruning.groups import ROUNDINGS, kept_count, settle
from prunefuse.pruning.identity import fingerprint, named_tensors
from prunefuse.pruning.plan import Layer, PruningPlan, TensorSpec
from prunefuse.pruning.trace import Trace

RANKINGS = ("local",)


def plan_pruning(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    *,
    ratio: float | None = None,
    criterion: str = "l2",
    ranking: str = "local",
    rounding: str = "floor",
    ignore: Iterable[str] | str = (),
    seed: int = 0,
    scores: Mapping[str, Mapping[int, Tensor]] | None = None,
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
        example_inputs: The input of its forward, or the inputs in order. Only shapes and dtypes matter;
            axis 0 of the first is taken as the batch.
        ratio: The fraction of channels to remove, 0 <= ratio < 1; None means 0.5.
        criterion: ``"l2"`` (PruneFuse), ``"l1"`` or ``"random"``; see
            :func:`prunefuse.pruning.criteria.channel_scores`.
        ranking: ``"local"``: within each axis.
        rounding: ``"floor"``, ``"nearest"`` (halves up) or ``"ceil"``, of the kept count. Which of them the
            PruneFuse paper uses is unknown; the default is ours.
        ignore: Names of modules, or patterns such as ``"stage1.*.conv2"`` (:mod:`fnmatch`), whose output
            channels are kept whole; a module stands for all those inside it. What is tied to those channels
            stays whole as well.
        seed: For ``"random"``.
        scores: Instead of a criterion: tensor name -> axis -> a score for each index there, summed over what is
            coupled. Channels that have none are kept.

    Returns:
        The plan; ``plan.extract(model)`` is the small model.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has a value that is not allowed, or nothing would be pruned.
        RuntimeError: ``torch.export`` cannot capture the model; the message names the module and the reason.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    inputs = _checked_inputs(example_inputs)
    fraction = _checked_ratio(ratio)
    _check_choice("criterion", criterion, CRITERIA)
    _check_choice("ranking", ranking, RANKINGS)
    _check_choice("rounding", rounding, tuple(ROUNDINGS))

    ignored = _matching_modules(model, ignore)
    tensors = named_tensors(model)

    def decide(programs: Programs, remedies: Remedies) -> Decision:
        whole = {kind: STEPS[step].whole == "live" for kind, step in remedies.items() if STEPS[step].whole}
        found = trace(model, programs.evaluation, ignored, programs.training, whole)
        component = _fix_unranked(found.couplings.components(), found)
        if scores is not None:
            given = _given_scores(scores, found, component)
            component = np.where(np.isnan(given)[component], 0, component)
        channels = {name: [component[ids] for ids in found.tensors[name].axes] for name in tensors}
        writers = {name: (tensors[name], axis, channels[name][axis]) for name, axis in found.writers.items()}
        keep = settle(
            (labels for axes in channels.values() for labels in axes),
            channel_scores(criterion, seed, int(component.max()) + 1, writers) if scores is None else given,
            lambda width: kept_count(width, fraction, rounding),
            [[component[ids] for ids in axes] for axes in alike_axes(found, remedies)],
        )
        return Decision(found, keep[component], remedies)

    decision = settle_sizes(model, inputs, decide)
    found = decision.found
    kept = decision.kept(tensors)
    notes = found.note_lines()
    if fraction and not kept:
        why = notes or ("every channel is an input, an output, ignored, or the only one of its axis",)
        raise ValueError(f"nothing was pruned at ratio {float(fraction):g}: {'; '.join(why)}")
    return PruningPlan(
        fingerprint=fingerprint(model),
        ratio=float(fraction),
        criterion=criterion if scores is None else "scores",
        ranking=ranking,
        rounding=rounding,
        seed=seed,
        inputs=tuple(map(TensorSpec.of, inputs)),
        outputs=found.outputs,
        kept=kept,
        attributes=decision.attributes(),
        layers=_layers(found, tensors, kept, inputs[0].shape[0] if inputs[0].ndim else 1),
        notes=notes,
    )


def _checked_inputs(example_inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
    if not isinstance(inputs, list | tuple) or not all(isinstance(x, Tensor) for x in inputs):
        got = type(example_inputs).__name__
        if isinstance(inputs, list | tuple):
            got += f" of {', '.join(type(x).__name__ for x in inputs)}"
        raise TypeError(f"example_inputs: expected a tensor or a tuple of tensors, got {got}")
    if not inputs or not all(x.numel() for x in inputs):
        raise ValueError("example_inputs: expected at least one tensor, and none without elements")
    return tuple(inputs)


def _checked_ratio(ratio: float | None) -> Fraction:
    if ratio is None:
        ratio = 0.5
    if isinstance(ratio, bool) or not isinstance(ratio, float | int | Real):
        raise TypeError(f"ratio: expected a number, got {type(ratio).__name__}")
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio: expected 0 <= ratio < 1, got {ratio}")
    return Fraction(str(ratio))  # the decimal that was written: 10 * (1 - 0.9) is 1


def _check_choice(argument: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{argument}: expected one of {', '.join(map(repr, allowed))}, got {value!r}")


def _matching_modules(model: nn.Module, ignore: Iterable[str] | str) -> set[str]:
    paths = [path for path, _ in model.named_modules(remove_duplicate=False) if path]
    found: set[str] = set()
    for pattern in [ignore] if isinstance(ignore, str) else ignore:
        if not isinstance(pattern, str):
            raise TypeError(f"ignore: expected names of modules, got {type(pattern).__name__}")
        matches = [path for path in paths if fnmatchcase(path, pattern)]
        if not matches:
            raise ValueError(f"ignore: {pattern!r} matches no module of the model")
        found |= {
            path for path in paths for match in matches if path == match or path.startswith(match + ".")
        }
    return found


def _fix_unranked(component: Ids, found: Trace) -> Ids:
    """Keep what no weight writes: there is nothing to rank it by."""
    ranked = np.zeros(len(component), dtype=np.bool_)
    ranked[0] = True
    for name, axis in found.writers.items():
        ranked[component[found.tensors[name].axes[axis]]] = True
    for name, value in found.tensors.items():
        if not all(ranked[component[ids]].all() for ids in value.axes):
            found.note(name, "no convolution or linear map writes these channels, so nothing ranks them")
    return np.where(ranked[component], component, 0)


def _given_scores(
    scores: Mapping[str, Mapping[int, Tensor]], found: Trace, component: Ids
) -> npt.NDArray[np.float64]:
    """The score of every coupled channel; NaN where it is given none."""
    total = np.zeros(int(component.max()) + 1)
    known = np.zeros(len(total), dtype=np.bool_)
    for name, mine in scores.items():
        for axis, values in mine.items():
            if name not in found.tensors or not 0 <= axis < len(found.tensors[name].axes):
                raise ValueError(f"scores: the model has no axis {axis} of a tensor {name!r}")
            channels = component[found.tensors[name].axes[axis]]
            if values.shape != channels.shape or not values.isfinite().all():
                raise ValueError(
                    f"scores: expected {len(channels)} finite numbers for axis {axis} of {name!r}, "
                    f"got {tuple(values.shape)}"
                )
            amounts = values.detach().cpu().double().numpy()
            total += np.bincount(channels, weights=amounts, minlength=len(total))
            known[channels] = True
    return np.where(known, total, np.nan)


def _layers(
    found: Trace, tensors: dict[str, Tensor], kept: dict[str, dict[int, tuple[int, ...]]], batch: int
) -> tuple[Layer, ...]:
    owned: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, nn.Parameter):
            owned.setdefault(name.rpartition(".")[0], []).append(name)
    layers = []
    for path, names in owned.items():
        before = {name: list(tensors[name].shape) for name in names}
        after = {
            name: [len(kept.get(name, {}).get(axis, range(size))) for axis, size in enumerate(shape)]
            for name, shape in before.items()
        }
        main = next((name for name in names if name in found.writers), names[0])
        axis = found.writers.get(main, 0)
        applied = {name: found.positions.get(name, 0) for name in names}
        layers.append(
            Layer(
                name=path,
                type=type(found.modules[path]).__name__,
                width_before=before[main][axis] if before[main] else 1,
                width_after=after[main][axis] if after[main] else 1,
                params_before=sum(map(math.prod, before.values())),
                params_after=sum(map(math.prod, after.values())),
                positions=applied[main] // batch,
                flops_before=sum(2 * applied[name] * math.prod(before[name]) for name in names) // batch,
                flops_after=sum(2 * applied[name] * math.prod(after[name]) for name in names) // batch,
            )
        )
    return tuple(layers)
