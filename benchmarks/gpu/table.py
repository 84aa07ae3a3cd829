"""docs/gpu.md: what every GPU in benchmarks/results measured. With a file of a new one, that is put there first.

python -m benchmarks.gpu.table [build/gpu/benchmarks.json]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunefuse import _files as files
from prunefuse.bench import record
from prunefuse.bench.race import Line, Result
from prunefuse.bench.table import duration

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = ROOT / "benchmarks/results", ROOT / "docs/gpu.md"

HEAD = """# On a GPU

Written by `python -m benchmarks.gpu.table` from the files of GPUs in [benchmarks/results](../benchmarks/results).

`benchmarks/gpu/check.sh` takes at most 400 s on a machine with a GPU and PyTorch, without network. It runs every operator
against float64, the tests that need a GPU and the four tools of compute-sanitizer; then, alone on the card, the benchmarks
below, Nsight Compute on ten points of them and a profile of training. The libraries are those of `make gpu-bundle` or of the
checkout (`pip install -e .`); the sources are built there, too. It ends with 1 where a step failed, and `build/gpu/summary.txt`
names that first. Then `python -m benchmarks.gpu.table build/gpu/benchmarks.json` adds the numbers to this page.
"""
NONE = """
No GPU has run it yet.
"""
EXPLAINED = """
A call's time is that between two events around many calls, the median of several such batches, on inputs in turns that together
exceed twice the last cache. *Predicted* is the time of a copy of as many bytes at the speed of the copy measured in the same
run (for neighbors, of a float32 matrix product of as many FLOPs), and *share* is that as a part of ours: 1 is the most that can
be had, but for what fits into the cache. *torch* is plain PyTorch, *torch.compile* the same fused. The error is the largest
deviation of 64 rows from float64.
"""


def page(found: Sequence[tuple[dict[str, Any], Sequence[Result]]]) -> str:
    """The page of these files' contents."""
    parts = [HEAD, EXPLAINED if found else NONE]
    for content, results in found:
        versions, rates = content["versions"], content["ceilings"]
        speeds = [
            f"{name} {rate / 1000:.3g} {'TFLOP/s' if 'product' in name else 'TB/s'}"
            for name, rate in rates.items()
        ]
        parts.append(
            f"\n## {content['machine']['device_name']}\n\n"
            f"{content['date'][:10]}, prunefuse {versions['prunefuse']}, torch {versions['torch']}, `{content['command']}`.\n"
            f"Ceilings: {', '.join(speeds)}.\n\n"
            "| case | predicted | time | share | torch | torch.compile | error | right |\n"
            "|---|--:|--:|--:|--:|--:|--:|:-:|\n"
        )
        parts += [row(result) for result in results]
    return "".join(parts)


def row(result: Result) -> str:
    """A case's line."""
    ours, limit = result.ours, next(iter(result.limits), None)
    share = f"{limit.median / ours.median:.2f}" if limit and ours.seconds else ""
    cells = [result.case, time_of(limit), time_of(ours), share]
    for name in ("torch", "torch.compile"):
        cells.append(time_of(next((line for line in result.lines if line.name == name), None)))
    cells += ["" if ours.error is None else f"{ours.error:.1g}", "✓" if ours.matches else "✗"]
    return f"| {' | '.join(cells)} |\n"


def time_of(line: Line | None) -> str:
    """Its median; or why there is none."""
    if line is None:
        return ""
    return duration(line.median) if line.seconds else line.note.replace("|", "/")


def of_gpus(folder: Path) -> list[tuple[dict[str, Any], Sequence[Result]]]:
    """The files of a folder that a GPU's benchmarks wrote, by name."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            content, results = record.load(path)
        except ValueError:
            continue  # of other benchmarks
        if content["machine"]["device"] == "cuda" and "ceilings" in content:
            found.append((content, results))
    return found


def main() -> None:
    for given in map(Path, sys.argv[1:]):
        content, _ = record.load(given)
        if content["machine"]["device"] != "cuda":
            raise SystemExit(f"{given} must be of a GPU, got {content['machine']['device_name']}")
        target = record.require_new(RESULTS / record.name_of(content["machine"]))
        files.write_text(target, given.read_text(encoding="utf-8"))
        print(target)
    files.write_text(PAGE, page(of_gpus(RESULTS)))


if __name__ == "__main__":
    main()
