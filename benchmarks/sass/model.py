"""What a common path allows: instructions, bytes under way, and the bandwidth of an H100 and an H200."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.sass.paths import Part, Walk

MULTIPROCESSORS = 132
CLOCK = 1.98e9
LANES_PER_SECOND = MULTIPROCESSORS * 128 * CLOCK  # 33.4e12
ISSUED = 0.8  # of it, in kernels that are tuned well
COPY = {"H100": 3.0e12, "H200": 4.3e12}  # bytes read and written
LATENCY = 0.7e-6  # of a load from memory
CACHED = 0.15e-6  # of one from L1 or L2
CYCLES = 2  # that a warp alone takes for an instruction
REGISTERS, SHARED, WARPS, BLOCKS = 65536, 227 * 1024, 64, 32  # of a multiprocessor
BLOCK_SHARED = 1024  # that every block takes for itself
SIZE = {"float": 4, "bfloat16_bits": 2}  # bytes of a stored value
SHORT = {"float": "float32", "bfloat16_bits": "bf16"}
SHARE = 32  # values of a row that a lane holds in registers, in ensembles and dynamics


def lanes_of_share(pieces: int, of_lane: int) -> int:
    """Lanes of a warp that share a row of so many pieces; those of a block where a warp's are too few."""
    lanes = 1
    while lanes < 32 and lanes * of_lane < pieces:
        lanes *= 2
    return lanes if lanes * of_lane >= pieces else 256


@dataclass(frozen=True)
class Case:
    """One row of the table: the work that a warp of a kernel does in one iteration of its outermost loop.

    That loop is the one around `walks` (without any, one that meets `has`); where they are outermost themselves, it is
    the whole kernel. `bytes` are those of
    global memory that a warp must move in it, read and written; `values` are what it works on. `has` is what lies on the
    path outside the walks: shuffles of a merge, say. `shared` are bytes of dynamic shared memory of a block. `blocks`:
    as many as are launched, where they are few. `staged`: bytes that a block always has under way where copies go to
    shared memory by themselves, which the registers do not show; `has` or a walk should then name those copies.
    `total`: bytes of a whole call, and `fixed`: its seconds that no bandwidth shortens. `copy`: of data in L2, say.
    `moved`: bytes that memory moves for each that it must.
    """

    name: str
    kernel: str
    bytes: float
    values: float
    walks: tuple[Walk, ...]
    has: Mapping[str, int] = field(default_factory=dict)
    shared: int = 0
    blocks: int | None = None
    staged: int | None = None
    total: float | None = None
    fixed: float = 0
    copy: float | None = None
    moved: float = 1


@dataclass(frozen=True)
class Note:
    """A row of the table that says in words what cannot be counted in our kernels."""

    name: str
    text: str


@dataclass(frozen=True)
class Resources:
    registers: int
    stack: int
    shared: int  # static
    threads: int
    spilled: int  # instructions that store to or load from local memory


def blocks_resident(of: Resources, dynamic: int = 0) -> int:
    """On one multiprocessor of sm_90."""
    warps = -(-of.threads // 32)
    per_warp = -(-max(of.registers, 1) * 32 // 256) * 256
    room = of.shared + dynamic
    return min(
        BLOCKS,
        WARPS // warps,
        REGISTERS // per_warp // warps,
        SHARED // (BLOCK_SHARED + -(-room // 128) * 128),
    )


def seconds(unit: Part) -> tuple[float, int, int]:
    """Of a warp that is alone, for one of many units; and the most loads and bytes that a thread has under way."""
    time = began = 0.0
    ready: dict[int, float] = {}
    flying: list[tuple[float, int]] = []
    most = most_bytes = 0
    for _ in range(3):
        began = time
        for at, cached in unit.expanded():
            if ready:
                touched = at.touched & ready.keys()
                for register in touched:
                    time = max(time, ready.pop(register))
            if at.load_bytes:
                arrives = time + (CACHED if cached else LATENCY)
                ready.update(dict.fromkeys(at.written, arrives))
                if not cached:
                    flying = [(when, size) for when, size in flying if when > time] + [
                        (arrives, at.load_bytes)
                    ]
                    most = max(most, len(flying))
                    most_bytes = max(most_bytes, sum(size for _, size in flying))
            time += CYCLES / CLOCK
    return time - began, most, most_bytes


@dataclass(frozen=True)
class Bound:
    walked: float  # lane instructions in the walks, a value
    all: float  # and with row ends, merges and what leads there
    loads: int  # under way in a thread, at most
    load_bytes: int
    resident: int  # blocks on a multiprocessor
    in_flight: float  # bytes on a multiprocessor, on average
    by_issue: float  # bytes a second
    by_latency: float

    def speed(self, case: Case, gpu: str) -> float:
        """Bytes a second, without what is fixed."""
        return min((case.copy or COPY[gpu]) / case.moved, self.by_issue, self.by_latency)

    def call(self, case: Case, gpu: str) -> float | None:
        """Seconds of a whole call, where the case says what it moves."""
        return None if case.total is None else case.total / self.speed(case, gpu) + case.fixed

    def fraction(self, case: Case, gpu: str) -> float:
        whole = self.call(case, gpu)
        speed = self.speed(case, gpu) if whole is None or case.total is None else case.total / whole
        return speed / (case.copy or COPY[gpu])


def bound(case: Case, of: Resources, unit: Part) -> Bound:
    resident = blocks_resident(of, case.shared)
    time, loads, load_bytes = seconds(unit)
    warps = -(-of.threads // 32)
    room = resident * MULTIPROCESSORS
    blocks = room if case.blocks is None else case.blocks
    # The last of few rounds may not fill the card.
    rounds = max(1.0, -(-blocks // room) / (blocks / room)) if blocks > room else 1.0
    busy = min(blocks, room)
    by_issue = ISSUED * LANES_PER_SECOND * case.bytes / (32 * unit.instructions)
    by_issue *= min(1.0, blocks / MULTIPROCESSORS) / rounds
    of_block = warps * case.bytes / time if case.staged is None else case.staged / LATENCY
    by_latency = busy * of_block / rounds
    walked = sum(times * part.instructions for part, times in unit.walks())
    return Bound(
        32 * walked / case.values,
        32 * unit.instructions / case.values,
        loads,
        load_bytes,
        resident,
        by_latency * LATENCY / MULTIPROCESSORS,
        by_issue,
        by_latency,
    )
