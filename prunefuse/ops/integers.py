"""Labels, indices and masks of a user: whole numbers pass, anything else is refused with its place and value."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunefuse.ops.arrays import as_tensor


def whole(value: Any, *, floats: bool = True) -> int | None:
    """`value` as an int where it is one whole number, alone or in an array of one element; else None.

    Truth values are not numbers. `floats`: 2.0 is 2.
    """
    if isinstance(value, np.ma.MaskedArray) and np.ma.getmaskarray(value).any():
        return None
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.layout != torch.strided:
            return None
        value = value.item()
    elif isinstance(value, np.ndarray | np.generic):
        if value.size != 1 or value.dtype.kind not in "iuf":
            return None
        value = value.item()
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if floats and value.is_integer() else None
    try:
        return operator.index(value)
    except TypeError:
        return None


def class_index(where: str, sample: int, label: Any, *, floats: bool = True) -> int:
    """The label of a sample as an int; TypeError, naming the argument `where` and the sample, for what is no class index."""
    found = whole(label, floats=floats)
    if found is None:
        raise TypeError(f"{where} must have an integer label for sample {sample}, got {shown(label)}")
    return found


def class_indices(where: str, labels: Tensor, samples: Tensor) -> Tensor:
    """Labels (N,) as int64; TypeError, naming the argument and the first such sample, where one is no class index.

    Labels of a floating dtype are looked at, which waits for their device; integers are not.
    """
    if labels.dtype == torch.int64:
        return labels
    wrong = torch.zeros_like(labels, dtype=torch.bool)
    if labels.dtype.is_floating_point:
        wrong = ~labels.isfinite() | (labels != labels.round())
    elif labels.dtype.is_complex or labels.dtype == torch.bool:
        wrong = ~wrong
    if len(labels) and bool(wrong.any()):
        first = int(wrong.nonzero()[0, 0])
        raise TypeError(
            f"{where} must have an integer label for sample {int(samples[first])}, got {shown(labels[first])}"
        )
    return labels.to(torch.int64)


def as_integers(argument: str, given: Any, what: str = "row indices, or a mask of the rows") -> Tensor:
    """(N,) integers or truth values of an array or sequence, on the device where they are; their range is not looked at.

    Raises TypeError, naming `argument`, for fractions, NaN, strings, mappings and sets; ValueError for what is not in a row.
    """
    expected = f"{argument} must be a sequence of {what}"
    if hasattr(given, "__dlpack__"):
        array = as_tensor(argument, given)
    elif hasattr(given, "__array__") or (isinstance(given, Sequence) and not isinstance(given, str | bytes)):
        try:
            native = np.asarray(given)
        except ValueError:  # rows of different lengths
            raise TypeError(f"{expected}, got {shown(given)}") from None
        if native.dtype.kind in "fiu" and isinstance(given, Sequence) and not isinstance(given, range):
            # NumPy makes 1 of a True between numbers.
            mixed = {isinstance(value, bool | np.bool_) for value in given}
            if len(mixed) > 1:
                raise TypeError(f"{expected}, got numbers and truth values in one")
        if native.size and native.dtype.kind not in "fiub":
            raise TypeError(f"{expected}, got {shown(given)}")
        array = torch.empty(0, dtype=torch.int64) if native.size == 0 else as_tensor(argument, native)
    else:
        raise TypeError(f"{expected}, got {type(given).__name__}")
    if array.dim() == 1 and array.numel() == 0 and array.dtype != torch.bool:
        return array.to(torch.int64)
    whole = not array.dtype.is_floating_point and not array.dtype.is_complex
    if array.dim() != 1 or not whole:
        kind = ValueError if whole else TypeError
        raise kind(f"{expected}, got {array.dtype} of shape {tuple(array.shape)}")
    return array if array.dtype == torch.bool else array.to(torch.int64)


def row_indices(argument: str, given: Any, rows: int, of: str = "the data") -> Tensor:
    """(N,) int64 indices of rows, in the order given; a mask selects the rows where it is true.

    Raises TypeError, naming `argument`, for anything else, and ValueError for an index that is no row or a mask of another
    length.
    """
    array = as_integers(argument, given)
    if array.dtype == torch.bool:
        return rows_of_mask(argument, array, rows, of)
    if array.numel() and not 0 <= (low := int(array.min())) <= (high := int(array.max())) < rows:
        raise ValueError(
            f"{argument} must hold rows of {of} (0 to {rows - 1}), got {low if low < 0 else high}"
        )
    return array


def rows_of_mask(argument: str, mask: Tensor, rows: int, of: str = "the data") -> Tensor:
    """The rows where a mask is true, int64; ValueError where it is not as long as the data. Waits for its device."""
    if len(mask) != rows:
        raise ValueError(
            f"{argument} must be a mask of the {rows} rows of {of}, or indices, got a mask of {len(mask)}"
        )
    return mask.nonzero()[:, 0]


def shown(value: Any) -> str:
    """A value with its type, on one line and short."""
    kind = type(value).__name__
    if (isinstance(value, Tensor) and value.numel() == 1) or isinstance(value, np.generic):
        value = value.item()
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({kind})"
