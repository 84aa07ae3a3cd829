"""One seed, many independent streams; and a scope that leaves the user's own generators alone."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A seed in [0, 2^63) for one purpose, such as ``derive(seed, "initial pool")``.

    A hash, so that streams of different purposes do not overlap and do not move when a purpose is added; the
    same on every platform and in every version of this package.
    """
    text = "\x1f".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A fresh CPU generator for one purpose."""
    return torch.Generator().manual_seed(derive(seed, *purpose))


@contextmanager
def isolated(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Inside, torch's, NumPy's and Python's global generators start from ``seed``; after, they are as before.

    Whatever draws from global state (weight initialization, dropout, a user's transforms) is repeatable in
    such a scope. Of CUDA's generators only that of ``device`` is touched.
    """
    cuda = [device] if device is not None and device.type == "cuda" else []
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            with torch.cuda.device(index):
                torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
