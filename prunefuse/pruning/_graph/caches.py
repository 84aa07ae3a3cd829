"""Tensors that an earlier forward left in a module, and that the next one would make again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress

import torch
from torch import Tensor, nn

from prunefuse._inputs import Inputs
from prunefuse._seeds import isolated
from prunefuse.pruning._graph.copies import copied, set_attributes
from prunefuse.pruning._graph.export import quiet

UNSET, ABSENT = (), (0,)
"""What a plan says of such an attribute in place of sizes: it is None, or not there, until a forward makes it."""


def caches(
    model: nn.Module, inputs: Inputs, names: Iterable[str]
) -> dict[str, dict[str, int | tuple[int, ...]]]:
    """Those of some tensors that a forward in evaluation mode makes again, to the same values, where they are taken away.

    Args:
        model: The model.
        inputs: Its example inputs.
        names: Module path and attribute of the tensors.

    Returns:
        Module path -> attribute -> how it is before a forward.
    """
    found: dict[str, dict[str, int | tuple[int, ...]]] = {}
    for name in names:
        path, _, attribute = name.rpartition(".")
        for state in (UNSET, ABSENT):
            if _is_made_again(model, inputs, path, attribute, state):
                found.setdefault(path, {})[attribute] = state
                break
    return found


def without_caches(model: nn.Module, found: Mapping[str, Mapping[str, int | tuple[int, ...]]]) -> nn.Module:
    """A copy of a model as it is before a forward."""
    model = copied(model)
    set_attributes(model, found)
    return model


def _is_made_again(
    model: nn.Module, inputs: Inputs, path: str, attribute: str, state: tuple[int, ...]
) -> bool:
    old = vars(model.get_submodule(path)).get(attribute)
    trial = without_caches(model, {path: {attribute: state}}).eval()
    with suppress(Exception), isolated(0, inputs.tensors[0].device), quiet(), torch.no_grad():
        inputs.map(torch.clone).run(trial)
    new = vars(trial.get_submodule(path)).get(attribute)
    if not isinstance(old, Tensor) or not isinstance(new, Tensor) or new is old:
        return False
    return new.shape == old.shape and bool(torch.allclose(new, old, equal_nan=True))
