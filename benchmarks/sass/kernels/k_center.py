"""k-center: csrc/cuda/k_center.cu. A pick of float32 rows, without weights; labeled rows are left out."""

import math

from benchmarks.sass.model import CLOCK, MULTIPROCESSORS, Case
from benchmarks.sass.paths import Walk

SHARED_COPY = 128 * MULTIPROCESSORS * CLOCK  # bytes a second from shared memory
WARPS, AT_ONCE, SHARING = 8, 6, 4  # of a block; rows that a lane has at once; lanes that share them
# Seconds of a pick that go through no rows: from the slowest block's farthest to all that hear of it, twice through L2,
# what the first warp alone does of that, and shuffles and barriers, for which all wait. An estimate.
HEARD = 2e-6
# Seconds of a launch that stream no features: the gap, what blocks left before, the center, the end.
FIXED = 4e-6


def resident(rows: int, width: int) -> Case:
    """All rows are in shared memory, whose bytes these are, and one launch makes all picks."""
    most = math.ceil(rows / MULTIPROCESSORS)
    filled = math.ceil(width / 16) * 16
    wide = filled + (16 if filled // 16 % 2 == 0 else 0)
    of_warp = rows / MULTIPROCESSORS / WARPS
    row = width * 4 + 8  # and its distance, read and written
    return Case(
        f"k-center, a pick, {rows:,} x {width}, resident",
        "pick_resident<float>",
        bytes=of_warp * row,
        values=of_warp * width,
        walks=(
            Walk({"LDG.E": 1, "STS": 1}, 1, nth=3, cached=True),  # the center, from L2
            Walk(
                {"SHFL": 2 * AT_ONCE * 4, "STS": 2, "LDS": 2},
                math.ceil(most / (WARPS * 32 // SHARING * AT_ONCE)),
                inside=(Walk({"LDS.128": 2 * (AT_ONCE + 1)}, filled // 32),),
            ),
        ),
        has={"SHFL": 15, "BAR": 4},
        shared=((most + 1) * wide + most) * 4,
        blocks=MULTIPROCESSORS,
        total=rows * row,
        fixed=HEARD,
        copy=SHARED_COPY,
    )


def pick(rows: int, width: int) -> Case:
    """A launch. Four lanes have two rows at once."""
    return Case(
        f"k-center, a pick, {rows:,} x {width}",
        "pick_farthest<float, 4>",
        bytes=16 * (width * 4 + 4),
        values=16 * width,
        # Two pieces of 16 in an iteration of the unrolled loop, each 2 loads of rows and 1 of the center.
        walks=(Walk({"LDG.E.128.CONSTANT": 6}, width // 32),),
        has={"LDG.E": 2, "SHFL": 16, "STG.E": 1},
        total=rows * (width * 4 + 4),
        fixed=FIXED,
    )


CASES = [resident(50_000, 64), pick(50_000, 512), pick(1_000_000, 512)]
