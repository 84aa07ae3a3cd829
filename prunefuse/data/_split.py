"""Holding out a part of each class, or of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from prunefuse._seeds import generator


def test_part(
    targets: Sequence[Any], fraction: float, seed: int, noun: str
) -> tuple[list[int], list[int], str]:
    """Positions that stay, those that are held out, and a note: of each class a part, or of all where there are no classes."""
    single = all(isinstance(target, int) for target in targets)
    kept, chosen = held_out([target if single else 0 for target in targets], fraction, seed)
    told = f"{len(chosen)} of {len(targets)} {noun} are the test part, {fraction:g} of {'each class' if single else 'all'}"
    return kept, chosen, f"{told} by seed {seed} (--test-fraction)"


def held_out(labels: Sequence[int], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Positions that stay, and those that are held out, in order: of each class a part by the seed, one at least of two."""
    by_class: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        by_class.setdefault(label, []).append(position)
    chosen: set[int] = set()
    for label, positions in by_class.items():
        count = min(len(positions) - 1, max(1, round(len(positions) * fraction)))
        order = torch.randperm(len(positions), generator=generator(seed, "test part", label))
        chosen.update(positions[i] for i in order[:count].tolist())
    return [i for i in range(len(labels)) if i not in chosen], sorted(chosen)
