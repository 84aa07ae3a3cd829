"""Tensors that an earlier forward left in a module, and that the next one would make again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves_with_path

from prunefuse._inputs import Inputs, tensors_in
from prunefuse._seeds import isolated
from prunefuse.pruning._graph.copies import (
    ABSENT,
    EMPTY,
    UNSET,
    attribute_of,
    copied,
    held_attributes,
    placed,
    set_attributes,
)
from prunefuse.pruning._graph.export import quiet

Attribute: TypeAlias = tuple[str, str]
"""Module path, and name."""
States: TypeAlias = dict[str, dict[str, int | tuple[int, ...]]]
"""Module path -> attribute -> how it is before a forward."""


def caches(model: nn.Module, inputs: Inputs, names: Iterable[str]) -> States:
    """Those of some attributes that a forward in evaluation mode makes again, to the same values, where they are taken away.

    Attributes are taken away one by one, or together with others of their module: the code may look at one of them, or at
    the size that it was made for.

    Args:
        model: The model.
        inputs: Its example inputs.
        names: Module path and attribute of the tensors, or of the containers that they are in.
    """
    found: States = {}
    paths = dict(model.named_modules())
    waiting = dict.fromkeys(placed(name, paths) for name in names)
    for group in _groups(model, list(waiting)):
        if not any(x in waiting for x in group):
            continue
        for states in _states(model, [x for x in group if x[0] not in found or x[1] not in found[x[0]]]):
            made = _made_again(model, inputs, states)
            if made and (made == states or made == _made_again(model, inputs, made)):
                for path, mine in made.items():
                    found.setdefault(path, {}).update(mine)
                    for attribute in mine:
                        waiting.pop((path, attribute), None)
                break
    return found


def without_caches(model: nn.Module, found: States) -> nn.Module:
    """A copy of a model as it is before a forward."""
    model = copied(model)
    set_attributes(model, found)
    return model


def _groups(model: nn.Module, attributes: Sequence[Attribute]) -> Iterator[Sequence[Attribute]]:
    """What is taken away together: all, what one module has, each alone; and all that a module has of tensors."""
    yield attributes
    by_module: dict[str, list[Attribute]] = {}
    for path, name in attributes:
        by_module.setdefault(path, []).append((path, name))
    yield from by_module.values()
    yield from ([one] for one in attributes)
    for path in by_module:
        yield [(path, name) for name, _ in held_attributes(model.get_submodule(path))]


def _states(model: nn.Module, attributes: Sequence[Attribute]) -> Iterator[States]:
    """Ways in which these can be as before a forward; the last ones also without the sizes that they were made for."""
    if not attributes:
        return
    ways = ((UNSET, EMPTY), (ABSENT, EMPTY), (UNSET, UNSET))
    for sizes in (False, True):
        for of_tensor, of_container in ways:
            states: States = {}
            for path, name in attributes:
                module = model.get_submodule(path)
                value = attribute_of(module, name)
                states.setdefault(path, {})[name] = of_tensor if isinstance(value, Tensor) else of_container
                if sizes:
                    made_for = {size for tensor in tensors_in(value) for size in tensor.shape}
                    before, _, _ = name.rpartition(".")
                    owner = attribute_of(module, before) if before else module
                    states[path] |= {
                        f"{before}.{other}" if before else other: 0
                        for other, size in vars(owner).items()
                        if type(size) is int and size in made_for
                    }
            if not sizes or any(0 in mine.values() for mine in states.values()):
                yield states


def _made_again(model: nn.Module, inputs: Inputs, states: States) -> States:
    """Those of some attributes that are as before after a forward without them; none if that fails."""
    trial = without_caches(model, states).eval()
    try:
        with isolated(0, inputs.tensors[0].device), quiet(), torch.no_grad():
            inputs.map(torch.clone).run(trial)
    except Exception:  # of any kind
        return {}
    result: States = {}
    for path, mine in states.items():
        old, new = model.get_submodule(path), trial.get_submodule(path)
        same = {
            name: x for name, x in mine.items() if _is_same(attribute_of(old, name), attribute_of(new, name))
        }
        if same:
            result[path] = same
    return result


def _is_same(old: Any, new: Any) -> bool:
    """Whether something that was made again is as before; of a dictionary maybe less, for one size of several."""
    if type(old) is not type(new):
        return False
    if type(old) is int:
        return bool(old == new)
    before, after = (_leaves(value) for value in (old, new))
    return bool(after) and all(
        key in before
        and x.shape == before[key].shape
        and bool(torch.allclose(x, before[key], equal_nan=True))
        for key, x in after.items()
    )


def _leaves(value: Any) -> dict[str, Tensor]:
    return {str(path): x for path, x in tree_leaves_with_path(value) if isinstance(x, Tensor)}
