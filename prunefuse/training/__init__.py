"""Training by recipe, distillation, and what trained networks say: logits, features, accuracy."""

from prunefuse.training.distillation import Distillation
from prunefuse.training.predict import (
    dropout_layers,
    evaluate,
    features,
    predict,
    predict_dropout,
    predict_with_features,
)
from prunefuse.training.recipe import RECIPES, Recipe
from prunefuse.training.train import EpochResult, TrainingDivergedError, train

__all__ = [
    "RECIPES",
    "Distillation",
    "EpochResult",
    "Recipe",
    "TrainingDivergedError",
    "dropout_layers",
    "evaluate",
    "features",
    "predict",
    "predict_dropout",
    "predict_with_features",
    "train",
]
