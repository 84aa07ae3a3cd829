"""A small model from what was saved of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import overload

from torch import Tensor, nn

from prunefuse._checkpoints import put_weights_, read_weights, tensors_in
from prunefuse._options import require_type
from prunefuse.pruning import _folder as folders
from prunefuse.pruning._graph.copies import named_tensors
from prunefuse.pruning.plan import PruningPlan, check_plan

Factory = Callable[[], nn.Module]


@overload
def load_pruned(
    source: Factory, plan: PruningPlan, weights: str | os.PathLike[str] | Mapping[str, Tensor]
) -> nn.Module: ...


@overload
def load_pruned(
    *, factory: Factory, plan: PruningPlan, weights: str | os.PathLike[str] | Mapping[str, Tensor]
) -> nn.Module: ...


@overload
def load_pruned(
    source: str | os.PathLike[str], *, factory: Factory | None = None, trust: bool = False
) -> nn.Module: ...


def load_pruned(
    source: Factory | str | os.PathLike[str] | None = None,
    plan: PruningPlan | None = None,
    weights: str | os.PathLike[str] | Mapping[str, Tensor] | None = None,
    *,
    factory: Factory | None = None,
    trust: bool = False,
) -> nn.Module:
    """Return a small model, rebuilt from the dense model's class, a plan and saved weights, without pickle.

    >>> build = lambda: torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> plan = prunefuse.plan_pruning(build(), torch.zeros(1, 4), ratio=0.5)
    >>> small = plan.extract(build())
    >>> folder = plan.save_model(small, "loadable")
    >>> prunefuse.load_pruned("loadable", factory=build)[0].out_features
    4
    >>> prunefuse.load_pruned(build, plan, small.state_dict())[0].out_features
    4

    It takes a folder, or a factory with a plan and weights.

    Args:
        source: A folder that `PruningPlan.save_model` or ``prunefuse prune`` wrote. Or the factory, before a plan.
        plan: The plan the small model was extracted with; it is in a folder.
        weights: A checkpoint of the small model, or its ``state_dict()``; it is in a folder. Checkpoints are safetensors
            files, or what ``torch.load`` reads with ``weights_only``. Prefixes of names, such as ``module.``, are left out.
            Of tied tensors one name is enough.
        factory: Builds the dense model, without arguments; its values do not matter.
        trust: Whether to import and call the function that the folder names, which runs code. It needs no ``factory``.

    Returns:
        The small model in the mode that the factory left it, holding the weights. From a folder it has their dtypes.

    Raises:
        TypeError: An argument has the wrong type, or the factory does not return a module.
        OSError: A file cannot be read.
        ValueError: The plan is for another model, or the weights are no checkpoint or do not fit. Or there is no factory:
            the folder names none, or ``trust`` is false.
    """
    if isinstance(source, str | os.PathLike):
        if plan is not None or weights is not None:
            raise TypeError(
                "plan and weights must be left out beside a folder, which has both, got "
                f"{type(plan if plan is not None else weights).__name__}"
            )
        return _from_folder(Path(source), factory, trust)
    if source is not None and factory is not None:
        raise TypeError(f"source must be a folder beside factory=, got {type(source).__name__}")
    build = _checked(factory if source is None else source)
    check_plan(plan)
    assert plan is not None
    if not isinstance(weights, str | os.PathLike | Mapping):
        raise TypeError(f"weights must be a checkpoint's file or a state dict, got {type(weights).__name__}")
    return _rebuilt(build, plan, weights)


def _from_folder(folder: Path, factory: Factory | None, trust: bool) -> nn.Module:
    require_type(trust, bool, "trust", "True or False")
    if factory is not None:
        _checked(factory)
    if folder.is_file():
        raise NotADirectoryError(f"{folder} is a file, where a folder with {folders.PLAN} must be")
    plan = PruningPlan.load(folder / folders.PLAN)
    if factory is None:
        name = folders.read_factory(folder)
        if name is None:
            raise ValueError(
                f"factory must be a function that builds the dense model, since {folder} names none: "
                f"load_pruned({str(folder)!r}, factory=build)"
            )
        if not trust:
            raise ValueError(
                f"trust must be True to import and call {name}, which {folder} names, got False; or give a function: "
                f"load_pruned({str(folder)!r}, factory=build)"
            )
        factory = _checked(folders.imported(name))
    return _rebuilt(factory, plan, folder / folders.WEIGHTS, own_dtypes=True)


def _checked(factory: object) -> Factory:
    if isinstance(factory, nn.Module) or not callable(factory):
        raise TypeError(
            f"factory must be a function or class that builds the dense model, got {type(factory).__name__}"
        )
    return factory


def _rebuilt(
    factory: Factory,
    plan: PruningPlan,
    weights: str | os.PathLike[str] | Mapping[str, Tensor],
    *,
    own_dtypes: bool = False,
) -> nn.Module:
    dense = factory()
    require_type(dense, nn.Module, "factory", "a function that returns an nn.Module")
    small = plan.extract(dense)
    path = "the state dict" if isinstance(weights, Mapping) else str(weights)
    found = tensors_in(weights, path) if isinstance(weights, Mapping) else read_weights(weights)
    if own_dtypes:
        for name, tensor in named_tensors(small).items():
            saved = found.get(name)
            if isinstance(saved, Tensor) and saved.is_floating_point() and tensor.is_floating_point():
                tensor.data = tensor.data.to(saved.dtype)
    put_weights_(small, found, path, strict=True)
    return small
