"""k-center: csrc/cuda/k_center.cu, a launch for every pick."""

from benchmarks.sass.model import Case
from benchmarks.sass.paths import Walk

CACHE = 5.5e12  # bytes a second from L2
# Seconds of a launch that stream no features: the gap, what blocks left before, the center, the end.
FIXED = 4e-6


def pick(rows: int, width: int) -> Case:
    """Four lanes have two rows at once; the features of 20 MB and less stay in L2."""
    total = rows * (width * 4 + 4)
    small = total < 20e6
    return Case(
        f"k-center, a pick, {rows:,} x {width}{' in L2' if small else ''}",
        "pick_farthest<float, 4>",
        bytes=16 * (width * 4 + 4),
        values=16 * width,
        # Two pieces of 16 in an iteration of the unrolled loop, each 2 loads of rows and 1 of the center.
        walks=(Walk({"LDG.E.128.CONSTANT": 6}, width // 32, cached=small),),
        has={"LDG.E": 2, "SHFL": 16, "STG.E": 1},
        total=total,
        fixed=FIXED,
        copy=CACHE if small else None,
    )


CASES = [pick(50_000, 64), pick(50_000, 512), pick(1_000_000, 512)]
