"""prunefuse: prune at initialization, select with the small network, fuse it back.

Names are loaded when they are first used, and torch with them: importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from prunefuse import _moved as _moved  # old paths of modules
from prunefuse.version import __version__

if TYPE_CHECKING:
    from prunefuse._files import save_tensors as save_tensors
    from prunefuse.experiment.loop import ActiveLearning as ActiveLearning
    from prunefuse.experiment.loop import LoopConfig as LoopConfig
    from prunefuse.pruning import PruningPlan as PruningPlan
    from prunefuse.pruning import Target as Target
    from prunefuse.pruning import fuse_ as fuse_
    from prunefuse.pruning import load_pruned as load_pruned
    from prunefuse.pruning import plan_pruning as plan_pruning
    from prunefuse.pruning import prune_and_finetune as prune_and_finetune
    from prunefuse.pruning import prune_without_finetuning as prune_without_finetuning
    from prunefuse.scoring import EnsembleScores as EnsembleScores
    from prunefuse.scoring import score as score
    from prunefuse.scoring import score_ensemble as score_ensemble
    from prunefuse.scoring import score_linear as score_linear
    from prunefuse.scoring import score_tokens as score_tokens
    from prunefuse.scoring import statistics as statistics
    from prunefuse.selection import StreamingTopB as StreamingTopB
    from prunefuse.selection import k_center_greedy as k_center_greedy
    from prunefuse.selection import top_b as top_b
    from prunefuse.training import Recipe as Recipe
    from prunefuse.training import features as features

# Module: its names that the package offers. tests/test_import.py holds these to those above.
_NAMES = {
    "prunefuse._files": "save_tensors",
    "prunefuse.experiment.loop": "ActiveLearning LoopConfig",
    "prunefuse.pruning": "PruningPlan Target fuse_ load_pruned plan_pruning prune_and_finetune prune_without_finetuning",
    "prunefuse.scoring": "EnsembleScores score score_ensemble score_linear score_tokens statistics",
    "prunefuse.selection": "StreamingTopB k_center_greedy top_b",
    "prunefuse.training": "Recipe features",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    if not name.startswith("_") and find_spec(f"prunefuse.{name}") is not None:
        return importlib.import_module(f"prunefuse.{name}")
    raise AttributeError(f"module 'prunefuse' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
