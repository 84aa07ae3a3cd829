"""Weights to start a training from, made of trained ones."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def shrink_and_perturb_(
    model: nn.Module, factor: float, noise: float, generator: torch.Generator | None = None
) -> None:
    """Multiply every parameter by ``factor`` and add normal numbers times ``noise``; buffers stay.

    A network that goes on from its weights of fewer labels generalizes worse than one that starts anew. Between the two,
    this keeps what was learned and the gradients of new samples large.

    >>> from prunefuse.training import shrink_and_perturb_
    >>> model = torch.nn.Linear(2, 2)
    >>> _ = torch.nn.init.ones_(model.weight)
    >>> shrink_and_perturb_(model, 0.5, 0.0)
    >>> model.weight[0, 0].item()
    0.5

    Args:
        model: Changed in place. A parameter that several modules share is changed once.
        factor: From 0 to 1.
        noise: A standard deviation.
        generator: Of the CPU, so that it draws the same for every device; None is the global one.

    References:
        Ash and Adams 2020, *On Warm-Starting Neural Network Training*.
    """
    for parameter in model.parameters():
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
        parameter.mul_(factor).add_(drawn.to(parameter.device, parameter.dtype), alpha=noise)
