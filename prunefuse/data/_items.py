"""Items of a map-style data set: what of them a model reads and what the label is, and how they become a batch."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from prunefuse.ops.arrays import as_tensor
from prunefuse.ops.integers import class_index, class_indices

# Keys of items that are mappings, as Hugging Face data sets have them.
IMAGE_KEYS = ("image", "img", "pixel_values", "input_ids")
LABEL_KEYS = ("label", "labels", "ner_tags", "target")


class Targets(Protocol):
    """What the labels of a data set are; a `prunefuse.tasks.Task` is one."""

    def label(self, argument: str, sample: int, value: Any) -> Any:
        """The label of a sample in its one form; TypeError or ValueError, naming argument and sample, for what is none."""

    def stored(self, argument: str, labels: Tensor, samples: Tensor) -> Tensor:
        """Labels of samples that lie in one tensor, likewise."""

    def targets(self, labels: Sequence[Any]) -> Any:
        """Labels in that form, as a batch."""


class _Classes:
    """One class index for each sample."""

    def label(self, argument: str, sample: int, value: Any) -> Any:
        return class_index(argument, sample, value)

    def stored(self, argument: str, labels: Tensor, samples: Tensor) -> Tensor:
        if labels.ndim > 1 and len(labels):
            class_index(argument, int(samples[0]), labels[0])  # which is none, such as a one-hot row
        return class_indices(argument, labels, samples)

    def targets(self, labels: Sequence[Any]) -> Any:
        return torch.tensor(labels, dtype=torch.int64)


CLASSES: Targets = _Classes()


@dataclass(frozen=True)
class Reading:
    """How items become what a model is given.

    Attributes:
        ids: Whole numbers, such as those of words, stay so where the input is one tensor.
        names: What the model's ``forward`` calls its arguments: of an item that is a mapping it is given these.
        more: It takes any other names, too.
        collate: A function of its user from a list of items to a batch. That is a mapping with labels under a known key, a
            pair of inputs and labels, or inputs alone.
        targets: What labels are.
    """

    ids: bool = False
    names: frozenset[str] = frozenset()
    more: bool = False
    collate: Callable[[list[Any]], Any] | None = None
    targets: Targets = CLASSES


PLAIN = Reading()


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


def inputs_of(item: Any, reading: Reading) -> Any:
    """What of an item a model is given: one tensor, or tensors in a dict or tuple, as the item has them.

    One tensor is an image or a row of numbers, see `scaled`. Several stay in their types.
    """
    given = item
    if isinstance(item, Mapping):
        given = _fields(item, reading)
    elif isinstance(item, tuple | list) and item and not _is_numbers(item):
        given = item[0]
    if isinstance(given, Mapping | tuple | list) and given:
        return (
            _as_tensors(given)
            if not _is_numbers(given)
            else image_of((torch.tensor(given),), ids=reading.ids)
        )
    return image_of(given if isinstance(given, Tensor | np.ndarray) else (given,), ids=reading.ids)


def _fields(item: Mapping[Any, Any], reading: Reading) -> Any:
    """The fields of an item that the model takes by name; where it names none of them, the image."""
    named = {name: value for name, value in item.items() if name in reading.names and name not in LABEL_KEYS}
    if not named and reading.more:
        named = {n: v for n, v in item.items() if n not in LABEL_KEYS and not isinstance(v, str | bytes)}
    if len(named) == 1 and (only := next(iter(named))) in IMAGE_KEYS:
        return named[only]
    return named or _value(item, IMAGE_KEYS, "an image")


def has_several(item: Any) -> bool:
    """Whether an item is a mapping with more inputs than an image or one sequence."""
    if not isinstance(item, Mapping) or not {"image", "img"}.isdisjoint(item):
        return False
    return sum(name not in LABEL_KEYS for name in item) > 1


def _is_numbers(value: Any) -> bool:
    """Whether a list holds numbers, also in lists, so that it is one tensor."""
    if isinstance(value, tuple | list):
        return bool(value) and isinstance(value, list) and all(map(_is_numbers, value))
    return isinstance(value, int | float | np.generic) and not isinstance(value, bool)


def _as_tensors(value: Any) -> Any:
    """Tensors in the same dicts and tuples; of arrays, numbers and lists of numbers."""
    if isinstance(value, Mapping):
        return {name: _as_tensors(one) for name, one in value.items()}
    if isinstance(value, list) and not value:
        return torch.zeros(0, dtype=torch.int64)  # a sequence without words
    if isinstance(value, tuple | list) and not _is_numbers(value):
        return tuple(map(_as_tensors, value))
    if isinstance(value, np.ndarray) or (isinstance(value, Tensor) and value.layout != torch.strided):
        return as_tensor("an item of data", value)
    if isinstance(value, Tensor):
        return value
    if isinstance(value, bool | int | float | np.generic | list):
        return torch.tensor(value)
    raise TypeError(
        f"data must have items that are tensors, arrays or numbers, also in a dict or tuple, got {type(value).__name__}"
    )


def mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """What a function makes of every tensor, in the same dicts, tuples and lists; anything else stays as it is."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {name: mapped(function, one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(mapped(function, one) for one in value)
    return value


def length_of(inputs: Any) -> int:
    """How many samples a batch has: the length of the first tensor in it."""
    if isinstance(inputs, Tensor):
        return len(inputs) if inputs.ndim else 1
    parts = inputs.values() if isinstance(inputs, Mapping) else inputs
    return next((length_of(one) for one in parts if isinstance(one, Tensor | Mapping | tuple | list)), 0)


def label_of(item: Any, name: str, position: int, targets: Targets = CLASSES) -> Any:
    """The label of the item of sample ``position``: its second element, or the value of a known key."""
    if isinstance(item, Mapping):
        return targets.label(name, position, _value(item, LABEL_KEYS, "a label"))
    if not isinstance(item, tuple | list) or len(item) < 2:
        argument = "" if name == "data" else f"{name}: "
        raise TypeError(f"{argument}data must have items (image, label), got {type(item).__name__}")
    return targets.label(name, position, item[1])


def with_label(item: Any, label: Any) -> Any:
    """An item with another label, in the place where it has one."""
    if isinstance(item, Mapping):
        key = next((key for key in LABEL_KEYS if key in item), "labels")
        return {**item, key: label}
    return (item[0] if isinstance(item, tuple | list) and item else item, label)


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


def collated(items: list[Any], reading: Reading = PLAIN, *, labels: bool = True) -> Any:
    """Inputs (N, ...) and labels of pairs of them, None where they are not asked for; or the first failure among the items.

    Sequences of numbers that come with an ``attention_mask`` are padded with zeros, which the mask says; so are those of a
    model that reads words and nothing else.

    Raises:
        ValueError: the items have different shapes.
    """
    for item in items:
        if isinstance(item, Failure):
            return item
    if reading.collate is not None:
        return _split(reading.collate(items), reading, labels)
    inputs, answers = zip(*items, strict=True)
    return _stacked(list(inputs), padded=reading.ids), reading.targets.targets(answers) if labels else None


def _stacked(inputs: list[Any], padded: bool = False) -> Any:
    first = inputs[0]
    if isinstance(first, Mapping):
        masked = "attention_mask" in first
        return {name: _stacked([one[name] for one in inputs], masked) for name in first}
    if isinstance(first, tuple):
        return tuple(_stacked(list(parts)) for parts in zip(*inputs, strict=True))
    shapes = {tuple(one.shape): None for one in inputs}
    if len(shapes) > 1 and padded and all(len(shape) == 1 for shape in shapes):
        return torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True)
    if len(shapes) > 1:
        one, other, *_ = shapes
        raise ValueError(
            f"data must have items of one shape, got {one} and {other}; give it a transform that brings them to one, or "
            "collate"
        )
    return torch.stack(inputs)


def _split(batch: Any, reading: Reading, labels: bool) -> Any:
    """Inputs and labels of a batch that a user's function made."""
    inputs, answers = batch, None
    if isinstance(batch, Mapping):
        keys = [key for key in LABEL_KEYS if key in batch]
        answers = batch[keys[0]] if keys else None
        inputs = {name: value for name, value in batch.items() if name not in keys}
        wanted = {name: value for name, value in inputs.items() if name in reading.names}
        if wanted and not reading.more:
            inputs = wanted
        if not wanted and len(inputs) == 1:
            inputs = next(iter(inputs.values()))
    elif isinstance(batch, tuple | list) and len(batch) == 2:
        inputs, answers = batch
    if labels and answers is None:
        raise TypeError(f"collate must give labels, too, got a {type(batch).__name__} without")
    return inputs, answers if labels else None
