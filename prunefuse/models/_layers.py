"""What the architectures of this package share: the channel padding of shortcut A, and the initialization."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from prunefuse.pruning._graph.attributes import register_padding


class ChannelPad(nn.Module):
    """The input (N, C, H, W) with ``left`` zero channels before its own and ``right`` after them.

    Both numbers are attributes that are read at every call. So a pruning plan can change them, and they may then be
    unequal.

    >>> from prunefuse.models import ChannelPad
    >>> ChannelPad(1, 2)(torch.ones(1, 4, 2, 2)).shape[1]
    7
    """

    def __init__(self, left: int, right: int) -> None:
        super().__init__()
        self.left = left
        self.right = right

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, left + C + right, H, W)."""
        return functional.pad(x, (0, 0, 0, 0, self.left, self.right))

    def extra_repr(self) -> str:
        """The two amounts, for ``print(model)``."""
        return f"left={self.left}, right={self.right}"


register_padding(ChannelPad, ("left", "right"))


def init_convolutions_(model: nn.Module) -> None:
    """Draw every convolution anew: Kaiming normal over the fan-out (He et al. 2015), biases zero.

    Linear and norm layers keep PyTorch's own initialization.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
