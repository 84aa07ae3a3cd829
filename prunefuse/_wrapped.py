"""The model inside of what others put around it: to run it on several devices, compile it, or average its weights."""

from __future__ import annotations

import torch
from torch import nn

from prunefuse._options import require_type

_AROUND = {
    "torch.DataParallel": "module",
    "torch.DistributedDataParallel": "module",
    "torch.AveragedModel": "module",
    "torch.OptimizedModule": "_orig_mod",
    "ultralytics.Model": "model",  # YOLO(...), whose train() is a whole training
}
"""Package and class -> where it holds the whole model, whose function it computes."""
GATHER = (
    "torch.distributed.checkpoint.state_dict.get_model_state_dict with full_state_dict=True gathers them, or the model "
    "is planned before it is sharded"
)
"""What to do about sharded parameters."""


def unwrapped(model: nn.Module, argument: str = "model") -> nn.Module:
    """The model without the wrappers around it, checked to have its Python code and whole parameters.

    Raises:
        TypeError: It is not a module, is scripted or sharded, or has a wrapper inside of it.
    """
    model = without_wrappers(model, argument)
    for path, module in model.named_modules():
        where = f" as {path!r}" if path else ""
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"{argument} must be a module of Python code, got a scripted one{where}: plan the module from which "
                "torch.jit.script or torch.jit.trace made it"
            )
        kinds = _kinds(module)
        if "torch.FullyShardedDataParallel" in kinds:
            raise TypeError(
                f"{argument} must have whole parameters, got a FullyShardedDataParallel{where}, which has parts of them: "
                f"{GATHER}"
            )
        for kind in ("DistributedDataParallel", "OptimizedModule"):
            if f"torch.{kind}" in kinds:
                raise TypeError(
                    f"{argument} must be the module inside, got a {kind} around a part of it{where}: put "
                    f".{_AROUND[f'torch.{kind}']} in its place, and wrap that part of the small model"
                )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if type(tensor).__name__ == "DTensor":
            raise TypeError(
                f"{argument} must have whole parameters, got {name} sharded over processes: {GATHER}"
            )
    return model


def without_wrappers(model: nn.Module, argument: str = "model") -> nn.Module:
    """The model without the wrappers around it.

    Raises:
        TypeError: It is not a module.
    """
    require_type(model, nn.Module, argument, "an nn.Module")
    while place := place_inside(model):
        inside = getattr(model, place)
        if not isinstance(inside, nn.Module):
            raise TypeError(f"{argument} must hold a module as .{place}, got {type(inside).__name__}")
        model = inside
    return model


def place_inside(model: nn.Module) -> str | None:
    """The attribute that has the model inside of one of the known wrappers; None of any other model."""
    kinds = _kinds(model)
    return next((place for kind, place in _AROUND.items() if kind in kinds), None)


def _kinds(module: nn.Module) -> set[str]:
    """Packages and names of its classes: by name, since some are loaded only where they are used."""
    return {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(module).__mro__}
