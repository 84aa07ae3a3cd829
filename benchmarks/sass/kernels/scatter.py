"""Scatter: csrc/cuda/scatter.cu."""

from benchmarks.sass.model import Case
from benchmarks.sass.paths import Walk

CASES = [
    Case(
        "scatter, 150 tensors of rank 2, float32",
        "scatter_elements<141>",
        bytes=32 * 8,
        values=32,
        walks=(
            Walk(
                {"LDG.E": 1, "STG.E": 1},
                1,
                inside=(Walk({}, 7), Walk({"MUFU.RCP": 2, "LDG.E.64": 1}, 1, nth=3)),
            ),
        ),
    ),
]
