"""prunefuse: prune at initialisation, select with the small network, fuse it back."""

from prunefuse.scoring import score, statistics
from prunefuse.selection import k_center_greedy, top_b
from prunefuse.version import __version__

__all__ = ["__version__", "k_center_greedy", "score", "statistics", "top_b"]
