"""Carrying out a plan: the small model out of the dense one, and from saved weights."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunefuse.pruning.capture import describe, first_line, quiet, running_modules
from prunefuse.pruning.cutting import cut
from prunefuse.pruning.identity import all_names
from prunefuse.pruning.plan import PruningPlan, check_plan


def extract(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """See :meth:`PruningPlan.extract`."""
    kept = plan.kept_indices(model)
    if plan.expressed_by != "module":
        raise ValueError(
            'plan: it was made with expressed_by="program", so the model\'s own code may not run with what it keeps; '
            'plan.extract_program(model, example_inputs) gives the exported program, or plan with expressed_by="module"'
        )
    result = cut(model, kept, plan.attributes)
    _check_runs(result, model, plan)
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


def _check_runs(small: nn.Module, dense: nn.Module, plan: PruningPlan) -> None:
    """Run shapes, not values, through the small model; if that fails, through the dense one to tell why."""
    advice = (
        "read it from the input there (-1 or x.shape), list it with register_sizes, keep the layers in front whole "
        'with ignore=, or plan with expressed_by="program"'
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
