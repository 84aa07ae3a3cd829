"""Pruning of ONNX files, from whatever framework: the graph engine and the rules of :mod:`prunefuse.pruning`.

Needs the packages of ``pip install "prunefuse[onnx]"``.
"""

from prunefuse.onnx.planner import plan
from prunefuse.onnx.reader import read
from prunefuse.onnx.writer import prune, write

__all__ = ["plan", "prune", "read", "write"]
