"""Training by recipe, distillation, and what trained networks say: logits, features, accuracy."""

from prunefuse.training.distillation import Distillation
from prunefuse.training.predict import evaluate, features, predict
from prunefuse.training.recipe import RECIPES, Recipe
from prunefuse.training.train import EpochResult, TrainingDivergedError, train

__all__ = [
    "RECIPES",
    "Distillation",
    "EpochResult",
    "Recipe",
    "TrainingDivergedError",
    "evaluate",
    "features",
    "predict",
    "train",
]
