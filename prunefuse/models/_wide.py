"""Wide ResNets for small images (Zagoruyko and Komodakis 2016): pre-activation blocks, three wide stages."""

from __future__ import annotations

from torch import Tensor, nn

from prunefuse._options import at_least
from prunefuse.models._layers import init_convolutions_


class PreActivationBlock(nn.Module):
    """Norm and ReLU come before each 3x3 convolution; a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if in_channels != width or stride != 1:
            self.shortcut = nn.Conv2d(in_channels, width, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, width, H / stride, W / stride)."""
        active = self.bn1(x).relu()
        out = self.conv2(self.bn2(self.conv1(active)).relu())
        # The projection sees the activated input, the identity the raw one, as in the authors' code.
        return out + (x if self.shortcut is None else self.shortcut(active))  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """A wide ResNet: a stem of 16 channels, stages of 16k, 32k and 64k channels, norm, ReLU, global pooling, classifier.

    >>> from prunefuse.models import WideResNet
    >>> WideResNet(10, 2)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])

    References:
        Zagoruyko and Komodakis 2016, *Wide Residual Networks*.
    """

    def __init__(self, depth: int, width: int, num_classes: int = 10, *, in_channels: int = 3) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth must be 6n + 4 with n >= 1 (10, 16, 22, 28, ...), got {depth}")
        at_least(1)("width", width)
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        channels = 16
        stages = []
        for stage_width, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
            blocks = []
            for i in range((depth - 4) // 6):
                blocks.append(PreActivationBlock(channels, stage_width, stride if i == 0 else 1))
                channels = stage_width
            stages.append(nn.Sequential(*blocks))
        self.stage1, self.stage2, self.stage3 = stages
        self.bn = nn.BatchNorm2d(channels)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.0)  # `build` sets the rate
        self.fc = nn.Linear(channels, num_classes)
        init_convolutions_(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> logits (N, num_classes)."""
        x = self.stage3(self.stage2(self.stage1(self.conv1(x))))
        return self.fc(self.dropout(self.pool(self.bn(x).relu()).flatten(1)))  # type: ignore[no-any-return]


def wide_resnet(depth: int, width: int, num_classes: int = 10, *, in_channels: int = 3) -> WideResNet:
    """WRN-``depth``-``width``, without dropout inside the blocks; the depth is 6n + 4.

    >>> from prunefuse.models import wide_resnet
    >>> model = wide_resnet(10, 1)
    """
    return WideResNet(depth, width, num_classes, in_channels=in_channels)


def wide_resnet16_4(num_classes: int = 10, *, in_channels: int = 3) -> WideResNet:
    """WRN-16-4.

    >>> from prunefuse.models import wide_resnet16_4
    >>> model = wide_resnet16_4()
    """
    return WideResNet(16, 4, num_classes, in_channels=in_channels)


def wide_resnet28_10(num_classes: int = 10, *, in_channels: int = 3) -> WideResNet:
    """WRN-28-10.

    >>> from prunefuse.models import wide_resnet28_10
    >>> model = wide_resnet28_10()
    """
    return WideResNet(28, 10, num_classes, in_channels=in_channels)
