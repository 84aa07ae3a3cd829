"""Registers the FLOP formulas as soon as torch's counter is imported, and not before: importing it imports Triton.

The counter copies the table of formulas when it is made, so registering at an operator's first call would come too late.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

COUNTER = "torch.utils.flop_counter"


class _AfterCounter:
    """A finder that finds nothing itself: it lets the counter's own loader go on with our formulas."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def load_and_register(module: ModuleType) -> None:
            load(module)
            import prunefuse.ops.flops  # noqa: F401

        spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


if COUNTER in sys.modules:
    import prunefuse.ops.flops  # noqa: F401
else:
    sys.meta_path.insert(0, _AfterCounter())
