"""Where modules keep the sizes that pruning changes: a table by module type.

Slicing a convolution's weight leaves its ``out_channels`` wrong. A pruning plan therefore also holds new
values of module attributes, found through the two tables here. A user adds a type of their own with
:func:`register_sizes` (the size of one of the module's tensors) or :func:`register_padding` (constant channels
that the module adds).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.padding import _ConstantPadNd

_SIZES: dict[type[nn.Module], dict[tuple[str, int], str]] = {}
_PADDING: dict[type[nn.Module], tuple[str, str] | str] = {}
_T = TypeVar("_T")


def register_sizes(module_type: type[nn.Module], sizes: Mapping[tuple[str, int], str]) -> None:
    """Say which attributes of a module type are sizes of its tensors, so that pruning changes them along.

    >>> class Scaled(torch.nn.Module):
    ...     def __init__(self, width):
    ...         super().__init__()
    ...         self.width, self.matrix = width, torch.nn.Parameter(torch.eye(width))
    >>> prunefuse.pruning.register_sizes(Scaled, {("matrix", 0): "width"})

    Args:
        module_type: The type. Subclasses without an entry of their own share it.
        sizes: (name of a parameter or buffer of the module or of one inside it, axis) -> the integer attribute
            that holds the size of that axis.
    """
    _SIZES[module_type] = dict(sizes)


def register_padding(module_type: type[nn.Module], amounts: tuple[str, str] | str) -> None:
    """Say which attributes of a module type count the constant channels that it adds, so that pruning changes them along.

    The module must read these attributes in every forward.

    >>> class Shortcut(torch.nn.Module):
    ...     before, after = 2, 2
    ...     def forward(self, x):
    ...         return torch.nn.functional.pad(x, (0, 0, 0, 0, self.before, self.after))
    >>> prunefuse.pruning.register_padding(Shortcut, ("before", "after"))

    Args:
        module_type: The type. Subclasses without an entry of their own share it.
        amounts: The names of two integer attributes: added before, added after. Or the name of one attribute that is a
            tuple in the order of `torch.nn.functional.pad`.
    """
    _PADDING[module_type] = amounts


def sizes_of(module: nn.Module) -> Mapping[tuple[str, int], str]:
    """(Tensor, axis) -> attribute of a module; empty for an unknown type."""
    return _by_type(_SIZES, module) or {}


def padding_of(module: nn.Module) -> tuple[str, str] | str | None:
    """The attributes that hold the padding amounts of a module, None for an unknown type."""
    return _by_type(_PADDING, module)


def _by_type(table: Mapping[type[nn.Module], _T], module: nn.Module) -> _T | None:
    return next((table[kind] for kind in type(module).__mro__ if kind in table), None)


for _kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
    register_sizes(_kind, {("weight", 0): "out_channels", ("weight", 1): "in_channels"})
register_sizes(nn.Linear, {("weight", 0): "out_features", ("weight", 1): "in_features"})
register_sizes(_NormBase, {("weight", 0): "num_features", ("running_mean", 0): "num_features"})
register_sizes(nn.PReLU, {("weight", 0): "num_parameters"})
for _transposed in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d):
    register_sizes(_transposed, {("weight", 0): "in_channels", ("weight", 1): "out_channels"})
register_sizes(nn.Embedding, {("weight", 1): "embedding_dim"})
register_sizes(nn.EmbeddingBag, {("weight", 1): "embedding_dim"})
register_sizes(
    nn.Bilinear, {("weight", 0): "out_features", ("weight", 1): "in1_features", ("weight", 2): "in2_features"}
)
register_sizes(nn.GroupNorm, {("weight", 0): "num_channels"})
register_sizes(nn.RNNCellBase, {("weight_ih", 1): "input_size", ("weight_hh", 1): "hidden_size"})
register_sizes(nn.Transformer, {("decoder.layers.0.linear2.weight", 0): "d_model"})
register_padding(_ConstantPadNd, "padding")
