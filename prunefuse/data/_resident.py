"""Tensors that many batches are read from, kept on the device where they are read."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

# For each tensor its copies by device, with the version of it that they are of: a change in place makes a new copy.
_COPIES: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def resident(tensor: Tensor, device: torch.device | None) -> Tensor:
    """``tensor`` itself if it is on ``device``, else a copy there that lives as long as it; itself where that does not fit.

    Rows that are picked on the device wait for no copy from the host. More than half of a GPU's free memory is not taken.
    """
    if device is None or tensor.device == device:
        return tensor
    copies = _COPIES.setdefault(tensor, {})
    version, copy = copies.get(device, (None, None))
    if version != tensor._version or copy is None:
        if device.type == "cuda" and 2 * tensor.nbytes > torch.cuda.mem_get_info(device)[0]:
            return tensor
        copy = tensor.to(device)
        copies[device] = (tensor._version, copy)
    found: Tensor = copy
    return found


def picked(tensor: Tensor, rows: Tensor, device: torch.device | None) -> Tensor:
    """Rows of a tensor on ``device``, without a wait for it."""
    source = resident(tensor, device)
    if device is None or source.device == device:
        return source[rows.to(source.device, non_blocking=True)]
    chosen = source[rows.to(source.device)]
    chosen = chosen.pin_memory() if device.type == "cuda" and chosen.device.type == "cpu" else chosen
    return chosen.to(device, non_blocking=True)
