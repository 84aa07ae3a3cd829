"""Structured pruning: exported graph -> couplings -> kept channels -> plan -> small model."""

from prunefuse.pruning.calibration import noise_like
from prunefuse.pruning.modules import register_padding, register_sizes
from prunefuse.pruning.obspa import prune_without_finetuning
from prunefuse.pruning.plan import Layer, PruningPlan, TensorSpec
from prunefuse.pruning.planner import plan_pruning
from prunefuse.pruning.rules import register_rule
from prunefuse.pruning.schedule import compose, prune_and_finetune
from prunefuse.pruning.surgery import load_pruned
from prunefuse.pruning.targets import Target

__all__ = [
    "Layer",
    "PruningPlan",
    "Target",
    "TensorSpec",
    "compose",
    "load_pruned",
    "noise_like",
    "plan_pruning",
    "prune_and_finetune",
    "prune_without_finetuning",
    "register_padding",
    "register_rule",
    "register_sizes",
]
