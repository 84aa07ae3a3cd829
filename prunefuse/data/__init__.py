"""Data sets for experiments, read a batch at a time, repeatably, and never a label that was not asked for."""

from prunefuse.data._batches import Labeled
from prunefuse.data._images import ImageFiles
from prunefuse.data._labels import OwnLabels
from prunefuse.data._registry import load
from prunefuse.data._tensors import Augment, TensorImages
from prunefuse.data._types import Data
from prunefuse.data._words import Vocabulary, words_of

__all__ = [
    "Augment",
    "Data",
    "ImageFiles",
    "Labeled",
    "OwnLabels",
    "TensorImages",
    "Vocabulary",
    "load",
    "words_of",
]
