"""prunefuse: prune at initialization, select with the small network, fuse it back.

Names are loaded when they are first used, and torch with them: importing the package costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunefuse import _moved as _moved  # old paths of modules
from prunefuse._lazy import lazily
from prunefuse.version import __version__

if TYPE_CHECKING:
    from prunefuse._files import save_tensors as save_tensors
    from prunefuse.experiment.loop import ActiveLearning as ActiveLearning
    from prunefuse.experiment.loop import LoopConfig as LoopConfig
    from prunefuse.models import load_weights_ as load_weights_
    from prunefuse.pruning import PruningPlan as PruningPlan
    from prunefuse.pruning import Target as Target
    from prunefuse.pruning import fuse_ as fuse_
    from prunefuse.pruning import load_pruned as load_pruned
    from prunefuse.pruning import plan_pruning as plan_pruning
    from prunefuse.pruning import prune_and_finetune as prune_and_finetune
    from prunefuse.pruning import prune_without_finetuning as prune_without_finetuning
    from prunefuse.scoring import EnsembleScores as EnsembleScores
    from prunefuse.scoring import score as score
    from prunefuse.scoring import score_boxes as score_boxes
    from prunefuse.scoring import score_ensemble as score_ensemble
    from prunefuse.scoring import score_labels as score_labels
    from prunefuse.scoring import score_linear as score_linear
    from prunefuse.scoring import score_pixels as score_pixels
    from prunefuse.scoring import score_sequences as score_sequences
    from prunefuse.scoring import score_tokens as score_tokens
    from prunefuse.scoring import statistics as statistics
    from prunefuse.selection import StreamingTopB as StreamingTopB
    from prunefuse.selection import k_center_greedy as k_center_greedy
    from prunefuse.selection import top_b as top_b
    from prunefuse.training import Recipe as Recipe
    from prunefuse.training import features as features

# tests/test_import.py holds these to those above.
__getattr__, __dir__, _offered = lazily(
    __name__,
    {
        "_files": "save_tensors",
        "experiment.loop": "ActiveLearning LoopConfig",
        "models": "load_weights_",
        "pruning": "PruningPlan Target fuse_ load_pruned plan_pruning prune_and_finetune prune_without_finetuning",
        "scoring": "EnsembleScores score score_boxes score_ensemble score_labels score_linear score_pixels score_sequences "
        "score_tokens statistics",
        "selection": "StreamingTopB k_center_greedy top_b",
        "training": "Recipe features",
    },
)
__all__ = ["__version__", *_offered]
