"""Neighbors: csrc/cuda/neighbors.cu, a tile of float32 queries and references, whose products the filter reads from L2.

Left out: what is done once for each query or reference, that is preparing them, the exact distances at the end, and lists
that are cut, some five times for a query among 50,000 references, mostly in its first tile. What is spilled counts as
instructions that wait for nothing.
"""

from benchmarks.sass.model import Case, Note
from benchmarks.sass.paths import Walk

CACHE = 5.5e12  # bytes a second from L2
QUERIES, REFERENCES = 4096, 2048  # of a tile
RUN = 256  # products that a warp looks at before its list
# Assumed of cuBLAS: that it does 0.8 of the operations that the card can, with bfloat16 and with float32, and that it
# writes products to L2 meanwhile, as fast as they are read.
BFLOAT16, FLOAT32, ATTAINED = 989e12, 66.9e12, 0.8
GAPS = 2e-6  # seconds of a tile's two launches
WIDTHS = (512, 64)


def multiplied(width: int, rate: float) -> float:
    """Seconds of a tile's products."""
    products = QUERIES * REFERENCES
    return max(2 * products * width / (ATTAINED * rate), 4 * products / CACHE)


def tile(name: str, passes: bool, width: int | None = None) -> Case:
    """A warp has one query. `passes`: whether one product of each run joins the list."""
    run = {"LDG.E.128.CONSTANT": 2, "LDS.128": 2, "VOTE": 1, "STG.E": 2 if passes else 0}
    return Case(
        f"neighbors, {name}",
        "filter<float>",
        bytes=REFERENCES * 4,
        values=REFERENCES,
        walks=(
            Walk({"LDG.E": 1, "STS": 1}, REFERENCES // 256, cached=True),  # norms, for the block
            Walk({"LDG.E.64": 3}, 1, inside=(Walk(run, REFERENCES // RUN, cached=True),)),
        ),
        shared=REFERENCES * 4,
        blocks=QUERIES // 8,
        total=None if width is None else QUERIES * REFERENCES * 4,
        # Float32 is multiplied as three products of bfloat16.
        fixed=0 if width is None else multiplied(3 * width, BFLOAT16) + GAPS,
        copy=CACHE,
    )


CASES: list[Case | Note] = [
    tile("the filter, nothing passes", passes=False),
    tile("the filter, one passes in each run", passes=True),
    *(tile(f"d = {width}, with the product", passes=True, width=width) for width in WIDTHS),
    Note(
        "neighbors",
        f"of a tile of {QUERIES:,} x {REFERENCES:,}, with the product as cuBLAS is assumed to make it. The float32 product "
        "alone would take "
        + " and ".join(f"{1e6 * multiplied(width, FLOAT32):.1f} us at d = {width}" for width in WIDTHS)
        + ".",
    ),
]
