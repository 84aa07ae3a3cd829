"""Any classification data set of torchvision by the name of its class, as far as its images are arrays or files."""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection
from typing import Any

import numpy as np

from prunefuse.data._arrays import data_of_arrays
from prunefuse.data._images import Reading, Sample, data_of_files, expanded
from prunefuse.data._labels import labels_at
from prunefuse.data._split import held_out
from prunefuse.data._types import Data
from prunefuse.ops.integers import class_index

# Arguments that we give.
_OURS = frozenset({"root", "train", "download", "transform", "target_transform", "transforms", "loader"})
_TEST_SPLITS = ("test", "val", "valid")


def torchvision_data(kind: str, root: str | os.PathLike[str], download: bool, reading: Reading) -> Data:
    """A data set of ``torchvision.datasets``, such as ``KMNIST``, ``DTD`` or ``EuroSAT``, read and checked by torchvision.

    Arguments of its own follow its name, as in ``EMNIST:split=balanced``, with commas between them.

    Images are read as those of a folder, or kept in memory where torchvision does. Where there is no test part, a part of
    each class is held out.

    Raises:
        ValueError: there is no such data set, or its images are neither arrays nor files with a label each.
        FileNotFoundError: the files are not in ``root``.
        ConnectionError: the download failed.
    """
    from torchvision import datasets

    name = f"torchvision:{kind}"
    kind, _, listed_options = kind.partition(":")
    maker: Any = getattr(datasets, kind, None)
    known = inspect.isclass(maker) and issubclass(maker, datasets.VisionDataset)
    if not known:
        raise ValueError(
            f"data must name a data set of torchvision.datasets, such as torchvision:KMNIST, got {name}"
        )
    takes = _takes(maker)
    given = _options(name, listed_options, takes)
    options: dict[str, Any] = given | ({"download": download} if "download" in takes else {})
    made: dict[str, Any] = {}
    try:
        if "train" in takes:
            made = {
                part: maker(os.fspath(expanded(root)), train=part == "train", **options)
                for part in ("train", "test")
            }
        elif "split" in takes and "split" not in given:
            made = {"train": maker(os.fspath(expanded(root)), split="train", **options)}
            made["test"] = _test_split(maker, os.fspath(expanded(root)), options)
        else:
            made = {"train": maker(os.fspath(expanded(root)), **options)}
    except RuntimeError as error:
        if download:
            raise ConnectionError(f"{name} could not be downloaded to {root}: {error}") from error
        said = " ".join(str(error).split())
        raise FileNotFoundError(
            f"{name} was not found (or is damaged) in {expanded(root).absolute()} (--root): {said}"
        ) from error
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} cannot be opened so: {' '.join(str(error).split())}; arguments of its own follow its name, as in "
            "torchvision:EMNIST:split=balanced"
        ) from error
    first = made["train"]
    if hasattr(first, "data") and not isinstance(first.data, list):
        parts = {part: (one.data, _labels(one)) for part, one in made.items()}
        return data_of_arrays(name, parts, reading, None, getattr(first, "classes", None) or ())
    listed = {part: _samples(name, one) for part, one in made.items()}
    classes = max(label for samples in listed.values() for _, label in samples) + 1
    names = getattr(first, "classes", None) or [str(index) for index in range(classes)]
    notes = []
    if "test" not in listed:
        kept, chosen = held_out([label for _, label in listed["train"]], reading.test_fraction, reading.seed)
        notes = [
            f"{len(chosen)} of {len(listed['train'])} images are the test part, {reading.test_fraction:g} of each class by "
            f"seed {reading.seed} (--test-fraction)"
        ]
        whole = listed["train"]
        listed = {"train": [whole[i] for i in kept], "test": [whole[i] for i in chosen]}
    return data_of_files(name, listed["train"], listed["test"], list(map(str, names)), reading, notes)


def _takes(maker: type[Any]) -> set[str]:
    """The arguments of a class, those that it passes on to its bases among them."""
    found: set[str] = set()
    for kind in maker.__mro__:
        if "__init__" in vars(kind):
            own = inspect.signature(vars(kind)["__init__"]).parameters.values()
            found |= {one.name for one in own if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)}
            if not any(one.kind == one.VAR_KEYWORD for one in own):
                break
    return found - {"self"}


def _options(name: str, text: str, takes: Collection[str]) -> dict[str, Any]:
    """Arguments of a data set that are written as ``name=value``, with commas."""
    options: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = (one.strip() for one in part.partition("="))
        known = sorted(set(takes) - _OURS)
        if not equals or key not in known:
            raise ValueError(
                f"data {name}: arguments must be {', '.join(known) or 'none'}, as NAME=VALUE, got {part!r}"
            )
        options[key] = int(value) if value.isdecimal() else {"True": True, "False": False}.get(value, value)
    return options


def _labels(data: Any) -> Any:
    """The labels of a data set in memory; a list of them as an array."""
    found = getattr(data, "targets", getattr(data, "labels", None))
    return np.asarray(found) if isinstance(found, list) else found


def _test_split(maker: Any, root: str, options: dict[str, Any]) -> Any:
    """The part with labels that is not trained on, by the name that it has."""
    for split in _TEST_SPLITS:
        try:
            return maker(root, split=split, **options)
        except ValueError:  # there is no such split
            continue
    raise ValueError(f"there is no split {', '.join(_TEST_SPLITS)}")


def _samples(name: str, data: Any) -> list[Sample]:
    """Path and label of each image, which torchvision's data sets keep in lists of several names."""
    pairs = next((vars(data)[key] for key in ("samples", "_samples") if vars(data).get(key)), None)
    if pairs is None:
        files = next((vars(data)[key] for key in ("_image_files", "_images") if vars(data).get(key)), None)
        labels = next((vars(data)[key] for key in ("_labels", "targets") if vars(data).get(key)), None)
        if files is None or labels is None or len(files) != len(labels):
            raise ValueError(f"{name}: its images must be arrays, or files with one label each")
        pairs = list(zip(files, labels, strict=True))
    found = [(os.fspath(path), class_index(name, i, label)) for i, (path, label) in enumerate(pairs)]
    step = max(1, len(found) // 8)
    looked_at = range(0, len(found), step)
    if labels_at(data, name, looked_at) != [found[i][1] for i in looked_at]:
        raise ValueError(f"{name}: its items must have the labels that it lists")
    return found
