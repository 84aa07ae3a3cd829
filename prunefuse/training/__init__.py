"""Training by recipe, distillation, and what trained networks say: logits, features, accuracy; what a forward costs."""

from prunefuse.training._adversarial import Adversarial, Pgd, evaluate_attacked, perturb, trades_loss
from prunefuse.training._distillation import Distillation
from prunefuse.training._flops import flops_per_input
from prunefuse.training._predict import (
    dropout_layers,
    evaluate,
    features,
    predict,
    predict_dropout,
    predict_with_features,
)
from prunefuse.training._recipe import RECIPES, Recipe
from prunefuse.training._train import EpochResult, TrainingDivergedError, train

__all__ = [
    "RECIPES",
    "Adversarial",
    "Distillation",
    "EpochResult",
    "Pgd",
    "Recipe",
    "TrainingDivergedError",
    "dropout_layers",
    "evaluate",
    "evaluate_attacked",
    "features",
    "flops_per_input",
    "perturb",
    "predict",
    "predict_dropout",
    "predict_with_features",
    "trades_loss",
    "train",
]
