"""``python -m prunefuse.cli.options_page > docs/options.md`` writes the page of all options."""

from __future__ import annotations

from prunefuse.cli._options import page
from prunefuse.experiment.config import RunConfig
from prunefuse.experiment.extrapolate.config import ExtrapolateConfig


def options_page() -> str:
    """The content of ``docs/options.md``."""
    return page({"run": RunConfig, "extrapolate": ExtrapolateConfig})


if __name__ == "__main__":
    print(options_page(), end="")
