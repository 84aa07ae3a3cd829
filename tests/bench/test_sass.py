"""What benchmarks.sass counts: in small listings, and in the library that is built here."""

import shutil

import pytest

from benchmarks.sass import __main__ as sass
from benchmarks.sass.listing import functions
from benchmarks.sass.model import CLOCK, CYCLES, LATENCY, Case, Resources, blocks_resident, bound, seconds
from benchmarks.sass.paths import Code, NoSuchPathError, Walk


def listing(*lines: str) -> str:
    """As cuobjdump prints it: a line of code, then one of its encoding."""
    text = "\n\t\tFunction : kernel\n"
    for i, line in enumerate(lines):
        predicate, _, rest = line.partition(" ") if line.startswith("@") else ("", "", line)
        text += f"        /*{16 * i:04x}*/  {predicate:>10} {rest} ;   /* 0x000000ff */\n{' ' * 60}/* 0x000fe */\n"
    return text + f"        /*{16 * len(lines):04x}*/   BRA {16 * len(lines):#x};\n        /*fff0*/   NOP;\n"


# A row: a loop with a load, the value's exponential or (where it is the largest) another way, and the row's end.
ROWS = (
    "S2R R0, SR_TID.X",  # 0x00
    "LDG.E R2, desc[UR4][R4.64]",  # 0x10: the row's loop begins
    "FADD R6, R2, R3",  # 0x20: the loop over values begins
    "LDG.E.128 R8, desc[UR4][R4.64]",  # 0x30
    "BSSY B0, 0xb0",  # 0x40
    "@!P0 BRA 0x80",  # 0x50
    "FADD R7, R7, 1",  # 0x60
    "BSYNC B0",  # 0x70: meets at 0xb0
    "FMUL R6, R6, R5",  # 0x80
    "MUFU.EX2 R6, R6",  # 0x90
    "BSYNC B0",  # 0xa0
    "FADD R2, R8, R9",  # 0xb0
    "@P1 BRA 0x20",  # 0xc0
    "SHFL.BFLY PT, R7, R7, 0x10, 0x1f",  # 0xd0
    "STG.E desc[UR4][R4.64], R7",  # 0xe0
    "@P2 BRA 0x10",  # 0xf0
    "EXIT",  # 0x100
)


def code(*lines: str) -> Code:
    return Code(functions(listing(*lines))["kernel"])


def test_padding_is_no_code_and_loops_nest():
    kernel = code(*ROWS)
    assert [at.opcode for at in kernel.instructions] == [line.split()[line[0] == "@"] for line in ROWS]
    assert [(loop.header, loop.parent and loop.parent.header) for loop in kernel.loops] == [
        (0x10, None),
        (0x20, 0x10),
    ]


@pytest.mark.parametrize(
    ("has", "length"),
    [
        ({}, 8),  # without the exponential, by way of the first BSYNC
        ({"MUFU.EX2": 1}, 9),
        ({"FADD": 3}, 8),
        ({"FADD": 2, "LDG.E.128": 1, "MUFU.EX2": 1}, 9),
    ],
)
def test_the_way_through_a_loop_is_the_shortest_that_has_what_it_must(has, length):
    unit = code(*ROWS).unit((Walk({"LDG": 1, **has}, times=1),), {"STG": 1})
    (part,) = [part for part, _ in unit.walks()]
    assert part.instructions == length
    for prefix, count in has.items():
        assert sum(at.isa(prefix) for at, _ in part.expanded()) >= count


def test_a_unit_is_an_iteration_of_the_outermost_loop():
    unit = code(*ROWS).unit((Walk({"MUFU.EX2": 1}, times=10),), {"SHFL": 1})
    assert unit.instructions == 10 * 9 + 4  # without what comes once in the kernel


def test_a_kernel_without_a_loop_around_its_walks_is_a_unit():
    lines = ("S2R R0, SR_TID.X", "FADD R1, R1, R1", "@P0 BRA 0x10", "STG.E desc[UR4][R4.64], R1", "EXIT")
    assert code(*lines).unit((Walk({"FADD": 1}, times=7),), {}).instructions == 3 + 7 * 2


def test_without_walks_a_unit_is_an_iteration_of_an_outermost_loop():
    lines = (
        "S2R R0, SR_TID.X",
        "FADD R1, R1, R1",
        "FADD R1, R1, R2",
        "@P0 BRA 0x10",
        "FMUL R3, R3, R3",
        "EXIT",
    )
    assert code(*lines).unit((), {"FADD": 2}).instructions == 3
    assert code(*lines).unit((), {"FMUL": 1}).instructions == 3 + 3


def test_the_nth_of_loops_alike():
    lines = ("FADD R1, R1, R1", "@P0 BRA 0x0", "FADD R1, R1, R2", "FMUL R3, R3, R3", "@P0 BRA 0x20", "EXIT")
    first, second = (code(*lines).unit((Walk({"FADD": 1}, times=100, nth=n),), {}) for n in range(2))
    assert (first.instructions, second.instructions) == (2 * 100 + 3 + 1, 2 + 3 * 100 + 1)


@pytest.mark.parametrize(
    ("walk", "has"),
    [
        (Walk({"MUFU.EX2": 2}, 1), {}),
        (Walk({"LDG.E.64": 1}, 1), {}),
        (Walk({"MUFU.EX2": 1}, 1, nth=1), {}),
        (Walk({"MUFU.EX2": 1}, 1), {"SHFL": 2}),
    ],
)
def test_what_a_kernel_no_longer_has_is_told(walk, has):
    kernel = sass.Kernel("rows<float>", code(*ROWS), Resources(32, 0, 0, 256, 0))
    case = Case("some rows", "rows<float>", bytes=4, values=1, walks=(walk,), has=has)
    with pytest.raises(NoSuchPathError, match=r"some rows: rows<float>: .*(MUFU|LDG|SHFL)"):
        sass.case_table([kernel], [case])


def test_a_kernel_that_is_gone_is_told():
    with pytest.raises(NoSuchPathError, match="some rows: there is no kernel rows<float>"):
        sass.case_table([], [Case("some rows", "rows<float>", bytes=4, values=1, walks=())])


def test_loads_wait_where_their_values_are_used():
    at_once = (
        "LDG.E R2, desc[UR4][R4.64]",
        "LDG.E.64 R8, desc[UR4][R4.64]",
        "FADD R1, R2, R9",
        "@P0 BRA 0x0",
        "EXIT",
    )
    in_turn = ("LDG.E R2, desc[UR4][R4.64]", "FADD R1, R2, R2", "LDG.E.64 R8, desc[UR4][R4.64]", "FADD R1, R8, R9",
               "@P0 BRA 0x0", "EXIT")  # fmt: skip
    for lines, waits, most in ((at_once, 1, (2, 12)), (in_turn, 2, (1, 8))):
        time, *under_way = seconds(code(*lines).unit((), {}))
        assert time == pytest.approx(waits * LATENCY + (len(lines) - waits) * CYCLES / CLOCK, rel=0.02)
        assert tuple(under_way) == most


def test_a_load_ahead_of_a_loop_waits_less():
    """Of two iterations' work between a load and its use, only what is left of its latency remains."""
    work = ["FFMA R20, R20, R21, R22"] * 100
    prefetched = code("FADD R1, R2, R2", "LDG.E R2, desc[UR4][R4.64]", *work, "@P0 BRA 0x0", "EXIT")
    used = code("LDG.E R2, desc[UR4][R4.64]", "FADD R1, R2, R2", *work, "@P0 BRA 0x0", "EXIT")
    walk = (Walk({"LDG": 1}, times=50),)
    saved = seconds(used.unit(walk, {}))[0] - seconds(prefetched.unit(walk, {}))[0]
    assert saved == pytest.approx(50 * 100 * CYCLES / CLOCK, rel=0.1)


@pytest.mark.parametrize(
    ("of", "dynamic", "blocks"),
    [
        (Resources(32, 0, 0, 256, 0), 0, 8),  # 2,048 threads
        (Resources(33, 0, 0, 256, 0), 0, 6),  # registers come in eights
        (Resources(64, 0, 0, 256, 0), 0, 4),
        (Resources(255, 0, 0, 256, 0), 0, 1),
        (Resources(16, 0, 0, 64, 0), 0, 32),
        (Resources(32, 0, 0, 256, 0), 48 * 1024, 4),  # of 227 KB, with 1 KB of each block's own
        (Resources(32, 0, 1024, 256, 0), 0, 8),
    ],
)
def test_blocks_on_a_multiprocessor(of, dynamic, blocks):
    assert blocks_resident(of, dynamic) == blocks


def test_few_blocks_leave_the_card_idle():
    unit = code(*ROWS).unit((Walk({"MUFU.EX2": 1}, times=10),), {})
    of = Resources(32, 0, 0, 256, 0)
    many, few = (bound(Case("", "", 4000, 1000, (), blocks=blocks), of, unit) for blocks in (None, 33))
    assert few.by_issue == pytest.approx(many.by_issue * 33 / 132)
    assert few.by_latency == pytest.approx(many.by_latency * 33 / (132 * 8))


def test_a_whole_call_takes_what_it_moves_and_what_is_fixed():
    unit = code(*ROWS).unit((Walk({"MUFU.EX2": 1}, times=10),), {})
    whole, part = (
        Case("", "", 4000, 1000, (), total=total, fixed=1e-3, copy=1e9) for total in (10_000_000, None)
    )
    of = bound(whole, Resources(32, 0, 0, 256, 0), unit)
    assert of.call(whole, "H200") == pytest.approx(0.01 + 1e-3)
    assert of.fraction(whole, "H200") == pytest.approx(0.01 / 0.011)
    assert of.call(part, "H200") is None
    assert of.fraction(part, "H200") == 1


def test_the_committed_table_is_that_of_the_library():
    """Made of the compiler's version and the sources alone, so any build of theirs gives the same."""
    if not sass.LIBRARY.exists():
        pytest.skip("no CUDA library is built here")
    if not shutil.which("c++filt"):
        pytest.skip("no c++filt")
    try:
        sass.tool("cuobjdump")
        version = sass.compiler_of(sass.LIBRARY)
    except sass.MissingError as error:
        pytest.skip(str(error))
    committed = sass.TABLE.read_text()
    if f"nvcc {version} " not in committed:
        pytest.skip(f"the table is of another nvcc than {version}, which built the library")
    sources = [path for folder in ("cuda", "math") for path in (sass.ROOT / "csrc" / folder).iterdir()]
    newest = max([*sources, *(sass.ROOT / "csrc").glob("*.h")], key=lambda path: path.stat().st_mtime)
    if newest.stat().st_mtime > sass.LIBRARY.stat().st_mtime:
        pytest.skip(f"the CUDA library is older than {newest.name}")
    try:
        made = sass.table(sass.LIBRARY)
    except sass.MissingError as error:
        pytest.skip(str(error))  # built for other cards alone
    assert made == committed, "run make sass"
