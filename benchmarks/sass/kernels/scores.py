"""Scores: csrc/cuda/scores.cu."""

from benchmarks.sass.model import Case
from benchmarks.sass.paths import Walk

SIZE = {"float": 4, "bfloat16_bits": 2}
SHORT = {"float": "float32", "bfloat16_bits": "bf16"}


def lanes_for(loads: int) -> int:
    lanes = 1
    while lanes < 32 and lanes * 8 <= loads:
        lanes *= 2
    return lanes


def thread(classes: int, stored: str) -> Case:
    """A thread walks a row that a warp has brought to shared memory."""
    width = 16 // SIZE[stored]
    loads = -(-32 * classes // (32 * width))
    walks = (
        # The unrolled loop takes four, the other one what is left.
        Walk({"LDG.E.128": 4, "STS": 4 * width}, loads // 4) if loads >= 4 else None,
        Walk({"LDG.E.128": 1, "STS": width}, loads % 4) if loads % 4 else None,
        Walk({"LDS": 4, "MUFU.EX2": 4}, -(-classes // 4)),
    )
    return Case(
        f"scores, C = {classes}, {SHORT[stored]}",
        f"thread_per_row<{stored}, true>",
        bytes=32 * (classes * SIZE[stored] + 4),
        values=32 * classes,
        walks=tuple(walk for walk in walks if walk),
        has={"STG.E": 1},
        shared=256 * (classes | 1) * 4,
    )


def group(classes: int, stored: str, rises: bool = True) -> Case:
    """Lanes of a warp share a row; in short rows nearly every chunk raises some lane's maximum."""
    width = 16 // SIZE[stored]
    lanes = lanes_for(-(-classes // width))
    rows = 32 // lanes
    return Case(
        f"scores, C = {classes:,}, {SHORT[stored]}",
        f"group_per_row<{stored}, true>",
        bytes=rows * (classes * SIZE[stored] + 4),
        values=rows * classes,
        walks=(
            Walk({"LDG.E.128": 1, "MUFU.EX2": width + rises}, -(-classes // width // lanes)),
            Walk({"SHFL": 8}, lanes.bit_length() - 1),
        ),
        has={"STG.E": 1},
    )


def block(classes: int, stored: str, rows: int | None = None) -> Case:
    """A block of eight warps shares a row."""
    width = 16 // SIZE[stored]
    return Case(
        f"scores, {f'{rows} x ' if rows else 'C = '}{classes:,}, {SHORT[stored]}",
        f"block_per_row<{stored}, true>",
        bytes=(classes * SIZE[stored] + 4) / 8,
        values=classes / 8,
        walks=(Walk({"LDG.E.128": 1, "MUFU.EX2": width}, -(-classes // width // 256)),),
        has={"BAR": 2, "SHFL": 64, "STG.E": 1},
        blocks=rows,
    )


def odd(classes: int, stored: str) -> Case:
    """Rows that do not begin at 16 bytes: a value at a time."""
    name = "LDG.E" if stored == "float" else "LDG.E.U16"
    return Case(
        f"scores, C = {classes:,}, {SHORT[stored]}",
        f"block_per_row<{stored}, false>",
        bytes=(classes * SIZE[stored] + 4) / 8,
        values=classes / 8,
        walks=(Walk({name: 1, "MUFU.EX2": 1}, -(-classes // 256)),),
        has={"BAR": 2, "SHFL": 64, "STG.E": 1},
    )


CASES = [
    thread(10, "float"),
    thread(10, "bfloat16_bits"),
    thread(32, "float"),
    thread(32, "bfloat16_bits"),
    group(100, "float"),
    group(96, "bfloat16_bits"),
    group(1000, "float"),
    group(1000, "bfloat16_bits"),
    odd(50257, "float"),
    odd(50257, "bfloat16_bits"),
    block(128000, "float"),
    block(128000, "bfloat16_bits"),
    block(128000, "float", rows=33),
    block(128000, "bfloat16_bits", rows=33),
]
