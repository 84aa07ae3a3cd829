"""Scores of a pool from its logits."""

from prunefuse.scoring.ensembles import ENSEMBLE_STRATEGIES, EnsembleScores, score_ensemble
from prunefuse.scoring.linear import score_linear
from prunefuse.scoring.scores import LOGIT_STRATEGIES, Statistics, score, statistics
from prunefuse.scoring.tokens import score_tokens

__all__ = [
    "ENSEMBLE_STRATEGIES",
    "LOGIT_STRATEGIES",
    "EnsembleScores",
    "Statistics",
    "score",
    "score_ensemble",
    "score_linear",
    "score_tokens",
    "statistics",
]
