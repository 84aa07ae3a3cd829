"""Scores of a pool from its logits."""

from prunefuse.scoring._ensembles import ENSEMBLE_STRATEGIES, EnsembleScores, score_ensemble
from prunefuse.scoring._groups import score_boxes, score_labels, score_pixels
from prunefuse.scoring._linear import score_linear
from prunefuse.scoring._scores import LOGIT_STRATEGIES, Statistics, score, statistics
from prunefuse.scoring._sequences import score_sequences
from prunefuse.scoring._tokens import score_tokens

__all__ = [
    "ENSEMBLE_STRATEGIES",
    "LOGIT_STRATEGIES",
    "EnsembleScores",
    "Statistics",
    "score",
    "score_boxes",
    "score_ensemble",
    "score_labels",
    "score_linear",
    "score_pixels",
    "score_sequences",
    "score_tokens",
    "statistics",
]
