"""Neighbors: csrc/cuda/neighbors.cu, beside a matrix product that is not ours."""

from benchmarks.sass.model import Case, Note

CASES: list[Case | Note] = [
    Note("neighbors", "the product is cuBLAS's; the filter reads each of its products once."),
]
