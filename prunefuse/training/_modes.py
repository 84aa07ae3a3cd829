"""What is asked of a model before it runs: evaluation mode for a while, its device, and what it takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """``model`` in evaluation mode; afterwards every module is in the mode it was in."""
    require_model(model)
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def device_of(model: nn.Module) -> torch.device:
    """Where the model computes: the device of its first parameter or buffer; the CPU without any."""
    require_model(model)
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")


def takes_ids(model: nn.Module) -> bool:
    """Whether the model reads whole numbers, such as those of words: the first of its modules with weights is an embedding."""
    first = next((m for m in model.modules() if next(m.parameters(recurse=False), None) is not None), None)
    return isinstance(first, nn.Embedding | nn.EmbeddingBag)


def require_model(model: object) -> None:
    """Raise ``TypeError`` for what is not a model."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
