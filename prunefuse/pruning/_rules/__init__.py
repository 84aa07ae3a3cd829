"""What operators do to channels: one table, and the rules for PyTorch's own operators, which importing this fills in."""

from prunefuse.pruning._rules import attention as attention
from prunefuse.pruning._rules import axes as axes
from prunefuse.pruning._rules import experts as experts
from prunefuse.pruning._rules import layers as layers
from prunefuse.pruning._rules import shapes as shapes
