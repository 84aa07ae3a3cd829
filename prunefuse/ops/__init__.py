"""The operators of the package on tensors: typed calls of `torch.ops.prunefuse.*`, which importing this module registers.

`score.reference` is `score` in plain torch, `score.flops` its cost by shapes, and so for every operator (`OPERATORS`, by name).
"""

from __future__ import annotations

from prunefuse.ops._dynamics import DYNAMICS, claim_, divergence_, dynamics, push_
from prunefuse.ops._ensembles import ensemble_add_, score_ensemble
from prunefuse.ops._groups import score_groups
from prunefuse.ops._k_center import k_center_greedy
from prunefuse.ops._k_means import k_means_plus_plus
from prunefuse.ops._keep_best import keep_best_
from prunefuse.ops._neighbors import nearest_neighbors
from prunefuse.ops._operator import OPERATORS, Operator, tell_counters
from prunefuse.ops._scatter import Scatter, scatter_
from prunefuse.ops._scores import absorb_, score, statistics
from prunefuse.ops._top_b import top_b

__all__ = [
    "DYNAMICS",
    "OPERATORS",
    "Operator",
    "Scatter",
    "absorb_",
    "claim_",
    "divergence_",
    "dynamics",
    "ensemble_add_",
    "k_center_greedy",
    "k_means_plus_plus",
    "keep_best_",
    "nearest_neighbors",
    "push_",
    "scatter_",
    "score",
    "score_ensemble",
    "score_groups",
    "statistics",
    "top_b",
]

tell_counters()  # this may be the first use of the package, in the middle of a count
