"""Fusing: :func:`fuse_`, the method of a plan under a name of its own."""

from prunefuse.pruning.plan import fuse_ as fuse_
