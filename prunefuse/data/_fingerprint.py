"""What a data set was when a run began, in a few words, so that a change is noticed when the run goes on."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunefuse.data._tensors import in_memory


def fingerprint(data: Any, first: int | None = None) -> dict[str, str | int]:
    """The number of samples, and hashes of what they are made of; of the ``first`` samples alone, if that is given.

    Of data in memory: ``images`` and ``labels``, every byte. Of files in lists as torchvision's folders have them:
    ``names`` (from the folder that all are in), ``sizes`` in bytes, and ``labels``; the files are not read. Of others that
    have ``data`` and ``targets``, as torchvision's data sets in memory: those. Of anything else the number alone.
    """
    count = len(data) if first is None else min(first, len(data))
    found: dict[str, str | int] = {"samples": count}
    memory = in_memory(data)
    if memory is not None:
        found["images"] = _hashed(memory.images[:count])
        if memory.labels is not None:
            found["labels"] = _hashed(memory.labels[:count])
        return found
    listed = getattr(data, "samples", None) or getattr(data, "imgs", None)
    listed = listed[:count] if isinstance(listed, list) else listed
    if isinstance(listed, list) and listed and isinstance(listed[0], tuple) and len(listed[0]) == 2:
        paths = [os.fspath(path) for path, _ in listed]
        root = os.path.commonpath([os.path.dirname(path) for path in paths])
        found["names"] = _digest(
            "\n".join(os.path.relpath(path, root) for path in paths).encode("utf-8", "surrogateescape")
        )
        found["sizes"] = _digest("\n".join(map(str, map(_size, paths))).encode())
        found["labels"] = _digest("\n".join(str(label) for _, label in listed).encode())
        return found
    for name in ("data", "targets"):
        part = getattr(data, name, None)
        if isinstance(part, Tensor | np.ndarray | list):
            part = part[:count] if len(part) == len(data) else part
            try:
                found["images" if name == "data" else "labels"] = _hashed(torch.as_tensor(part))
            except (TypeError, ValueError, RuntimeError):  # a list of something else than numbers
                found["labels" if name == "targets" else "images"] = _digest(repr(part).encode())
    return found


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What of a data set is no longer what it was, in words."""
    words = {
        "samples": "number of samples",
        "images": "images",
        "labels": "labels",
        "names": "file names",
        "sizes": "file sizes",
    }
    return [
        f"its {words.get(name, name)} {_shown(name, before.get(name))} when the run began, "
        f"and now {_shown(name, now.get(name))}"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    ]


def _shown(name: str, value: Any) -> str:
    if name == "samples":
        return f"was {value}" if value is not None else "was not known"
    return f"had the hash {str(value)[:12]}"


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return -1


def _hashed(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    # In parts, so that nothing is copied whole.
    for part in flat.split(1 << 24):
        digest.update(part.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
