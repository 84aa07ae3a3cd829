"""Labels of any task as plain data, for state.json: class indices as they are, tensors by their numbers or packed bytes."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

_FEW = 64  # numbers that are listed


def encoded(label: Any) -> Any:
    """A label for JSON; `decoded` is the inverse."""
    if isinstance(label, Mapping):
        return {"fields": {name: encoded(one) for name, one in label.items()}}
    if not isinstance(label, Tensor):
        return label
    host = label.detach().cpu().contiguous()
    found: dict[str, Any] = {"dtype": str(host.dtype).removeprefix("torch."), "shape": list(host.shape)}
    if host.numel() <= _FEW:
        return {**found, "values": host.flatten().tolist()}
    return {**found, "zlib": base64.b64encode(zlib.compress(host.numpy().tobytes(), 6)).decode("ascii")}


def decoded(value: Any) -> Any:
    """The label that was encoded."""
    if not isinstance(value, Mapping):
        return value
    if "fields" in value:
        return {name: decoded(one) for name, one in value["fields"].items()}
    dtype = getattr(torch, value["dtype"])
    if "values" in value:
        return torch.tensor(value["values"], dtype=dtype).reshape(value["shape"])
    content = bytearray(zlib.decompress(base64.b64decode(value["zlib"])))
    kind = torch.empty(0, dtype=dtype).numpy().dtype
    return torch.from_numpy(np.frombuffer(content, kind)).reshape(value["shape"])
