"""What to label next: pickers, and the strategies that the loop knows by name."""

from prunefuse.selection.k_center import k_center_greedy
from prunefuse.selection.top_b import top_b

__all__ = ["k_center_greedy", "top_b"]
