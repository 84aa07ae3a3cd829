"""Calls of every operator, in the forms that choose another kernel: for the smoke test, and to run under compute-sanitizer.

The operators and their arguments are those of tests/native/test_every_op.py: a new one is covered without a change here.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests/native"))

import test_every_op as table  # noqa: E402

EMULATION = ROOT / "build/emulation/libprunefuse_emulated.so"
# Rows (never a multiple of a warp) and classes: a thread, a group of lanes and a block for each row; odd rows are not aligned.
SHAPES = ((301, 7), (301, 32), (45, 1001), (3, 40_001))
DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def calls(device: str, *, small: bool = False) -> Iterator[tuple[str, str, tuple]]:
    """Name of the operator, form of the call, arguments on the device (new in every call)."""
    for name in table.OPS:
        for form, change in (("aligned", lambda x: x), ("not aligned", not_aligned)):
            arguments = table.arguments_of(name, device)
            if small and name == "nearest_neighbors":  # the most work by far
                arguments = (arguments[0][:60], *arguments[1:])
            yield name, form, changed(arguments, change)
    for rows, classes in SHAPES[:2] if small else SHAPES:
        for dtype in DTYPES:
            form = f"{rows} x {classes} {str(dtype).removeprefix('torch.')}"
            for name, arguments in of_rows(rows, classes, dtype):
                yield name, form, tuple(table.moved(one, device) for one in arguments)


def of_rows(rows: int, classes: int, dtype: torch.dtype) -> Iterator[tuple[str, tuple]]:
    """The operators whose kernels depend on the number of classes and on the dtype."""
    x = table.logits(rows, classes).to(dtype)
    exact = torch.promote_types(dtype, torch.float32)
    state, totals, votes, entropies = table.state(rows).to(exact), *table.sums(rows, classes)
    yield "score", (x, [0, 1, 2, 3, 4], False, 0.7)
    yield "score", (x, [2], False, 1.0)
    yield "statistics", (x, False, 1.0)
    yield "absorb_", (state, x, 1.0)
    yield "dynamics", (x, table.labels(rows, classes))
    yield "score_ensemble", (table.logits(3, rows, classes).to(dtype), [0, 1, 2, 3], False, 1.0)
    yield "ensemble_add_", (totals.to(exact), votes, entropies.to(exact), x, False, 1.0)
    yield "divergence_", (table.kept(rows, classes), x, table.samples(rows, rows), 1e-8)


def not_aligned(x: torch.Tensor) -> torch.Tensor:
    """The same values, of which the first lies one element past an aligned address."""
    return torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape)


def changed(arguments: tuple, change: Callable[[torch.Tensor], torch.Tensor]) -> tuple:
    """The arguments with their tensors changed."""
    if isinstance(arguments, torch.Tensor):
        return change(arguments)
    if isinstance(arguments, (list, tuple)):
        return type(arguments)(changed(one, change) for one in arguments)
    return arguments


def operator_of(device: str) -> Callable[[str], Callable]:
    """The operators by name: on ``cuda``, on ``cpu``, or on ``emulation``, the CUDA kernels on CPU tensors."""
    if device != "emulation":
        return lambda name: getattr(torch.ops.prunefuse, name)
    torch.ops.load_library(EMULATION)
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    return lambda name: functools.partial(getattr(torch.ops.prunefuse_emulated, name).default.redispatch, key)


def main() -> None:
    """Every call once."""
    device = sys.argv[1]
    operator, count = operator_of(device), 0
    for name, _, arguments in calls("cuda" if device == "cuda" else "cpu", small=True):
        operator(name)(*arguments)
        count += 1
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"{count} calls of {len(table.OPS)} operators")


if __name__ == "__main__":
    main()
