"""Structured pruning: exported graph -> couplings -> kept channels -> plan -> small model."""

from prunefuse._inputs import TensorSpec
from prunefuse.pruning._choose.targets import Target
from prunefuse.pruning._graph.attributes import register_padding, register_sizes
from prunefuse.pruning._rules.registry import register_rule
from prunefuse.pruning.obspa import noise_like, prune_without_finetuning
from prunefuse.pruning.plan import Layer, PruningPlan, fuse_, load_pruned
from prunefuse.pruning.planner import plan_pruning
from prunefuse.pruning.schedule import compose, prune_and_finetune

__all__ = [
    "Layer",
    "PruningPlan",
    "Target",
    "TensorSpec",
    "compose",
    "fuse_",
    "load_pruned",
    "noise_like",
    "plan_pruning",
    "prune_and_finetune",
    "prune_without_finetuning",
    "register_padding",
    "register_rule",
    "register_sizes",
]
