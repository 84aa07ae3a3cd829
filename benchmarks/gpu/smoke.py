"""Every operator in every form against float64, then one capture of a CUDA graph each."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.calls import ROOT, calls, changed, operator_of, table
from prunefuse.ops import loader, reference


def wide(x: torch.Tensor) -> torch.Tensor:
    return (x.double() if x.is_floating_point() else x).cpu().clone()


def expected(name: str, arguments: tuple) -> list[torch.Tensor]:
    """What the operator gives back and writes, by its definition in plain torch, in float64 on the CPU."""
    return table.outcome(name, changed(arguments, wide), getattr(reference, name))


def difference(name: str, arguments: tuple, run) -> str:
    """The first thing that is not as it should be; empty if all is."""
    if name == "absorb_":  # its definition is for logits without +inf
        arguments = changed(arguments, lambda x: x.nan_to_num(0, 9, -9) if x.shape[0] != 6 else x)
    exact = all(one.dtype == torch.float64 for one in table.flat(arguments) if one.is_floating_point())
    right = expected(name, arguments)
    found = [one.cpu() for one in table.outcome(name, arguments, run)]
    for got, truth in zip(found, right, strict=True):
        tolerance = (1e-9 if exact else 3e-5) if got.is_floating_point() else 0
        try:
            torch.testing.assert_close(
                got.double(), truth.double(), rtol=tolerance, atol=tolerance, equal_nan=True
            )
        except AssertionError as error:
            return " ".join(str(error).split())
    return ""


def main() -> int:
    device = sys.argv[1]
    print(
        f"CUDA library: {loader.why_no_cuda or 'loaded'}; torch {torch.__version__}; {Path(loader.__file__).parent}"
    )
    operator, wrong, count = operator_of(device), [], 0
    for name, form, arguments in calls("cuda" if device == "cuda" else "cpu", small=device != "cuda"):
        count += 1
        if why := difference(name, arguments, operator(name)):
            wrong.append(f"WRONG {name}, {form}: {why}")
            print(wrong[-1])
    print(f"> {count - len(wrong)} of {count} calls of {len(table.OPS)} operators agree with float64")
    graphs = pytest.main(
        [
            str(ROOT / "tests/native/test_every_op.py"),
            "-q",
            "-m",
            "cuda",
            "-k",
            "graph",
            "-p",
            "no:cacheprovider",
        ]
    )
    return int(bool(wrong) or graphs != 0)


if __name__ == "__main__":
    sys.exit(main())
