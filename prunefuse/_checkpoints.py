"""Weights from a checkpoint: whose names and shapes fit are taken, and what does not fit is told."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from prunefuse._wrapped import GATHER, without_wrappers

_WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "network", "module", "weights")
_INSIDE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_NAMED = 3  # tensors that a message names, of each kind
_Shape = tuple[int, ...]


@dataclass(frozen=True)
class Unmatched:
    """What a checkpoint and a model do not share. It is true where there is something.

    >>> from prunefuse.models import Unmatched
    >>> print(Unmatched(2, ("bias",), (), {}, "w.pt"))
    1 of 2 tensors did not match: bias is not in w.pt

    Attributes:
        tensors: How many the model has.
        missing: Names in the model that the file does not have.
        unexpected: Names in the file that the model does not have.
        shapes: Shape in the file and shape in the model, by name, where these differ.
        path: The file.
        prefix: What was left out in front of the names in the file.
    """

    tensors: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    shapes: Mapping[str, tuple[_Shape, _Shape]]
    path: str
    prefix: str = field(default="", compare=False)

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes)

    def __str__(self) -> str:
        shapes = [
            f"{name} is {there} in {self.path} and {here} in the model"
            for name, (there, here) in self.shapes.items()
        ]
        parts = [_few(shapes)] if shapes else []
        if self.missing:
            parts.append(f"{_few(self.missing)} {_is(self.missing)} not in {self.path}")
        if self.unexpected:
            parts.append(f"{_few(self.unexpected)} of {self.path} {_is(self.unexpected)} not in the model")
        left = len(self.shapes) + len(self.missing)
        return f"{left} of {self.tensors} tensors did not match{': ' if parts else ''}{'; '.join(parts)}"


def load_weights_(model: nn.Module, path: str | os.PathLike[str], *, strict: bool = True) -> Unmatched:
    """Load a checkpoint into a model, and return what did not match.

    >>> prunefuse.save_tensors("old.safetensors", torch.nn.Linear(4, 1000).state_dict())
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 1000), torch.nn.Linear(1000, 3))
    >>> torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, "new.pt")
    >>> bool(prunefuse.load_weights_(model, "new.pt"))
    False
    >>> model[1] = torch.nn.Linear(1000, 5)
    >>> prunefuse.load_weights_(model, "new.pt", strict=False).shapes
    {'1.weight': ((3, 1000), (5, 1000)), '1.bias': ((3,), (5,))}

    The tensors may be inside of a mapping, under a name such as ``state_dict`` or ``model``. A prefix of their names, such as
    ``module.``, is left out where at least half of the model's names follow it.

    Args:
        model: The model. Where an error is raised, it is as it was.
        path: A safetensors file, or what ``torch.load`` reads with ``weights_only``.
        strict: Whether everything must match. Otherwise what does not match stays as it is in the model.

    Raises:
        TypeError: ``model`` is not a module.
        OSError: The file cannot be read.
        ValueError: It is not a checkpoint, something does not match and ``strict`` is true, or nothing matches.
    """
    return put_weights_(without_wrappers(model), read_weights(path), str(path), strict=strict)


def read_weights(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The tensors of a checkpoint by name, on the CPU.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a checkpoint.
    """
    place = Path(path).expanduser()
    with place.open("rb") as file:  # one that is not there, or is a folder, has the error that files have
        head = file.read(9)
    try:
        if place.suffix == ".safetensors" or head[8:] == b"{":
            from safetensors.torch import load_file

            found: Any = load_file(place)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what it says of archives stands in the error, too
                found = torch.load(place, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # pickle, zip and safetensors have their own
        raise ValueError(
            f"weights must be a checkpoint that is safe to read, got {path}{_why(error)}"
        ) from error
    return tensors_in(found, str(path))


def put_weights_(model: nn.Module, found: Mapping[str, Any], path: str, *, strict: bool) -> Unmatched:
    """What `load_weights_` does, with what `read_weights` has found."""
    if sharded := [name for name, value in found.items() if type(value).__name__ == "DTensor"]:
        raise ValueError(
            f"weights must be whole tensors, got {_few(sharded)} of {path} sharded over processes: {GATHER}"
        )
    own = model.state_dict()
    names, prefix = _names(found, own, path)
    renamed = {name: found[there] for there, name in names.items()}
    shapes = {
        name: (tuple(value.shape), tuple(own[name].shape))
        for name, value in renamed.items()
        if isinstance(value, Tensor) and _differs(value, own.get(name))
    }
    for name, value in renamed.items():
        if isinstance(value, Tensor) and _is_other_kind(value, own.get(name)):
            raise ValueError(
                f"weights must be floating numbers where the model has such, got {name} of {value.dtype} in {path}"
            )
    before = {
        name: value.clone() for name, value in own.items() if isinstance(value, Tensor) and not is_lazy(value)
    }
    try:
        rest = model.load_state_dict(
            {name: value for name, value in renamed.items() if name not in shapes}, strict=False
        )
        missing = tuple(
            name for name in rest.missing_keys if name not in shapes and not _tied(name, own, renamed)
        )
        unmatched = Unmatched(len(own), missing, tuple(rest.unexpected_keys), shapes, path, prefix)
        if strict and unmatched:
            raise ValueError(f"weights must fit the model, got {path}: {unmatched}")
        # A number, such as how many batches a norm has seen, is the same in all models.
        if not any(
            name not in (*shapes, *unmatched.unexpected) and isinstance(value, Tensor) and value.ndim
            for name, value in renamed.items()
        ):
            raise ValueError(
                f"weights must have a tensor of the model, by name and shape, got {path}: {unmatched}"
            )
    except (ValueError, RuntimeError) as error:
        model.load_state_dict(before, strict=False)
        if isinstance(error, ValueError):
            raise
        raise ValueError(f"weights must fit the model, got {path}: {' '.join(str(error).split())}") from error
    return unmatched


def tensors_in(found: Any, path: str) -> dict[str, Any]:
    """The tensors by name: what was read, or a mapping inside of it."""
    while not _is_state(found):
        inner = (
            {k: v for k, v in found.items() if isinstance(v, Mapping)} if isinstance(found, Mapping) else {}
        )
        states = [name for name, value in inner.items() if _is_state(value)]
        known = [name for among in (states, inner) for name in _WRAPPERS if name in among]
        names = known[:1] or states
        if len(names) != 1:
            what = type(found).__name__
            if isinstance(found, Mapping) and found:
                what = f"a mapping with {_few([*map(str, found)])}"
            raise ValueError(
                f"weights must be tensors by name, or these under 'state_dict' or 'model', got others in {path}: {what}"
            )
        found = inner[names[0]]
    return dict(found)


def _is_state(value: Any) -> bool:
    """Whether this is tensors by name; a module may keep something else under a name of its own choice."""
    return (
        isinstance(value, Mapping)
        and any(isinstance(tensor, Tensor) for tensor in value.values())
        and all(
            isinstance(name, str) and (isinstance(tensor, Tensor) or name.endswith("_extra_state"))
            for name, tensor in value.items()
        )
    )


def _names(found: Mapping[str, Any], own: Mapping[str, Any], path: str) -> tuple[dict[str, str], str]:
    """Name in the file -> name in the model, and the prefix that was left out.

    Raises:
        ValueError: Several prefixes would do.
    """
    plain = {_plain(name): name for name in own}
    names = {name: _plain(name) for name in found}
    fitting = Counter(
        name[:start]
        for name in names.values()
        for start in (0, *(dot.end() for dot in re.finditer(r"\.", name)))
        if name[start:] in plain
    )
    whole = fitting.pop("", 0)
    most = max(fitting.values(), default=0)
    best = [prefix for prefix, count in fitting.items() if count == most]
    if most <= whole or 2 * most < len(own):
        best = [""]
    if len(best) > 1:
        raise ValueError(
            f"weights must have the model's names once, got them in {path} with different prefixes: {', '.join(best)}"
        )
    stripped = {there: name.removeprefix(best[0]) for there, name in names.items()}
    twice = [name for name, count in Counter(stripped.values()).items() if count > 1]
    if twice:
        raise ValueError(
            f"weights must have the model's names once, got {_few(twice)} in {path} with and without {best[0] or _INSIDE[0]}"
        )
    return {there: plain.get(name, name) for there, name in stripped.items()}, best[0]


def _plain(name: str) -> str:
    """A name without what torch.compile and others put into it."""
    for part in _INSIDE:
        name = name.replace(part, "")
    return name


def _differs(value: Tensor, own: Any) -> bool:
    return isinstance(own, Tensor) and not is_lazy(own) and value.shape != own.shape


def _is_other_kind(value: Tensor, own: Any) -> bool:
    """Whether these are the numbers of a quantized model, say, which mean nothing without their scales."""
    return isinstance(own, Tensor) and own.is_floating_point() and not value.is_floating_point()


def _tied(name: str, own: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether a tensor has the memory of one that is in the file: safetensors stores it once."""

    def place(tensor: Any) -> tuple[Any, ...] | None:
        if not isinstance(tensor, Tensor) or is_lazy(tensor) or tensor.is_meta or tensor.numel() == 0:
            return None
        return tensor.data_ptr(), tensor.shape, tensor.stride()

    wanted = place(own[name]) if name in own else None
    return wanted is not None and any(place(own.get(other)) == wanted for other in found)


def _why(error: Exception) -> str:
    """What is wrong with a file, in a line."""
    pickled = re.search(r"(?:GLOBAL|global) (?:`)?([\w.]+\.\w+)", str(error))
    if pickled:
        return (
            f", which has a pickled {pickled[1]}, that would run code to be read: torch.save(model.state_dict(), PATH) makes "
            "one that is safe"
        )
    if "TorchScript" in str(error):
        return ", which is a TorchScript archive: torch.save(model.state_dict(), PATH) makes a checkpoint"
    return f": {type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'it cannot be read')}"


def _few(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
