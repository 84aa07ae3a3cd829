"""A training that was killed goes on from the end of an epoch, to the same weights bit for bit."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from prunefuse import _files as files
from prunefuse.errors import DamagedFileError
from prunefuse.training._recipe import completed_recipe

if TYPE_CHECKING:
    from prunefuse.dynamics import Recorder

_FORMAT = "prunefuse.training.Checkpoint/1"


@dataclass
class Checkpoint:
    """Where a training keeps what it needs to go on; `prunefuse.training.train` writes it, and goes on from it.

    >>> from pathlib import Path
    >>> from prunefuse.training import Checkpoint, Recipe, train
    >>> model, data = torch.nn.Linear(4, 2), torch.utils.data.TensorDataset(torch.rand(8, 4), torch.arange(8) % 2)
    >>> checkpoint = Checkpoint(Path("training.safetensors"), seconds=0)  # after every epoch but the last
    >>> len(train(model, data, Recipe(epochs=3), checkpoint=checkpoint)), checkpoint.path.exists()
    (3, True)

    A checkpoint has the model, the optimizer, the order of the samples and the states of random generators. The place in the
    learning-rate schedule follows from the number of epochs.

    Attributes:
        path: The file, replaced in one step. It stays when the training is done, and whoever keeps the result deletes it.
        seconds: It is written at the end of the first epoch that ends so long, or longer, after the last time.
        recorder: Scores of samples that are recorded during the training, kept with the rest.
        notes: Numbers of the caller, kept with the rest, and brought back when the training goes on.
    """

    path: Path
    seconds: float = 30.0
    recorder: Recorder | None = None
    notes: dict[str, float] = field(default_factory=dict)
    _written: float = field(default_factory=time.monotonic, init=False, repr=False)

    def due(self) -> bool:
        """Whether it is time to write."""
        return time.monotonic() - self._written >= self.seconds


@dataclass(frozen=True)
class Moment:
    """A training at the end of an epoch.

    ``order`` is the state that the order of the next epoch is drawn from, ``best`` the weights of the best epoch so far by
    name, where one is looked for; `read` fills it.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    generators: Mapping[str, torch.Generator]
    order: Tensor
    device: torch.device
    identity: Mapping[str, Any]
    best: dict[str, Tensor] = field(default_factory=dict)


def write(checkpoint: Checkpoint, moment: Moment, history: list[dict[str, Any]]) -> None:
    """Write ``checkpoint.path`` atomically."""
    tensors = {f"model.{name}": value for name, value in _state(moment.model).items()}
    for place, (_, buffers) in enumerate(_momenta(moment)):
        tensors |= {f"optimizer.{place}.{name}": value for name, value in buffers.items()}
    tensors |= {f"best.{name}": value for name, value in moment.best.items()}
    tensors["generator.order"] = moment.order
    tensors |= {f"generator.{name}": one.get_state() for name, one in moment.generators.items()}
    kind, keys, position, gaussian, value = np.random.get_state(legacy=True)  # noqa: NPY002
    version, words, spare = random.getstate()
    tensors["numpy"] = torch.from_numpy(np.asarray(keys).astype(np.int64))
    tensors["python"] = torch.tensor(words, dtype=torch.int64)
    tensors["torch"] = torch.get_rng_state()
    if moment.device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(moment.device)
    facts: dict[str, Any] = {
        "identity": dict(moment.identity),
        "history": history,
        "numpy": [kind, int(position), int(gaussian), float(value)],
        "python": [version, spare],
        "notes": checkpoint.notes,
    }
    if checkpoint.recorder is not None:
        state = checkpoint.recorder.state_dict()
        facts["recorder"] = state["config"]
        tensors |= {f"recorder.{name}": value for name, value in state["tensors"].items()}
    # Equal tensors may share memory (a tied weight): each is stored, so each comes back.
    tensors = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    told = json.dumps(facts, allow_nan=True)
    files.save_tensors(
        checkpoint.path, tensors, {"format": _FORMAT, "facts": told, "sha256": _digest(told, tensors)}
    )
    checkpoint._written = time.monotonic()


def read(checkpoint: Checkpoint, moment: Moment) -> tuple[list[dict[str, Any]], Tensor] | None:
    """Bring model, optimizer, generators, recorder and notes to what the file has; None where there is no file.

    Returns:
        The epochs done, as dictionaries, and the state that the order of the next one is drawn from.

    Raises:
        DamagedFileError: the file is not what was written.
        ValueError: it is of another training.
    """
    if not checkpoint.path.exists():
        return None
    facts, tensors = _load(checkpoint.path)
    theirs = facts["identity"]
    for name, mine in moment.identity.items():
        if _completed(name, theirs.get(name)) != mine:
            raise ValueError(
                f"checkpoint must be of a training with {name} {mine}, got one with {theirs.get(name)}: "
                f"delete {checkpoint.path} to begin anew"
            )
    with torch.no_grad():
        for name, value in _state(moment.model).items():
            value.copy_(tensors[f"model.{name}"])
        for place, (parameter, _) in enumerate(_momenta(moment)):
            prefix = f"optimizer.{place}."
            state = moment.optimizer.state[parameter]
            for name in [name for name in tensors if name.startswith(prefix)]:
                # In the memory format of the parameter, as the optimizer itself makes it; or one number of it.
                kept = tensors[name]
                own = torch.empty_like(parameter, dtype=kept.dtype) if kept.shape == parameter.shape else None
                state[name.removeprefix(prefix)] = (
                    kept.to(parameter.device) if own is None else own.copy_(kept)
                )
    best = {name.removeprefix("best."): t for name, t in tensors.items() if name.startswith("best.")}
    moment.best.update({name: value.to(moment.device) for name, value in best.items()})
    for name, generator in moment.generators.items():
        generator.set_state(tensors[f"generator.{name}"])
    kind, position, gaussian, value = facts["numpy"]
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), position, gaussian, value))  # noqa: NPY002
    version, spare = facts["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), spare))
    torch.set_rng_state(tensors["torch"])
    if moment.device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], moment.device)
    if checkpoint.recorder is not None:
        scores = {
            name.removeprefix("recorder."): t for name, t in tensors.items() if name.startswith("recorder.")
        }
        checkpoint.recorder.load_state_dict({"config": facts["recorder"], "tensors": scores})
    checkpoint.notes |= facts["notes"]
    return facts["history"], tensors["generator.order"]


def _completed(name: str, value: Any) -> Any:
    """Of a recipe: with options that were not there yet when it was written."""
    return completed_recipe(value) if name == "recipe" and value else value


def _load(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ValueError(f"format {metadata.get('format')}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if _digest(metadata["facts"], tensors) != metadata["sha256"]:
            raise ValueError("its content has another SHA-256 than when it was written")
        facts: dict[str, Any] = json.loads(metadata["facts"])
    except (SafetensorError, ValueError, KeyError) as error:
        raise DamagedFileError(
            f"{path} was changed or is damaged ({error}): delete it, and this training begins anew"
        ) from error
    return facts, tensors


def _digest(facts: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _state(model: nn.Module) -> dict[str, Tensor]:
    """All tensors of a model, those that its ``state_dict`` leaves out included; the tensors themselves."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _momenta(moment: Moment) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Each parameter, and what the optimizer keeps of it."""
    found = []
    for group in moment.optimizer.param_groups:
        for parameter in group["params"]:
            state = moment.optimizer.state.get(parameter, {})
            found.append((parameter, {k: v for k, v in state.items() if isinstance(v, Tensor)}))
    return found
