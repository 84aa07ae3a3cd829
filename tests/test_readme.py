"""The README's quick starts, what it shows of other packages, and the pages on tasks and language models, run as they are."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from peer_packages import skip_without

ROOT = Path(__file__).parent.parent
PAGES = [
    (ROOT / name).read_text() for name in ("README.md", "docs/tasks.md", "docs/language.md", "docs/fusing.md")
]
# Every block of Python, by the heading above it.
BLOCKS = [
    pytest.param(block, id=section.splitlines()[0])
    for page in PAGES
    for section in re.split(r"^## ", page, flags=re.MULTILINE)
    for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL)
]


@pytest.mark.parametrize("block", BLOCKS)
def test_it_runs(block, tmp_path):
    for package in ("modAL", "skactiveml", "baal", "small_text"):
        if f"adapters.{package.lower()} " in block:
            skip_without(package)
    if "from transformers" in block:
        skip_without("transformers")
    result = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
