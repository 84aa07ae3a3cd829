"""What the tests of pruning share: filling a model with values that mean something, and the masking oracle."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from prunefuse.pruning import PruningPlan, plan_pruning


def scramble_(model: nn.Module, seed: int = 0) -> nn.Module:
    """In place: every parameter moved, norm statistics as after training; so that no 0 or 1 hides a fault."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("num_batches_tracked"):
                tensor.fill_(7)
            elif not tensor.is_floating_point():
                continue  # indices and masks
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 2, generator=generator)
            elif tensor.ndim < 2:
                tensor.uniform_(-0.5, 1, generator=generator)
            else:
                tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
    return model


RMS_NORMS = ("RMSNorm", "T5LayerNorm")
"""Ends of the names of norm layers in transformers; like PyTorch's, they work on the last axis."""


def masked(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """A copy of the dense model, zero wherever the plan removes something.

    Norm layers that take statistics over channels take them over those that are kept: this is where removing and
    masking differ.
    """
    model = copy.deepcopy(model)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, axes in plan.kept.items():
            for axis, kept in axes.items():
                gone = sorted(set(range(tensors[name].shape[axis])) - set(kept))
                tensors[name].index_fill_(axis, torch.tensor(gone), 0)
    for path, module in model.named_modules():
        kept = plan.kept.get(f"{path}.weight", {}).get(0)
        is_norm = isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm)
        if (is_norm or type(module).__name__.endswith(RMS_NORMS)) and kept is not None:
            module.forward = over_kept(module, torch.tensor(kept))
    return model


def over_kept(norm: nn.Module, kept: Tensor) -> Callable[[Tensor], Tensor]:
    """The forward of a norm layer on the kept channels of its input; the others are zero."""
    small = copy.deepcopy(norm)
    for name, parameter in norm.named_parameters():
        setattr(small, name, nn.Parameter(parameter.detach()[kept]))
    if isinstance(norm, nn.GroupNorm):
        small.num_channels = len(kept)
        small.num_groups = len(kept) if norm.num_groups == norm.num_channels else norm.num_groups
    else:
        small.normalized_shape = (len(kept),)
    axis = 1 if isinstance(norm, nn.GroupNorm) or type(norm).__name__.startswith("LayerNorm2d") else -1

    def forward(x: Tensor) -> Tensor:
        return torch.zeros_like(x).index_copy(axis, kept, small(x.index_select(axis, kept)))

    return forward


def assert_same_function(one: nn.Module, other: nn.Module, *inputs: Tensor, tolerance: float = 1e-9) -> None:
    """Both modules, in evaluation mode, give the same output up to a relative error."""
    with torch.no_grad():
        a, b = one.eval()(*inputs), other.eval()(*inputs)
    assert a.shape == b.shape
    assert a.isfinite().all()
    scale = float(b.abs().max())
    assert scale > 1e-6
    assert float((a - b).abs().max()) <= tolerance * scale


def assert_pruning_is_masking(
    model: nn.Module, plan: PruningPlan, *inputs: Tensor, tolerance: float = 1e-9
) -> nn.Module:
    """Cutting channels out and zeroing them in place give the same function; returns the small model."""
    small = plan.extract(model)
    assert_same_function(small, masked(model, plan), *inputs, tolerance=tolerance)
    return small


CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Between(nn.Module):
    """A 1x1 convolution to 8 channels, ``function``, a 1x1 convolution of what came out, its spatial mean."""

    def __init__(self, function, channels: int = 8, dims: int = 2) -> None:
        super().__init__()
        self.first = CONVOLUTIONS[dims](3, 8, 1)
        self.layer = function if isinstance(function, nn.Module) else nn.Identity()
        self.function = self.layer if isinstance(function, nn.Module) else function
        self.last = CONVOLUTIONS[dims](channels, 2, 1)

    def forward(self, x):
        return self.last(self.function(self.first(x))).flatten(2).mean(2)


def plan_and_check(model, *, size=6, ratio=0.5, dims=2):
    """Plan for images, and hold the plan against masking: the plan, the small model, widths by name."""
    model = scramble_(model).double()
    image = torch.randn(2, 3, *[size] * dims, generator=torch.Generator().manual_seed(0)).double()
    plan = plan_pruning(model, image, ratio=ratio)
    small = assert_pruning_is_masking(model, plan, image)
    return plan, small, {layer.name: layer.width_after for layer in plan.layers}
