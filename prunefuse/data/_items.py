"""Items of a map-style data set: what of them is the image and what the label, and what is said where one cannot be read."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from prunefuse.ops.arrays import as_tensor
from prunefuse.ops.integers import class_index

# Keys of items that are mappings, as Hugging Face data sets have them.
IMAGE_KEYS = ("image", "img", "pixel_values", "input_ids")
LABEL_KEYS = ("label", "labels")


def check_map_style(name: str, data: Any) -> None:
    """Raise ``TypeError`` unless ``data`` can be read by ``len(data)`` and ``data[index]``; it is not read."""
    kind = type(data).__name__
    expected = f"{name} must be a map-style data set, with len() and data[index]"
    if isinstance(data, Mapping | str | bytes | IterableDataset):
        raise TypeError(f"{expected}, got {kind}")
    if isinstance(data, Tensor | np.ndarray):
        as_tensor(name, data)
    try:
        count = len(data)
    except TypeError:
        count = -1
    if count < 0 or not hasattr(data, "__getitem__"):
        raise TypeError(f"{expected}, got {kind}")
    if hasattr(data, "iloc"):
        raise TypeError(f"{expected}, got a pandas {kind}: give its to_numpy(), with labels by an oracle")


def item_of(data: Any, position: int) -> Any:
    """The item at ``position``; an error of the system or of a file names the sample, and its file where the data list them."""
    try:
        return data[position]
    except (OSError, SyntaxError, EOFError) as error:
        listed = getattr(data, "samples", None) or getattr(data, "imgs", None)
        path = listed[position][0] if isinstance(listed, list) and position < len(listed) else None
        if (path is not None and str(path) in str(error)) or getattr(error, "filename", None) is not None:
            raise
        where = f"sample {position}" if path is None else f"sample {position}, {path},"
        said = " ".join(str(error).split()) or type(error).__name__
        raise OSError(f"{where} cannot be read: {said}") from error


def image_of(item: Any, *, ids: bool = False) -> Tensor:
    """The image of a data set's item: the item itself, the first element of a tuple or list, or the value of a known key."""
    image = item[0] if isinstance(item, tuple | list) and item else item
    if isinstance(item, Mapping):
        image = _value(item, IMAGE_KEYS, "an image")
    if isinstance(image, np.ndarray) or (isinstance(image, Tensor) and image.layout != torch.strided):
        image = as_tensor("an item of data", image)
    if not isinstance(image, Tensor):
        raise TypeError(
            f"data must have items that are tensors or arrays, got {type(image).__name__}; "
            "give the data set a transform such as torchvision.transforms.ToTensor()"
        )
    return scaled(image, ids=ids)


def scaled(image: Tensor, *, ids: bool = False) -> Tensor:
    """An image, or several, as float32, with bytes as parts of 1; with ``ids`` whole numbers as int64."""
    if image.dtype.is_complex:
        raise TypeError(f"data must have items of real numbers, got {image.dtype}")
    if ids and not image.dtype.is_floating_point:
        return image.to(torch.int64)
    return image.float() / 255 if image.dtype == torch.uint8 else image.float()


def label_of(item: Any, name: str, position: int) -> int:
    """The label of the item of sample ``position``: its second element, or the value of a known key."""
    if isinstance(item, Mapping):
        return class_index(name, position, _value(item, LABEL_KEYS, "a label"))
    if not isinstance(item, tuple | list) or len(item) < 2:
        argument = "" if name == "data" else f"{name}: "
        raise TypeError(f"{argument}data must have items (image, label), got {type(item).__name__}")
    return class_index(name, position, item[1])


def _value(item: Mapping[Any, Any], keys: tuple[str, ...], what: str) -> Any:
    found = [key for key in keys if key in item]
    if len(found) != 1:
        has = ", ".join(map(str, item)) or "none"
        raise TypeError(
            f"data must have items that are tensors, tuples, or a dict with {what} under one of {', '.join(keys)}; "
            f"got a dict with the keys {has}"
        )
    return item[found[0]]


@dataclass
class Failure:
    """An error of a worker process, on its way to the process that reads."""

    error: Exception
    where: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """The error itself where it can be sent, else its text."""
        where = "".join(traceback.format_exception(error))
        try:
            sent = pickle.loads(pickle.dumps(error))
            same = type(sent) is type(error) and str(sent) == str(error)
        except Exception:
            same = False
        return cls(error if same else RuntimeError(f"{type(error).__name__}: {error}"), where)

    def throw(self) -> NoReturn:
        """Raise the error; what the worker was doing is its cause."""
        raise self.error from _InWorker(self.where)


class _InWorker(Exception):
    """The traceback of a worker process."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def collated(items: list[Any]) -> Any:
    """Images (N, ...) and labels (N,) of items, or the first failure among them.

    Raises:
        ValueError: the items have different shapes.
    """
    for item in items:
        if isinstance(item, Failure):
            return item
    images, labels = zip(*items, strict=True)
    shapes = {tuple(image.shape): None for image in images}
    if len(shapes) > 1:
        first, second, *_ = shapes
        raise ValueError(
            f"data must have items of one shape, got {first} and {second}; give it a transform that brings them to one"
        )
    return torch.stack(images), torch.tensor(labels, dtype=torch.int64)
