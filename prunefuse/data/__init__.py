"""Data sets for experiments, read a batch at a time, repeatably, and never a label that was not asked for."""

from prunefuse.data.batches import Labeled
from prunefuse.data.labels import OwnLabels
from prunefuse.data.registry import Data, load
from prunefuse.data.tensors import Augment, TensorImages

__all__ = ["Augment", "Data", "Labeled", "OwnLabels", "TensorImages", "load"]
