"""What the operators cost in floating-point operations, by name: also registered with torch's counter.

A multiply-add is two, an exponential counts as an addition does, comparisons and moves count nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prunefuse.ops._k_center import k_center_flops
from prunefuse.ops._neighbors import nearest_neighbors_flops
from prunefuse.ops._operator import OPERATORS

__all__ = ["FORMULAS", "k_center_flops", "nearest_neighbors_flops"]

# Each takes its operator's arguments in order, with shapes for tensors: FORMULAS["score"]((1000, 10), [0], False, 1.0).
FORMULAS: Mapping[str, Callable[..., int]] = {name: operator.flops for name, operator in OPERATORS.items()}
