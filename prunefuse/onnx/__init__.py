"""Pruning of ONNX files, from whatever framework: the graph engine and the rules of :mod:`prunefuse.pruning`.

Needs the packages of ``pip install "prunefuse[onnx]"``; of these onnxruntime only to prune without training.
"""

from prunefuse.onnx.obspa import prune_without_finetuning
from prunefuse.onnx.planner import explain, plan
from prunefuse.onnx.reader import read
from prunefuse.onnx.writer import prune, write

__all__ = ["explain", "plan", "prune", "prune_without_finetuning", "read", "write"]
