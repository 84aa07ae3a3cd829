"""Ensembles: csrc/cuda/ensembles.cu."""

from benchmarks.sass.model import Case
from benchmarks.sass.paths import Walk

SIZE = {"float": 4, "bfloat16_bits": 2}
SHORT = {"float": "float32", "bfloat16_bits": "bf16"}
LOAD = {"float": "LDG.E", "bfloat16_bits": "LDG.E.U16"}


def score(passes: int, classes: int, stored: str) -> Case:
    """A warp has a row; of each pass it takes the state, then the probabilities."""
    lanes = min(32, 1 << (classes // 2).bit_length() - 1)
    rows = 32 // lanes
    times = -(-classes // lanes)
    return Case(
        f"ensemble, {passes} x {classes:,}, {SHORT[stored]}",
        f"score_rows<{stored}>",
        bytes=rows * (passes * classes * SIZE[stored] + 4),
        values=rows * passes * classes,
        walks=(
            Walk({"STS": 2}, times),
            Walk(
                {},
                passes,
                inside=(
                    Walk({LOAD[stored]: 1, "MUFU.EX2": 1}, times),
                    Walk({"SHFL": 7}, lanes.bit_length() - 1),
                    Walk({LOAD[stored]: 1, "MUFU.EX2": 1, "STS": 1}, times, cached=True),
                ),
            ),
            Walk({"LDS": 2}, times),
            Walk({"SHFL": 4}, lanes.bit_length() - 1, nth=1),
        ),
        has={"STG.E": 1},
        shared=256 // lanes * classes * 8,
    )


def score_long(passes: int, classes: int, stored: str) -> Case:
    """A first walk over all passes for their states, a second one for the sums: the rows of all warps exceed L2."""
    return Case(
        f"ensemble, {passes} x {classes:,}, {SHORT[stored]}",
        f"score_long_rows<{stored}>",
        bytes=passes * classes * SIZE[stored] + 4,
        values=passes * classes,
        walks=(
            Walk({"SHFL": 35}, passes, inside=(Walk({LOAD[stored]: 1, "MUFU.EX2": 1}, -(-classes // 32)),)),
            Walk(
                {LOAD[stored]: 1},
                -(-classes // 32),
                nth=1,
                inside=(Walk({LOAD[stored]: 2, "LDG.E.64": 2, "MUFU.EX2": 2}, passes // 2),),
            ),
            Walk({"SHFL": 4}, 5),
        ),
        has={"STG.E": 1},
        moved=2,
    )


CASES = [
    score(10, 100, "float"),
    score(10, 100, "bfloat16_bits"),
    score_long(10, 1000, "float"),
    score_long(10, 1000, "bfloat16_bits"),
]
