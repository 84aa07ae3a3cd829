"""From the build's log (stdin) to a table of what every CUDA kernel takes: registers, spills, shared memory.

`make ptxas` writes it to benchmarks/results/ptxas.txt. A multiprocessor of sm_80 or sm_90 has 65,536 registers and runs
2,048 threads: at 32 registers all of them, at 64 half.
"""

from __future__ import annotations

import re
import subprocess
import sys

ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(sm_\w+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")


def short(name: str) -> str:
    """The kernel's own name and template arguments, without namespaces, parameters and what CUB was tuned with."""
    if "cub::" in name:
        found = re.search(r"(Device\w+)<", name)
        key = "64-bit keys" if "unsigned long" in name else "32-bit keys"
        return f"CUB {found[1] if found else name} ({key})"
    name = re.sub(r"prunefuse::(cuda::)?(\(anonymous namespace\)::)?", "", name).removeprefix("void ")
    return name[: name.index("(")]


def rows(lines: list[str]) -> set[tuple[str, ...]]:
    found = set()
    entry = spills = None
    for line in lines:
        if match := ENTRY.search(line):
            entry = match
        elif match := SPILLS.search(line):
            spills = match
        elif entry and "EmptyKernel" in entry[1]:  # CUB's, to ask for the device's version
            entry = None
        elif entry and spills and (match := USED.search(line)):
            name = subprocess.run(["c++filt", entry[1]], capture_output=True, text=True, check=True).stdout
            found.add((short(name.strip()), entry[2], match[1], *spills.groups()[1:], match[2] or "0"))
            entry = None
    return found


def main() -> None:
    found = sorted(rows(sys.stdin.readlines()))
    if not found:
        sys.exit("no kernel in the log: was anything compiled?")
    head = ("kernel", "for", "registers", "spill stores", "spill loads", "static shared bytes")
    widths = [max(map(len, column)) for column in zip(head, *found, strict=True)]
    for row in (head, *found):
        cells = [
            cell.rjust(w) if i > 1 else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


if __name__ == "__main__":
    main()
