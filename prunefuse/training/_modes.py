"""What is asked of a model before it runs: evaluation mode for a while, its device, and what it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from prunefuse.data._items import CLASSES, Reading, Targets
from prunefuse.training._recipe import Recipe

# Measured on one CPU thread: ResNet-56 (up to 64 channels) trains 1.2 times as fast in channels-last, VGG-16 and ResNet-18
# (up to 512) score 0.8 times as fast.
_NARROW = 64


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


def in_channels_last(model: nn.Module, recipe: Recipe) -> bool:
    """Whether images and weights are in channels-last: as the recipe says, or where it leaves that open, by what is faster."""
    if recipe.channels_last is not None:
        return recipe.channels_last
    widths = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    return bool(widths) and max(widths) <= _NARROW and device_of(model).type == "cpu"


def bfloat16_by(kind: str) -> str:
    """What of a device of this kind multiplies in bfloat16: ``amx``, ``avx512_bf16``, ``tensor cores``, or "" for nothing."""
    if kind == "cuda":
        return (
            "tensor cores"
            if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
            else ""
        )
    if kind != "cpu":
        return ""
    has = {"amx": "_is_amx_tile_supported", "avx512_bf16": "_is_avx512_bf16_supported"}
    return next((name for name, asked in has.items() if getattr(torch.cpu, asked, bool)()), "")


def in_bfloat16(recipe: Recipe, kind: str) -> bool:
    """Whether forward passes are in bfloat16 on a device of this kind: as the recipe says, or where the processor has it."""
    return bool(bfloat16_by(kind)) if recipe.autocast == "auto" else bool(recipe.autocast)


def settled(model: nn.Module, recipe: Recipe) -> Recipe:
    """The recipe with the memory format and the precision that the model is trained in, where it leaves them open."""
    autocast = in_bfloat16(recipe, device_of(model).type)
    return replace(recipe, channels_last=in_channels_last(model, recipe), autocast=autocast)


def takes_ids(model: nn.Module) -> bool:
    """Whether the model reads whole numbers, such as those of words: the first of its modules with weights is an embedding."""
    first = next((m for m in model.modules() if next(m.parameters(recurse=False), None) is not None), None)
    return isinstance(first, nn.Embedding | nn.EmbeddingBag)


def reading_for(
    model: nn.Module, targets: Targets = CLASSES, collate: Callable[[list[Any]], Any] | None = None
) -> Reading:
    """How items become what the model is given: by the names of its arguments where they are mappings."""
    inner = getattr(model, "_orig_mod", model)
    try:
        parameters = inspect.signature(inner.forward).parameters.values()
    except (TypeError, ValueError):  # code that is not Python
        parameters = {}.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = frozenset(one.name for one in parameters if one.kind in named)
    more = any(one.kind == inspect.Parameter.VAR_KEYWORD for one in parameters)
    return Reading(takes_ids(model), names, more, collate, targets)


def called(model: nn.Module, inputs: Any) -> Any:
    """What a model returns for a batch: of a mapping by name, of a tuple or list in order."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def require_model(model: object) -> None:
    """Raise ``TypeError`` for what is not a model."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
