"""Whether a folder is of a study."""

from __future__ import annotations

import json
from pathlib import Path

KIND = "study"


def is_study(path: Path) -> bool:
    """Whether ``path`` is the folder of a study, as far as config.json says."""
    try:
        return bool(json.loads((path / "config.json").read_text(encoding="utf-8")).get("kind") == KIND)
    except (OSError, ValueError, AttributeError):
        return False
