"""What ``prunefuse prune`` does: a model by name, its checkpoint, a plan, and a new folder with the small model."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunefuse.models import load_weights_
from prunefuse.pruning._choose.targets import Target
from prunefuse.pruning.plan import PruningPlan
from prunefuse.pruning.planner import plan_pruning


@dataclass(frozen=True)
class Source:
    """Where a dense model comes from.

    Attributes:
        build: Makes it.
        imports: A line of Python that imports what makes it.
        expression: A Python expression that is a function which makes it.
        name: Its name, by which it can be imported without arguments; None if it has none.
    """

    build: Callable[[], nn.Module]
    imports: str
    expression: str
    name: str | None = None


def find_model(name: str, num_classes: int | None = None) -> Source:
    """A model by name.

    Args:
        name: ``resnet18``, ``torchvision:resnet18`` or ``timm:resnet18`` (without either, torchvision's is taken if it
            has one); or ``package.module:function``, a function without required arguments, also of a module in the
            current folder.
        num_classes: For models of torchvision and timm; None is their default.

    Raises:
        ValueError: there is no such model, or its package is not installed.
    """
    library, _, rest = name.rpartition(":")
    if library not in ("", "torchvision", "timm"):
        if num_classes is not None:
            raise ValueError(
                "num_classes must be left out beside a function, which builds the model as it is"
            )
        return _from_function(library, rest)
    import torchvision

    known: Sequence[str] = torchvision.models.list_models()
    options = {} if num_classes is None else {"num_classes": num_classes}
    written = "".join(f", {key}={value}" for key, value in options.items())
    if library != "timm" and rest in known:
        return Source(
            lambda: torchvision.models.get_model(rest, weights=None, **options),
            "from torchvision.models import get_model",
            f'lambda: get_model("{rest}"{written})',
            None if options else _importable(torchvision.models.get_model_builder(rest)),
        )
    if library != "torchvision" and importlib.util.find_spec("timm") is not None:
        timm = importlib.import_module("timm")
        if rest in timm.list_models():
            return Source(
                lambda: timm.create_model(rest, **options),
                "from timm import create_model",
                f'lambda: create_model("{rest}"{written})',
            )
        known = [*known, *timm.list_models()]
    elif library == "timm":
        raise ValueError(f"model {name!r} needs the package timm, which is not installed")
    close = difflib.get_close_matches(rest, known, 3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise ValueError(
        f"model must be a name of torchvision or timm, package.module:function or an .onnx file, got {name!r}{hint}"
    )


def _importable(function: Callable[..., nn.Module]) -> str:
    return f"{function.__module__}:{function.__qualname__}"


def _from_function(module: str, function: str) -> Source:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        build = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"model must be a function that can be imported, got {function!r} from {module!r}: {error}"
        ) from error
    return Source(build, f"from {module} import {function}", function, f"{module}:{function}")


def parse_input(text: str) -> Tensor:
    """Zeros of a shape such as ``1x3x224x224``, or ``1x16:int64``."""
    shape, _, dtype = text.partition(":")
    kind = getattr(torch, dtype or "float32", None)
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or not isinstance(kind, torch.dtype):
        raise ValueError(f"input must be a shape such as 1x3x224x224 or 1x16:int64, got {text!r}")
    return torch.zeros([int(size) for size in shape.split("x")], dtype=kind)


def parse_target(quantity: str, text: str) -> Target:
    """A target: below 1 or with ``%`` a fraction of the dense model's, from 1 on an amount, with ``ms`` a latency."""
    found = re.fullmatch(r"([\d.]+(?:[eE]\+?\d+)?)\s*(%|ms)?", text.strip())
    try:
        value = float(found[1] if found else "")
    except ValueError:
        raise ValueError(f"target-{quantity} must be a number such as 0.5, got {text!r}") from None
    unit = found[2] if found else None
    is_amount = unit == "ms" or (unit is None and value >= 1)
    if (unit == "ms" and quantity != "latency") or (is_amount and quantity == "latency" and unit is None):
        kind = "an amount such as 5ms" if quantity == "latency" else "an amount"
        raise ValueError(f"target-{quantity} must be a fraction below 1 or {kind}, got {text!r}")
    if is_amount:
        return Target(quantity, at_most=value / 1000 if unit == "ms" else value)
    return Target(quantity, value / 100 if unit == "%" else value)


def prune_to_folder(
    source: Source,
    out: Path,
    *,
    weights: Path | None = None,
    inputs: Sequence[Tensor],
    seed: int = 0,
    **planning: Any,
) -> tuple[PruningPlan, str]:
    """Build a model, prune it, and write the folder of the small one, which ``load_pruned`` takes.

    Args:
        source: The dense model.
        out: A folder that does not exist yet.
        weights: Its checkpoint; None leaves it as it is built, from ``seed``.
        inputs: Its example inputs.
        seed: Also for :func:`plan_pruning`.
        planning: What else :func:`plan_pruning` takes.

    Returns:
        The plan, and the lines of Python that load the small model.

    Raises:
        FileExistsError: ``out`` exists.
        OSError: a file cannot be read or written.
        RuntimeError: the model cannot be captured.
        ValueError: an argument is wrong.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists and is not overwritten")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = source.build()
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model must be a function that returns a module, got {source.expression}, which returns {type(model).__name__}"
        )
    if weights is not None:
        load_weights_(model, weights)
    plan = plan_pruning(model, tuple(inputs), seed=seed, **planning)
    plan.save_model(plan.extract(model), out, source.name)
    return plan, "\n".join(
        (
            source.imports,
            "from prunefuse import load_pruned",
            f"model = load_pruned({str(out)!r}, factory={source.expression})",
        )
    )


def prune_onnx(
    path: Path,
    out: Path,
    *,
    weights: Path | None = None,
    num_classes: int | None = None,
    inputs: Sequence[Tensor] = (),
    **planning: Any,
) -> PruningPlan:
    """Prune an ONNX file.

    Args:
        path: The file.
        out: The file to write, which must not exist.
        weights: None: they are in the file.
        num_classes: None: the network is as it is.
        inputs: The example inputs in their order, of which the shapes count, where the file leaves sizes open.
        planning: What :func:`plan_pruning` takes beside a model.

    Returns:
        The plan.

    Raises:
        FileExistsError: ``out`` exists.
        ValueError: the package onnx is not installed, or the file cannot be pruned so.
    """
    for name, value in (("weights", weights), ("num_classes", num_classes)):
        if value is not None:
            raise ValueError(f"{name} must be left out for an ONNX file, which has a network and its weights")
    if out.exists():
        raise FileExistsError(f"{out} exists and is not overwritten")
    try:
        onnx = importlib.import_module("prunefuse.onnx")
    except ImportError as error:
        raise ValueError(f"model cannot be an ONNX file here: {error}") from error
    plan: PruningPlan = onnx.prune(path, out, shapes=[tuple(x.shape) for x in inputs], **planning)
    return plan
