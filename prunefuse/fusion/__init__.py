"""Fusing: the trained weights of a small network, back where they came from in the dense one."""

from prunefuse.fusion.fuse import fuse_

__all__ = ["fuse_"]
