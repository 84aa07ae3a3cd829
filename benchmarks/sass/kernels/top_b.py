"""The b best: csrc/cuda/top_b.cu. The one read of float32 values that sets some aside; all after it is a fixed time.

Left out: what a call takes on the host, as in a captured graph; and samples that mislead, which read all again.
"""

import math

from benchmarks.sass.model import MULTIPROCESSORS, Case, Note
from benchmarks.sass.paths import Walk

SAMPLE = 2048
WARPS, BLOCKS = 8, 4 * MULTIPROCESSORS
AT_ONCE = 8  # values of a thread
# Seconds, estimates: a block alone finds the threshold, with some 1,000 instructions in each of its 32 warps; three
# kernels count digits, one the best, one brings them together; a clearing and the last kernel; and CUB's sort of more
# than 4,864 pairs is a histogram, its sums, four passes, and five clearings.
FIXED = 7e-6 + 5 * 3e-6 + 2 * 2e-6 + 11 * 2e-6
SET_ASIDE, SORTED = 8, 16  # bytes of a key and its row, and of both, read and written


def share_set_aside(b: int, rows: int) -> float:
    """As csrc/math/order.h chooses the threshold."""
    mean = SAMPLE * b / rows
    return (math.floor(mean + 4 * math.sqrt(mean * (1 - b / rows)) + 4) + 1) / SAMPLE


def read_once(b: int, rows: int, whole: bool) -> Case:
    step = 32 * AT_ONCE
    iterations = math.ceil(rows / (BLOCKS * WARPS) / step)
    values = iterations * step
    aside = share_set_aside(b, rows)
    met = round(AT_ONCE * (1 - (1 - aside) ** 32))  # of a thread's values, those that some lane sets aside
    bytes_ = values * (4 + aside * SET_ASIDE)
    return Case(
        f"top b, {b:,} of {rows:,}, {'whole' if whole else 'the read'}",
        "set_aside<float>",
        bytes=bytes_,
        values=values,
        walks=(Walk({"LDG.E.CONSTANT": AT_ONCE, "STG.E": 2 * met}, iterations),),
        blocks=math.ceil(rows / values / WARPS),
        total=rows * bytes_ / values if whole else None,
        fixed=FIXED if whole else 0,
    )


def reads(b: int, rows: int) -> float:
    """Bytes that are moved in all, in those of the values."""
    # Of what is set aside the keys are read by four kernels more, the rows by one; the sort's histogram reads the keys.
    aside = share_set_aside(b, rows) * rows * (SET_ASIDE + 4 * 4 + SET_ASIDE)
    best = b * (SET_ASIDE + 4 + 4 * SORTED + SET_ASIDE + 4 + 12)
    return (rows * 4 + aside + best) / (rows * 4)


CASES: list[Case | Note] = [
    read_once(10_000, 1_000_000, whole=False),
    read_once(10_000, 1_000_000, whole=True),
    read_once(10_000, 100_000_000, whole=False),
    read_once(10_000, 100_000_000, whole=True),
    Note(
        "top b",
        f"in all, bytes are moved as by {reads(10_000, 1_000_000):.1f} reads of 1,000,000 values, of which 10,000 are wanted, "
        f"and by {reads(10_000, 100_000_000):.2f} of 100,000,000. Of 1,000,000 the time is that of small kernels.",
    ),
]
