"""Scores of a pool from its logits."""

from prunefuse.scoring.scores import LOGIT_STRATEGIES, Statistics, score, statistics

__all__ = ["LOGIT_STRATEGIES", "Statistics", "score", "statistics"]
