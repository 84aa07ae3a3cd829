"""The README's quick starts, and what it shows of other packages, run as they are written."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from peer_packages import skip_without

BLOCKS = re.findall(
    r"```python\n(.*?)```", (Path(__file__).parent.parent / "README.md").read_text(), re.DOTALL
)


def test_there_is_one_for_each_kind_of_user():
    assert len(BLOCKS) == 6
    assert all(len([line for line in block.splitlines() if line.strip()]) <= 15 for block in BLOCKS[:5])


@pytest.mark.parametrize(
    "block", BLOCKS, ids=["researcher", "engineer", "pruner", "data pruner", "author", "adapters"]
)
def test_it_runs(block, tmp_path):
    for package in ("modAL", "skactiveml", "baal", "small_text"):
        if f"adapters.{package.lower()} " in block:
            skip_without(package)
    result = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
