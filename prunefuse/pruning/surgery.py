"""Carrying out a plan: cutting the small model out of the dense one."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunefuse.pruning.graph import describe, first_line, quiet, running_modules
from prunefuse.pruning.identity import all_names, named_tensors
from prunefuse.pruning.plan import PruningPlan, check_plan


def extract(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """See :meth:`PruningPlan.extract`."""
    result = cut(model, plan.kept_indices(model), plan.attributes)
    _check_runs(result, model, plan)
    return result


def cut(
    model: nn.Module,
    kept: Mapping[str, Sequence[Tensor | None]],
    attributes: Mapping[str, Mapping[str, int | tuple[int, ...]]],
) -> nn.Module:
    """A copy of ``model`` with these indices of every axis of its tensors (None = all), and these attributes."""
    # deepcopy takes what its memo already holds for an object: hand it the cut tensors, and every module that
    # refers to one (tied weights do so twice) receives it.
    memo: dict[int, Any] = {}
    for name, tensor in named_tensors(model).items():
        small = tensor.detach()
        for axis, indices in enumerate(kept[name]):
            if indices is not None:
                small = small.index_select(axis, indices.to(tensor.device))
        if small.shape != tensor.shape:
            # index_select writes rows; channels-last weights stay so.
            layout = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
            small = torch.empty_permuted(small.shape, layout, dtype=small.dtype, device=small.device).copy_(
                small
            )
            is_parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(small, tensor.requires_grad) if is_parameter else small
    result = copy.deepcopy(model, memo)
    _set_attributes(result, attributes)
    return result


def load_pruned(
    factory: Callable[[], nn.Module],
    plan: PruningPlan,
    weights: str | os.PathLike[str] | Mapping[str, Tensor],
) -> nn.Module:
    """Rebuild a small model from the dense model's class, a plan and saved weights, without pickle.

    Args:
        factory: Builds the dense model; its values do not matter.
        plan: The plan the small model was extracted with.
        weights: A safetensors file of the small model's ``state_dict()``, or the state dict itself. Of tied
            tensors one name is enough, as ``safetensors.torch.save_model(small, path)`` writes it
            (``save_file`` refuses tensors that share memory).

    Returns:
        The small model in the mode that ``factory`` left it, holding ``weights``.

    Raises:
        TypeError: An argument has the wrong type, or ``factory`` does not return a module.
        OSError: The file cannot be read.
        ValueError: The plan is for another model, or the weights are no safetensors or do not fit.
    """
    if isinstance(factory, nn.Module) or not callable(factory):
        raise TypeError(
            f"factory: expected a function or class that builds the dense model, got {type(factory).__name__}"
        )
    check_plan(plan)
    if not isinstance(weights, str | os.PathLike | Mapping):
        raise TypeError(f"weights: expected a safetensors file or a state dict, got {type(weights).__name__}")
    small = plan.extract(factory())
    if not isinstance(weights, Mapping):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            weights = load_file(weights)
        except SafetensorError as error:
            raise ValueError(f"{weights}: not a safetensors file: {error}") from None
    try:
        small.load_state_dict(_with_tied_names(small, weights))
    except RuntimeError as error:
        raise ValueError(f"weights: they do not fit the small model of this plan: {error}") from None
    return small


def _with_tied_names(small: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under every name of each tied tensor, where they have any of them."""
    result = dict(weights)
    names = all_names(small)
    given = {first: result[name] for name, (first, _) in names.items() if name in result}
    for name in small.state_dict().keys() & names.keys():  # not the buffers that are never saved
        if name not in result and (first := names[name][0]) in given:
            result[name] = given[first]
    return result


def _set_attributes(small: nn.Module, attributes: Mapping[str, Mapping[str, int | tuple[int, ...]]]) -> None:
    modules = dict(small.named_modules(remove_duplicate=False))
    for path, mine in attributes.items():
        for name, value in mine.items():
            owner: Any = modules.get(path)
            held, _, attribute = name.rpartition(".")
            if hasattr(owner, held):  # an object that other modules may hold as well
                setattr(owner, held, copy.copy(getattr(owner, held)))
                owner = getattr(owner, held)
            before = getattr(owner, attribute, None)
            new = list(value) if isinstance(before, list) and isinstance(value, tuple) else value
            if type(before) is not type(new):
                raise ValueError(f"plan: damaged: it sets {name!r} of {path!r} from {before!r} to {value!r}")
            if held:
                vars(owner)[attribute] = new  # it may be frozen
            else:
                setattr(owner, attribute, new)


def _check_runs(small: nn.Module, dense: nn.Module, plan: PruningPlan) -> None:
    """Run shapes, not values, through the small model; if that fails, through the dense one to tell why."""
    advice = (
        "read it from the input there (-1 or x.shape), list it with register_sizes, or keep the layers in front "
        "whole with ignore="
    )
    with running_modules(small) as running:
        try:
            shapes = _output_shapes(small, plan)
        except Exception as error:
            _check_outputs_of_dense(dense, plan)
            raise ValueError(
                f"the pruned model cannot run, although the dense one does: {first_line(error)} (in "
                f"{describe(small, running)}). {_suspect(small, running)} has a channel count written in its code: "
                f"{advice}"
            ) from error
    if shapes != plan.outputs:
        _check_outputs_of_dense(dense, plan)
        raise ValueError(
            f"the pruned model returns shapes {shapes}, the dense one {plan.outputs}: one of its modules has a "
            f"channel count written in its code: {advice}"
        )


def _check_outputs_of_dense(dense: nn.Module, plan: PruningPlan) -> None:
    """Raise ``ValueError`` if the model behaves otherwise than the planned one, whose tensors are like its own."""
    try:
        shapes = _output_shapes(dense, plan)
        differs = f"returns shapes {shapes} instead of {plan.outputs}"
    except Exception as error:
        shapes = None
        differs = f"cannot run ({first_line(error)})"
    if shapes != plan.outputs:
        given = ", ".join(str(spec.shape) for spec in plan.inputs)
        raise ValueError(
            f"model: the plan is for another model than this {type(dense).__name__}: for the planned inputs of "
            f"shape {given} it {differs}, before any pruning (another stride, padding or forward?)"
        )


def _output_shapes(model: nn.Module, plan: PruningPlan) -> tuple[tuple[int, ...], ...]:
    """The shapes that a model returns in evaluation mode for inputs like the planned ones; it is not changed."""
    from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

    first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with FakeCopyMode(mode):
        model = copy.deepcopy(model).eval()
    with quiet(), mode, torch.no_grad():
        inputs = [spec.empty(first.device) for spec in plan.inputs]
        # The model may have another precision by now than when it was planned.
        outputs = model(*(x.to(first.dtype) if x.is_floating_point() else x for x in inputs))
    return tuple(tuple(x.shape) for x in tree_leaves(outputs) if isinstance(x, Tensor))


def _suspect(small: nn.Module, running: list[str]) -> str:
    """Who has a hard-coded size: the innermost running module that torch did not write."""
    own = [path for path in running if not type(small.get_submodule(path)).__module__.startswith("torch.nn.")]
    if not own:
        return "A module that runs before it"
    name = describe(small, own)
    return "It" if own[-1] == running[-1] else name[0].upper() + name[1:]
