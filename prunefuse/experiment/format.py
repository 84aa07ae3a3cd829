"""Numbers for people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


def engineering(value: float, unit: str = "") -> str:
    """``1.53e12`` -> ``1.53 T``, with the unit right after the prefix. ``value`` is at least 0."""
    if value <= 0:
        return f"0 {unit}".rstrip()
    step = min(max(math.floor(math.log10(value) + 1e-9) // 3, 0), 6)
    if float(f"{value / 1000**step:.3g}") >= 1000 and step < 6:
        step += 1  # 999.9 k is 1 M
    return f"{value / 1000**step:.3g} {' kMGTPE'[step].strip()}{unit}".rstrip()


def duration(seconds: float) -> str:
    """``0.42 s``, ``12 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds < 9.95:
        return f"{seconds:.2g} s" if seconds >= 0.001 else "0 s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def percent(part: float) -> str:
    """``0.0195`` -> ``1.9 %``, ``0.2`` -> ``20 %``."""
    return f"{100 * part:.1f}".removesuffix(".0") + " %"


_TITLES = {"ece": "ECE", "f1": "F1", "iou": "IoU", "mae": "MAE", "r2": "R²", "rmse": "RMSE"}


@dataclass(frozen=True)
class Metric:
    """How a metric is written for people: accuracies and recalls in per cent, all others as they are."""

    name: str

    @property
    def title(self) -> str:
        """``mean_iou`` -> ``mean IoU``."""
        return " ".join(_TITLES.get(word, word) for word in self.name.split("_"))

    @property
    def in_percent(self) -> bool:
        """Whether it is a part of all samples, by its name."""
        return self.name.endswith(("accuracy", "recall"))

    @property
    def scale(self) -> int:
        """What values are multiplied by."""
        return 100 if self.in_percent else 1

    @property
    def unit(self) -> str:
        """What stands after values."""
        return " %" if self.in_percent else ""

    def text(self, value: float) -> str:
        """A value without its unit; ``-`` is none."""
        if math.isnan(value):
            return "-"
        if self.in_percent:
            return f"{100 * value:.1f}"
        return f"{value:.3f}" if abs(value) < 1000 else f"{value:.4g}"


def setting(value: object) -> str:
    """A value of a configuration: ``yes`` and ``no``, numbers without a tail of zeros, lists with commas."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        nested = any(isinstance(one, (list, tuple)) for one in value)
        return ", ".join(f"({setting(one)})" if nested else setting(one) for one in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def made(facts: Mapping[str, Any]) -> str:
    """When and where a run was made, by its config.json."""
    machine = facts["machine"]
    threads = f"{machine['threads']} thread{'s' if machine['threads'] != 1 else ''}"
    return f"{datetime.fromisoformat(facts['started']):%d %B %Y, %H:%M} · {machine['device_name']}, {threads}"
