"""Training by recipe, distillation, and what trained networks say: logits, features, accuracy; what a forward costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunefuse._lazy import lazily

if TYPE_CHECKING:
    from prunefuse.training._adversarial import Adversarial as Adversarial
    from prunefuse.training._adversarial import Pgd as Pgd
    from prunefuse.training._adversarial import evaluate_attacked as evaluate_attacked
    from prunefuse.training._adversarial import perturb as perturb
    from prunefuse.training._adversarial import trades_loss as trades_loss
    from prunefuse.training._checkpoint import Checkpoint as Checkpoint
    from prunefuse.training._distillation import Distillation as Distillation
    from prunefuse.training._feature_file import read_features as read_features
    from prunefuse.training._flops import flops_per_input as flops_per_input
    from prunefuse.training._predict import dropout_layers as dropout_layers
    from prunefuse.training._predict import evaluate as evaluate
    from prunefuse.training._predict import features as features
    from prunefuse.training._predict import measure as measure
    from prunefuse.training._predict import predict as predict
    from prunefuse.training._predict import predict_dropout as predict_dropout
    from prunefuse.training._predict import predict_with_features as predict_with_features
    from prunefuse.training._recipe import RECIPES as RECIPES
    from prunefuse.training._recipe import Recipe as Recipe
    from prunefuse.training._starts import shrink_and_perturb_ as shrink_and_perturb_
    from prunefuse.training._train import EpochResult as EpochResult
    from prunefuse.training._train import TrainingDivergedError as TrainingDivergedError
    from prunefuse.training._train import best_epoch as best_epoch
    from prunefuse.training._train import train as train

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "_adversarial": "Adversarial Pgd evaluate_attacked perturb trades_loss",
        "_checkpoint": "Checkpoint",
        "_distillation": "Distillation",
        "_feature_file": "read_features",
        "_flops": "flops_per_input",
        "_predict": "dropout_layers evaluate features measure predict predict_dropout predict_with_features",
        "_recipe": "RECIPES Recipe",
        "_starts": "shrink_and_perturb_",
        "_train": "EpochResult TrainingDivergedError best_epoch train",
    },
)
