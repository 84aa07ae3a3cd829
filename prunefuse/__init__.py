"""prunefuse: prune at initialization, select with the small network, fuse it back."""

from prunefuse._files import save_tensors
from prunefuse.experiment.loop import ActiveLearning, LoopConfig
from prunefuse.fusion import fuse_
from prunefuse.pruning import PruningPlan, load_pruned, plan_pruning
from prunefuse.scoring import EnsembleScores, score, score_ensemble, score_linear, score_tokens, statistics
from prunefuse.selection import StreamingTopB, k_center_greedy, top_b
from prunefuse.training import Recipe, features
from prunefuse.version import __version__

from prunefuse import _moved as _moved  # isort: skip  (old paths of modules)

__all__ = [
    "ActiveLearning",
    "EnsembleScores",
    "LoopConfig",
    "PruningPlan",
    "Recipe",
    "StreamingTopB",
    "__version__",
    "features",
    "fuse_",
    "k_center_greedy",
    "load_pruned",
    "plan_pruning",
    "save_tensors",
    "score",
    "score_ensemble",
    "score_linear",
    "score_tokens",
    "statistics",
    "top_b",
]
