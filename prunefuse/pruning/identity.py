"""Which tensors a model has, and whether two models are of the same shape."""

from __future__ import annotations

import hashlib
from itertools import chain

from torch import Tensor, nn


def all_names(model: nn.Module) -> dict[str, tuple[str, Tensor]]:
    """Every name of every parameter and buffer -> (the first name of that tensor, the tensor)."""
    first: dict[int, str] = {}
    names = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    return {name: (first.setdefault(id(tensor), name), tensor) for name, tensor in names}


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a model, each once, under its first name."""
    return {name: tensor for name, (first, tensor) in all_names(model).items() if name == first}


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over tensor names, shapes and ties, and module types; values, dtypes and devices do not count."""
    lines = [f"{name} {first} {list(tensor.shape)}" for name, (first, tensor) in all_names(model).items()]
    lines += [f"{path} {type(module).__name__}" for path, module in model.named_modules()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
