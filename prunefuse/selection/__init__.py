"""What to label next: pickers, and the strategies that the loop knows by name."""

from prunefuse.selection._cold_start import probcover, typiclust
from prunefuse.selection._k_center import k_center_greedy
from prunefuse.selection._k_means import Clusters, k_means
from prunefuse.selection._part import random_part
from prunefuse.selection._streaming import StreamingTopB
from prunefuse.selection._top_b import top_b

__all__ = [
    "Clusters",
    "StreamingTopB",
    "k_center_greedy",
    "k_means",
    "probcover",
    "random_part",
    "top_b",
    "typiclust",
]
