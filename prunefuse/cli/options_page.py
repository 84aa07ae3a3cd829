"""``python -m prunefuse.cli.options_page > docs/options.md`` writes the page of all options."""

from __future__ import annotations

from prunefuse.cli._options import page
from prunefuse.experiment.config import RunConfig
from prunefuse.experiment.extrapolate.config import ExtrapolateConfig
from prunefuse.experiment.labeling.config import LabelConfig


def options_page() -> str:
    """The content of ``docs/options.md``."""
    from prunefuse.pruning.options import ModulePlanOptions, keys  # here, as it needs torch

    rows = [
        f"| `{name}` | {f'`{key.default!r}`'} | {key.text.replace('``', '`').replace('|', chr(92) + '|')} |"
        for name, (_, key) in keys(ModulePlanOptions).items()
    ]
    title = "## Planning: `plan_pruning`, `prune_and_finetune`, `prune_without_finetuning`"
    planning = [title, "", "| keyword | default | |", "| --- | --- | --- |", *rows]
    return (
        page({"run": RunConfig, "extrapolate": ExtrapolateConfig, "label start": LabelConfig})
        + "\n"
        + "\n".join(planning)
        + "\n"
    )


if __name__ == "__main__":
    print(options_page(), end="")
