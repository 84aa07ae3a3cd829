"""Scatter: csrc/cuda/scatter.cu.

Of an element the first rows count what is read and written, as if kept channels were neighbors. The networks are those of
torchvision at a ratio of 0.5, as prunefuse/bench/cases.py cuts them, and their rows count what memory moves. Few sectors of
32 bytes are kept whole, and all others are read to be written: two fifths of what is moved are wanted. Counted there, for
float32: 99 of 100 words of ViT-L have two axes; of ResNet-50 51 have two, 48 three. For 16 bits every sector of a kept row
was taken to be written.
"""

import math

from benchmarks.sass.model import Case
from benchmarks.sass.paths import Walk

BLOCKS = 132 * 5
TILE = 2048  # words
AT_ONCE = 4  # words of a thread
KERNEL = "scatter_tiles<false, 32764ul>"
# Which of the loops that load and store as much: the code has them by size, 2, 1, 8, 16 and 4 bytes, and of each size
# those of three axes, two and one. Loops for any number of axes hold fewer loads.
NTH = {(4, 1): 10, (4, 2): 5, (4, 3): 0, (2, 1): 2, (2, 2): 1, (2, 3): 0}
# Seconds of a launch that move nothing: the gap before it, up to nine steps through parameters that are in no cache
# yet, to the block's first tensor, and the last blocks.
FIXED = 4e-6


def words(size: int, rank: int, iterations: int) -> Walk:
    """Those of a tensor, by a warp: each is loaded with the low half of an index for each axis, and stored."""
    kind = {2: ".U16", 4: ""}[size]
    of_axes = AT_ONCE * (rank + (size == 4))
    has = {f"STG.E{kind}": AT_ONCE, f"LDG.E{kind}.CONSTANT": AT_ONCE, "LDG.E.CONSTANT": of_axes}
    return Walk(has, iterations, nth=NTH[size, rank])


def axes(rank: int, size: int) -> Case:
    """Tensors of one tile, so that what leads to a tensor weighs most. Indices count as loads from memory, though most
    of them are in a cache."""
    iterations = TILE // (AT_ONCE * 256)
    each = 32 * AT_ONCE * iterations
    return Case(
        f"scatter, {8 * size} bits, {rank} {'axis' if rank == 1 else 'axes'}, a tensor to a tile",
        KERNEL,
        bytes=each * 2 * size,
        values=each,
        walks=(words(size, rank, iterations),),
    )


def network(
    name: str, elements: int, tensors: int, tiles: int, rank: int, sectors: float, size: int = 4
) -> Case:
    """All tensors in a launch, as if all had so many axes. `sectors`: their bytes, read and written, to an element."""
    pieces = BLOCKS + tensors  # of a block and a tensor
    # The blocks with the most tiles are waited for.
    longest = math.ceil(tiles / BLOCKS) / (tiles / BLOCKS)
    each = elements / pieces / 8
    moved = size + sectors
    return Case(
        f"scatter, {name}, {8 * size} bits, with sectors",
        KERNEL,
        bytes=each * moved,
        values=each,
        walks=(words(size, rank, math.ceil(longest * each / (32 * AT_ONCE))),),
        total=elements * moved,
        fixed=FIXED,
    )


CASES = [
    axes(1, 4),
    axes(2, 4),
    axes(3, 4),
    axes(1, 2),
    axes(2, 2),
    axes(3, 2),
    network("ViT-L", 76_158_474, 296, 37_306, 2, 14.9),
    network("ViT-L", 76_158_474, 296, 37_306, 2, 8, size=2),
    network("ResNet-50", 5_929_503, 320, 3_138, 3, 12.4),
]
