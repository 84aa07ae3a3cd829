"""Ten points under Nsight Compute: what each kernel of ours takes, and how much of the card it uses."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

# Short name, metric, and what its number is divided by.
METRICS = (
    ("us", "gpu__time_duration.sum", 1e3),
    ("MB read and written", "dram__bytes.sum", 1e6),
    ("% of memory speed", "dram__throughput.avg.pct_of_peak_sustained_elapsed", 1),
    ("% of issue slots", "smsp__issue_active.avg.pct_of_peak_sustained_active", 1),
    ("% of warps", "sm__warps_active.avg.pct_of_peak_sustained_active", 1),
    ("registers", "launch__registers_per_thread", 1),
)
LAUNCHES = 240  # looked at, at most


def command(log: Path) -> list[str]:
    names = ",".join(metric for _, metric, _ in METRICS)
    return [
        "ncu", "--clock-control", "none", "--kernel-name-base", "demangled", "--kernel-name", "regex:prunefuse",
        "--launch-count", str(LAUNCHES), "--metrics", names, "--print-units", "base", "--csv", "--log-file", str(log),
        sys.executable, "-m", "benchmarks.gpu.bench", "cuda", "--once",
    ]  # fmt: skip


def table(lines: Iterable[str]) -> list[str]:
    """A line for each kernel, its longest launch, the longest first, of Nsight Compute's CSV."""
    rows = csv.DictReader(line for line in lines if line.startswith('"'))
    launches: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        found = launches.setdefault((short(row["Kernel Name"]), row["ID"]), {})
        with suppress(ValueError):  # "n/a"
            found[row["Metric Name"]] = float(row["Metric Value"].replace(",", ""))
    longest: dict[str, dict[str, float]] = {}
    for (name, _), found in launches.items():
        if found.get(METRICS[0][1], 0) >= longest.get(name, {}).get(METRICS[0][1], 0):
            longest[name] = found
    ranked = sorted(longest.items(), key=lambda item: -item[1].get(METRICS[0][1], 0))
    return [
        f"{name}: "
        + ", ".join(f"{found[metric] / by:.3g} {label}" for label, metric, by in METRICS if metric in found)
        for name, found in ranked
    ]


def short(kernel: str) -> str:
    """A kernel's name and template arguments, without namespaces, return type and parameters."""
    bare = re.sub(
        r"\(anonymous namespace\)::|<unnamed>::|[A-Za-z_]\w*::|\((int|bool|unsigned int|long)\)", "", kernel
    )
    return re.sub(r"^(void )?(.*?)\(.*$", r"\2", bare)[:60]


def main() -> int:
    log = Path(sys.argv[1])
    done = subprocess.run(command(log))
    found = table(log.read_text().splitlines()) if log.is_file() else []
    for line in found[:10]:
        print(f"> {line}")
    return done.returncode or int(not found)


if __name__ == "__main__":
    sys.exit(main())
