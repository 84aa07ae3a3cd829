"""What the compiled CUDA kernels take, counted in their machine code for sm_90, and the bandwidth that this allows.

    make sass                               the table of the built library, to benchmarks/results/sass.txt
    python -m benchmarks.sass               the same, to the screen
    python -m benchmarks.sass FILE          every kernel of a .cubin, .o or .so: registers, loops, bytes under way
    python -m benchmarks.sass FILE KERNEL   the way through the loops of those whose name holds KERNEL

Nothing is run. The common path is the shortest way through a loop that holds what a kernel's entry says it must:
benchmarks/sass/kernels has a file for each family of kernels, and in it `CASES`. A case names a kernel as this script
prints it, says what bytes and values a warp handles in one iteration of the outermost loop (or in the whole kernel),
and which loops that takes, how often (`Walk`). Where a changed kernel no longer has what its case says, the table is
not written, and tests/bench/test_sass.py fails. So: change a kernel, run the second form until its path is right, edit
the entry, `make sass`.

Of each case the table has the lane instructions a value (in the loops; with row ends, merges and empty lanes), the
most loads that a thread has under way, the blocks on a multiprocessor, the bytes under way on it, and the least of:

- copying: 3.0e12 bytes a second on an H100, 4.3e12 on an H200, read and written;
- issue: 0.8 of 33.4e12 lane instructions a second;
- latency: as many warps as are resident, each alone: its loads come after 0.7 microseconds (0.15 from a cache), its
  instructions take two cycles. So many bytes are under way that this is their number through 0.7 microseconds.

It is an estimate of what the code allows, no measurement.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.sass import kernels
from benchmarks.sass.listing import Instruction, Loop, functions
from benchmarks.sass.model import BLOCK_SHARED, COPY, Bound, Case, Note, Resources, blocks_resident, bound
from benchmarks.sass.paths import Code, NoSuchPathError

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "prunefuse" / "lib" / "libprunefuse_cuda.so"
TABLE = ROOT / "benchmarks" / "results" / "sass.txt"
ARCHITECTURE = "sm_90"


class MissingError(Exception):
    """What this needs is not on this machine."""


def tool(name: str) -> str:
    """NVIDIA's, on the path or from the wheel of triton, which comes with torch."""
    if found := shutil.which(name):
        return found
    spec = importlib.util.find_spec("triton")
    for folder in spec.submodule_search_locations or () if spec else ():
        if (path := Path(folder) / "backends" / "nvidia" / "bin" / name).exists():
            return str(path)
    raise MissingError(f"{name} is neither on the path nor in the wheel of triton")


def run(*command: str, text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        raise MissingError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def compiler_of(file: Path) -> str:
    """The version of nvcc that made the code in `file`."""
    found = set(re.findall(rb"Cuda compilation tools, release [0-9.]+, V([0-9.]+)", file.read_bytes()))
    if len(found) != 1:
        raise MissingError(f"{file}: no code of one nvcc, got {sorted(found)}")
    return found.pop().decode()


@dataclass
class Kernel:
    name: str
    code: Code
    resources: Resources


def short(name: str) -> str:
    """The kernel's own name and template arguments, without namespaces, parameters and what CUB was tuned with."""
    if "cub::" in name:
        found = re.search(r"(Device\w+)<", name)
        key = re.search(r"policy_hub<(.*?),", name)
        bits = "" if key is None else f" ({64 if 'long' in key[1] else 32}-bit keys)"
        return f"CUB {found[1] if found else name}{bits}"
    name = re.sub(r"prunefuse::(cuda::)?(\(anonymous namespace\)::)?", "", name).removeprefix("void ")
    return name[: name.index("(")] if "(" in name else name


def read(file: Path) -> list[Kernel]:
    """The kernels of a file that were compiled for sm_90, by name."""
    listing = run(tool("cuobjdump"), "-sass", "-arch", ARCHITECTURE, str(file))
    codes = {name: code for name, code in functions(listing).items() if code and "EmptyKernel" not in name}
    if not codes:
        raise MissingError(f"{file} has no code for {ARCHITECTURE}")
    usage = run(tool("cuobjdump"), "-res-usage", "-arch", ARCHITECTURE, str(file))
    used = {
        match[1]: (int(match[2]), int(match[3]), int(match[4]))
        for match in re.finditer(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage)
    }
    elf = run(tool("cuobjdump"), "-elf", "-arch", ARCHITECTURE, str(file))
    threads: dict[str, int] = {}
    section = ""
    for line in elf.splitlines():
        if match := re.match(r"\.nv\.info\.(\S+)", line.strip()):
            section = match[1]
        elif "EIATTR_MAX_THREADS" in line:
            threads[section] = 0
        elif threads.get(section) == 0 and (match := re.search(r"Value:\s+0x([0-9a-f]+)", line)):
            threads[section] = int(match[1], 16)
    pretty = run("c++filt", text="\n".join(codes)).splitlines()
    found = []
    for mangled, name in zip(codes, pretty, strict=True):
        code = codes[mangled]
        registers, stack, shared = used[mangled]
        spilled = sum(at.opcode.split(".")[0] in ("STL", "LDL") for at in code)
        resources = Resources(
            registers, stack, max(0, shared - BLOCK_SHARED), threads.get(mangled) or 256, spilled
        )
        found.append(Kernel(short(name.strip()), Code(code), resources))
    return sorted(found, key=lambda kernel: kernel.name)


def columns(head: tuple[str, ...], rows: Iterable[tuple[str, ...]], left: int = 1) -> str:
    rows = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i < left else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def cases() -> list[Case | Note]:
    """Of all families, in the order of their files' names."""
    names = sorted(module.name for module in pkgutil.iter_modules(kernels.__path__))
    found: list[Case | Note] = []
    for name in names:
        found += importlib.import_module(f"{kernels.__name__}.{name}").CASES
    return found


def _limit(case: Case, of: Bound) -> str:
    copy = (case.copy or COPY["H200"]) / case.moved
    return min((copy, "copying"), (of.by_issue, "issue"), (of.by_latency, "latency"))[1]


def _case_row(case: Case, by_name: dict[str, Kernel]) -> tuple[str, ...]:
    if case.kernel not in by_name:
        raise NoSuchPathError(f"{case.name}: there is no kernel {case.kernel}")
    kernel = by_name[case.kernel]
    try:
        unit = kernel.code.unit(case.walks, case.has)
    except NoSuchPathError as error:
        raise NoSuchPathError(f"{case.name}: {case.kernel}: {error}") from error
    of = bound(case, kernel.resources, unit)
    whole = of.call(case, "H200")
    return (
        case.name,
        case.kernel,
        f"{of.walked:.1f}",
        f"{of.all:.1f}",
        f"{of.loads} of {of.load_bytes} B" if of.loads else "copies" if case.staged else "0",
        str(of.resident),
        f"{(case.staged * of.resident if case.staged is not None else of.in_flight) / 1024:.0f}",
        f"{of.by_issue / 1e12:.2f}",
        f"{of.by_latency / 1e12:.2f}",
        _limit(case, of),
        f"{of.fraction(case, 'H100'):.2f}",
        f"{of.fraction(case, 'H200'):.2f}",
        "" if whole is None else f"{1e6 * whole:.1f}",
    )


CASE_HEAD = (
    "case",
    "kernel",
    "loops",
    "all",
    "loads",
    "blocks",
    "KB",
    "issue",
    "latency",
    "bound by",
    "H100",
    "H200",
    "us",
)


def case_table(found: list[Kernel], wanted: Iterable[Case | Note]) -> str:
    """Raises NoSuchPathError where a kernel is not as its case says."""
    by_name = {kernel.name: kernel for kernel in found}
    wanted = list(wanted)
    text = columns(CASE_HEAD, [_case_row(case, by_name) for case in wanted if isinstance(case, Case)], left=2)
    notes = [f"{note.name}: {note.text}" for note in wanted if isinstance(note, Note)]
    return "\n\n".join([text, *notes])


def _hottest(code: Code) -> tuple[Loop, list[Instruction]] | None:
    """Of the innermost loops the one that loads the most, of those with exponentials if there are any that load."""
    best: tuple[tuple[bool, int, int], Loop, list[Instruction]] | None = None
    for loop in code.loops:
        if code.children(loop):
            continue
        body = [at for address in sorted(loop.body) for at in code.graph[address].instructions]
        loads = sum(at.load_bytes for at in body)
        size = (loads > 0 and any(at.isa("MUFU.EX2") for at in body), loads, len(body))
        if best is None or size > best[0]:
            best = size, loop, body
    return None if best is None else best[1:]


def _kernel_row(kernel: Kernel) -> tuple[str, ...]:
    of = kernel.resources
    loop = _hottest(kernel.code)
    facts = ("", "", "", "")
    if loop is not None:
        body = loop[1]
        loads = [at.load_bytes for at in body if at.load_bytes]
        fewest = len(kernel.code.shortest(loop[0], {}, {}))
        facts = (
            f"{fewest}-{len(body)}" if fewest < len(body) else str(fewest),
            str(len(loads)),
            str(sum(loads)),
            str(sum(at.isa("MUFU.EX2") for at in body)),
        )
    return (
        kernel.name,
        str(of.registers),
        str(of.stack),
        str(of.spilled),
        str(of.shared),
        str(of.threads),
        str(blocks_resident(of)),
        str(len(kernel.code.instructions)),
        *facts,
    )


KERNEL_HEAD = (
    "kernel",
    "registers",
    "stack",
    "spills",
    "shared",
    "threads",
    "blocks",
    "instructions",
    "loop",
    "loads",
    "bytes",
    "ex2",
)


def kernel_table(found: list[Kernel]) -> str:
    return columns(KERNEL_HEAD, sorted({_kernel_row(kernel) for kernel in found}))


def table(file: Path) -> str:
    found = read(file)
    return f"""\
Counted in the code of {ARCHITECTURE} that nvcc {compiler_of(file)} made, by `make sass`: estimates, nothing is measured.

Cases: lane instructions a value in the loops, and with all around them; most loads under way in a thread; blocks on a
multiprocessor, KB that may be under way on it; TB/s by issue and by latency; and the least of these two and of copying,
as a fraction of copying on an H100 (3.0 TB/s) and an H200 (4.3 TB/s); microseconds of a whole call on an H200, where the
case is one. benchmarks/sass/__main__.py says how.

{case_table(found, cases())}

Every kernel: registers, bytes of stack, instructions that spill, bytes of static shared memory, threads and, with these,
blocks on a multiprocessor; instructions; of the innermost loop that loads the most: the fewest and all of its
instructions, its loads of global memory, their bytes, its exponentials.

{kernel_table(found)}
"""


def show(file: Path, name: str) -> None:
    """The loops of kernels whose name holds `name`, with the shortest way through each iteration."""
    for kernel in read(file):
        if name not in kernel.name:
            continue
        print(f"{kernel.name}: {len(kernel.code.instructions)} instructions, {kernel.resources}")
        for loop in sorted(kernel.code.loops, key=lambda loop: loop.header):
            body = [at for address in sorted(loop.body) for at in kernel.code.graph[address].instructions]
            depth = 1
            around = loop.parent
            while around is not None:
                around, depth = around.parent, depth + 1
            counted: dict[str, int] = {}
            for at in body:
                if at.load_bytes or at.opcode.split(".")[0] in (
                    "LDS",
                    "STS",
                    "STG",
                    "SHFL",
                    "MUFU",
                    "BAR",
                    "UBLKCP",
                    "LDGSTS",
                ):
                    counted[at.opcode] = counted.get(at.opcode, 0) + 1
            fewest = len(kernel.code.shortest(loop, {}, {}))
            print(f"{'  ' * depth}loop at {loop.header:#x}: {fewest}-{len(body)} instructions; {counted}")


def main() -> None:
    try:
        if len(sys.argv) > 2:
            show(Path(sys.argv[1]), sys.argv[2])
        elif len(sys.argv) > 1:
            print(kernel_table(read(Path(sys.argv[1]))))
        else:
            print(table(LIBRARY), end="")
    except (MissingError, NoSuchPathError) as error:
        sys.exit(f"benchmarks.sass: {error}")


if __name__ == "__main__":
    main()
