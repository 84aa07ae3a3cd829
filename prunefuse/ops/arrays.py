"""Arrays in, arrays out: how every public function takes NumPy, torch or DLPack and answers in kind."""

from __future__ import annotations

import numbers
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from prunefuse._options import require

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def as_tensor(argument: str, array: Any) -> Tensor:
    """`array` as a detached tensor that shares its memory where possible.

    Raises TypeError, naming `argument`, for what is neither a tensor, nor a NumPy array, nor a DLPack producer; and for
    one that is sparse or has masked values, which would be lost.
    """
    if isinstance(array, Tensor):
        if array.layout != torch.strided:
            kind = str(array.layout).removeprefix("torch.")
            raise TypeError(f"{argument} must be a dense tensor, got {kind}: give its to_dense()")
        return array.detach()
    if isinstance(array, np.ndarray):
        if isinstance(array, np.ma.MaskedArray):
            masked = int(np.ma.getmaskarray(array).sum())
            if masked:
                raise TypeError(
                    f"{argument} must be an array without masked values, got {masked} of them: leave them out, or give "
                    "filled(numpy.nan)"
                )
            array = np.ma.getdata(array)
        # torch takes no negative strides, no steps of part of an element, no foreign byte order; none is worth an error.
        odd = any(step < 0 or step % max(array.itemsize, 1) for step in array.strides)
        native = np.ascontiguousarray(array) if odd else array
        if not native.dtype.isnative:
            native = native.astype(native.dtype.newbyteorder("="))
        with warnings.catch_warnings():
            # A read-only array: we never write to what we were given.
            warnings.filterwarnings("ignore", message=".*not writable.*")
            try:
                return torch.from_numpy(native)
            except TypeError as error:
                raise TypeError(f"{argument} must be an array of numbers, got dtype {array.dtype}") from error
    if hasattr(array, "__dlpack__"):
        return from_dlpack(array).detach()
    raise TypeError(
        f"{argument} must be a torch tensor, a NumPy array or an array with __dlpack__, got {type(array).__name__}"
    )


def like(array: Any, result: Tensor) -> Any:
    """`result` as NumPy where the caller's `array` was NumPy, else the tensor."""
    return result.numpy() if isinstance(array, np.ndarray) else result


def require_floating(argument: str, tensor: Tensor) -> None:
    """Raises TypeError, naming `argument`, unless the dtype is a supported floating one."""
    if tensor.dtype not in FLOATING:
        raise TypeError(f"{argument} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")


def require_number(argument: str, value: Any) -> float:
    """`value` as a float; TypeError, naming `argument`, unless it is a real number of Python or NumPy."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{argument} must be a number, got {type(value).__name__}")
    return float(value)


def require_fraction(argument: str, value: Any) -> float:
    """`value` as a float between 0 and 1, both excluded; TypeError or ValueError, naming `argument`, otherwise."""
    require(0 < require_number(argument, value) < 1, argument, "in (0, 1)", value)
    return float(value)


def require_count(argument: str, value: Any, lowest: int = 0) -> int:
    """`value` as an int of at least `lowest`; TypeError or ValueError, naming `argument`, otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{argument} must be an integer, got {type(value).__name__}")
    if value < lowest:
        raise ValueError(f"{argument} must be at least {lowest}, got {value}")
    return int(value)
