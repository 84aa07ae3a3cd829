"""Training dynamics: csrc/cuda/dynamics.cu."""

from benchmarks.sass.model import SHARE, SHORT, SIZE, Case, lanes_of_share
from benchmarks.sass.paths import Walk


def dynamics(classes: int, stored: str) -> Case:
    """A row in the registers of its lanes, which meet twice."""
    width = 16 // SIZE[stored]
    while classes % width:
        width //= 2
    lanes = lanes_of_share(classes // width, SHARE // width)
    rows, stages = 32 // lanes, lanes.bit_length() - 1
    pieces = -(-classes // width // lanes)
    met = [Walk({"SHFL": count}, stages, nth=nth) for count, nth in ((1, 0), (2, 0))] if lanes < 32 else []
    has = {"LDG": SHARE // width + 2, "MUFU.EX2": pieces * width + 2, "FFMA": 2 * pieces * width, "STG": 6}
    if lanes == 32:
        has["SHFL"] = 15
    return Case(
        f"dynamics, C = {classes:,}, {SHORT[stored]}",
        f"dynamics_of_shares<{stored}, {width}, false>",
        bytes=rows * (classes * SIZE[stored] + 8 + 6 * 4),
        values=rows * classes,
        walks=tuple(met),
        has=has,
    )


def divergence(classes: int, stored: str, kept: str) -> Case:
    """A row and its kept logarithms in the registers of its lanes."""
    width = 16 // SIZE[stored]
    lanes = lanes_of_share(classes // width, SHARE // width)
    rows, stages = 32 // lanes, lanes.bit_length() - 1
    pieces = -(-classes // width // lanes)
    meetings = ((1, 0), (2, 0), (2, 1)) if lanes < 32 else ((2, 1),)
    met = [Walk({"SHFL": count}, stages, nth=nth) for count, nth in meetings]
    has = {"LDG.E.128": SHARE // width, "MUFU.EX2": pieces * width + 1, "STG": pieces}
    if lanes == 32:
        has["SHFL"] = 15
    return Case(
        f"divergence, C = {classes:,}, {SHORT[stored]}, kept {SHORT[kept]}",
        f"divergence_of_shares<{stored}, {kept}, {width}>",
        bytes=rows * (classes * (SIZE[stored] + 2 * SIZE[kept]) + 16),
        values=rows * classes,
        walks=tuple(met),
        has=has,
    )


CASES = [
    dynamics(100, "float"),
    dynamics(100, "bfloat16_bits"),
    dynamics(1000, "float"),
    dynamics(1000, "bfloat16_bits"),
    divergence(100, "float", "float"),
    divergence(1000, "float", "float"),
    divergence(1000, "bfloat16_bits", "bfloat16_bits"),
]
