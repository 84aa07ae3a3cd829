"""Ensembles: csrc/cuda/ensembles.cu."""

from benchmarks.sass.model import SHARE, SHORT, SIZE, Case, lanes_of_share
from benchmarks.sass.paths import Walk


def score(passes: int, classes: int, stored: str) -> Case:
    """A row in the registers of its lanes, a pass at a time; each has the lanes meet twice, and its row's end four times."""
    width = 16 // SIZE[stored]
    while classes % width:
        width //= 2
    lanes = lanes_of_share(classes // width, SHARE // width)
    block = lanes > 32
    rows = 1 / 8 if block else 32 // lanes
    pieces = -(-classes // width // lanes)  # that some lane has
    stages = min(lanes, 32).bit_length() - 1
    met = [Walk({"SHFL": count}, stages, nth=nth) for count, nth in ((1, 0), (4, 0))] if lanes < 32 else []
    met_at_end = (
        [Walk({"SHFL": count}, stages, nth=nth) for count, nth in ((1, 2), (3, 1), (2, 2))]
        if lanes < 32
        else []
    )
    has = {"LDG": SHARE // width, "MUFU.EX2": pieces * width + 2, "FFMA": 3 * pieces * width}
    if lanes >= 32:
        has["SHFL"] = 25
    return Case(
        f"ensemble, {passes} x {classes:,}, {SHORT[stored]}",
        f"score_rows<{stored}, {width}, {'true' if block else 'false'}>",
        bytes=rows * (passes * classes * SIZE[stored] + 4),
        values=rows * passes * classes,
        walks=(Walk(has, passes, inside=tuple(met)), *met_at_end),
        has={"STG": 1, "MUFU.LG2": pieces * width},
    )


CASES = [
    score(10, 100, "float"),
    score(10, 100, "bfloat16_bits"),
    score(10, 1000, "float"),
    score(10, 1000, "bfloat16_bits"),
    score(10, 8192, "float"),
    score(10, 8192, "bfloat16_bits"),
]
