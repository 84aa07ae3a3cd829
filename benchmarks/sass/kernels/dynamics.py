"""Training dynamics: csrc/cuda/dynamics.cu."""

from benchmarks.sass.model import Case
from benchmarks.sass.paths import Walk

SIZE = {"float": 4, "bfloat16_bits": 2}
SHORT = {"float": "float32", "bfloat16_bits": "bf16"}
LOAD = {"float": "LDG.E", "bfloat16_bits": "LDG.E.U16"}


def lanes_for(loads: int) -> int:
    lanes = 1
    while lanes < 32 and lanes * 4 <= loads:
        lanes *= 2
    return lanes


def dynamics(classes: int, stored: str) -> Case:
    width = 16 // SIZE[stored]
    lanes = lanes_for(-(-classes // width))
    rows, merges = 32 // lanes, lanes.bit_length() - 1
    return Case(
        f"dynamics, C = {classes:,}, {SHORT[stored]}",
        f"dynamics_rows<{stored}, true>",
        bytes=rows * (classes * SIZE[stored] + 8 + 6 * 4),
        values=rows * classes,
        walks=(
            Walk({"LDG.E.128": 1, "MUFU.EX2": width}, -(-classes // width // lanes)),
            Walk({"SHFL": 5}, merges),
            Walk({"SHFL": 1}, merges, nth=1),
        ),
        has={"STG.E": 6},
    )


def divergence(classes: int, stored: str, kept: str) -> Case:
    lanes = lanes_for(classes)
    rows, merges = 32 // lanes, lanes.bit_length() - 1
    return Case(
        f"divergence, C = {classes:,}, {SHORT[stored]}, kept {SHORT[kept]}",
        f"divergence_rows<{stored}, {kept}, float>",
        bytes=rows * (classes * (SIZE[stored] + 2 * SIZE[kept]) + 16),
        values=rows * classes,
        walks=(
            Walk({LOAD[stored]: 1, "MUFU.EX2": 1}, -(-classes // lanes)),
            Walk({"SHFL": 4}, merges),
            Walk({LOAD[stored]: 1, LOAD[kept]: 1, "MUFU.EX2": 1, "STG": 1}, -(-classes // lanes)),
            Walk({"SHFL": 2}, merges, nth=1),
        ),
        has={"STG.E": 1},
    )


CASES = [
    dynamics(100, "float"),
    dynamics(96, "bfloat16_bits"),
    dynamics(1000, "float"),
    dynamics(1000, "bfloat16_bits"),
    divergence(100, "float", "float"),
    divergence(1000, "float", "float"),
    divergence(1000, "bfloat16_bits", "bfloat16_bits"),
]
