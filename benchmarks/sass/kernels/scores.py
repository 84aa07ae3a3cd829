"""Scores: csrc/cuda/scores.cu."""

import math

from benchmarks.sass.model import SHORT, SIZE, Case
from benchmarks.sass.paths import Walk

TILE_CHUNKS = 4  # a lane's
BLOCKS = 132 * 3  # of long rows
MERGE = 1e-6  # seconds of the launch that merges the parts of rows


def name(classes: int, stored: str, rows: int | None = None) -> str:
    return f"scores, {f'{rows} x ' if rows else 'C = '}{classes:,}, {SHORT[stored]}"


def thread(classes: int, stored: str, slots: tuple[int, int]) -> Case:
    """A thread walks a row that a warp has brought to shared memory."""
    row = classes * SIZE[stored]
    depth = max(1, 3072 // (32 * row))
    copies = 32 * depth * row // 512
    return Case(
        name(classes, stored),
        f"thread_per_row<{stored}, false, {slots[0]}, {slots[1]}>",
        bytes=32 * depth * (row + 4),
        values=32 * depth * classes,
        walks=(
            # The unrolled loop copies four chunks a lane, then up to three more are copied.
            *([Walk({"LDGSTS": 4}, copies // 4)] if copies >= 4 else []),
            Walk({"MUFU.EX2": slots[1] + 1, "STG.E": 1}, depth),
        ),
        has={"LDGSTS": copies % 4},
        shared=2 * 8 * 32 * depth * row,
        staged=8 * 32 * depth * row,
    )


def registers(classes: int, stored: str, lanes: int, count: int) -> Case:
    """Lanes of a warp hold a row, or some rows, in registers, 32 rows to a round."""
    width, rows = 16 // SIZE[stored], 32 // lanes
    # The maxima of the warp's rows are in so many different chunks, mostly, and taken out there.
    hits = round(count * (1 - (1 - 1 / count) ** rows))
    return Case(
        name(classes, stored),
        f"register_rows<{stored}, false, {lanes}, {count}>",
        bytes=32 * (classes * SIZE[stored] + 4),
        values=32 * classes,
        walks=(
            Walk(
                {"STG.E": 1},
                1,
                inside=(Walk({"LDG.E.128": count, "MUFU.EX2": width * count, "POPC": hits}, lanes),),
            ),
        ),
    )


def long(classes: int, stored: str, rows: int | None = None) -> Case:
    """A block's eight warps share a row, or, of few rows, a part of one."""
    width = 16 // SIZE[stored]
    share = classes if rows is None else classes * rows / BLOCKS
    tiles = share / width / (32 * TILE_CHUNKS) / 8
    return Case(
        name(classes, stored, rows),
        f"block_per_row<{stored}, false>",
        bytes=share * SIZE[stored] / 8,
        values=share / 8,
        walks=(
            Walk(
                {"BAR": 1, "SHFL": 20},
                1,
                inside=(Walk({"LDG.E.128": TILE_CHUNKS, "MUFU.EX2": width * TILE_CHUNKS}, math.ceil(tiles)),),
            ),
        ),
        blocks=None if rows is None else BLOCKS,
        total=None if rows is None else rows * classes * SIZE[stored],
        fixed=0 if rows is None else MERGE,
    )


CASES = [
    thread(10, "float", (9, 10)),
    thread(10, "bfloat16_bits", (9, 10)),
    registers(32, "float", 4, 2),
    registers(32, "bfloat16_bits", 2, 2),
    registers(100, "float", 4, 8),
    registers(100, "bfloat16_bits", 4, 4),
    registers(1000, "float", 32, 8),
    registers(1000, "bfloat16_bits", 16, 8),
    long(50257, "float"),
    long(50257, "bfloat16_bits"),
    long(128000, "float"),
    long(128000, "bfloat16_bits"),
    long(128000, "float", rows=33),
    long(128000, "bfloat16_bits", rows=33),
]
