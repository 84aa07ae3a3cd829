"""CIFAR ResNets (He et al. 2016): three stages of 16, 32 and 64 channels, for images of about 32x32.

A depth of 6n + 2 has n basic blocks per stage. ResNet-164 has 18 bottleneck blocks per stage (depth 9n + 2,
each stage four times as wide at its output); activations follow the norms, as in the shallower ones.
Shortcut "A" pads the new channels with zeros, half on each side, and has no parameters; shortcut "B" is a 1x1
convolution with batch norm. Both leave the shortcut alone where the shape does not change.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from prunefuse._options import one_of
from prunefuse.models._layers import ChannelPad, init_convolutions_

Shortcut = Literal["A", "B"]


class PadShortcut(nn.Module):
    """Shortcut A: every ``stride``-th pixel, and zero channels on both sides."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        left = (out_channels - in_channels) // 2
        self.stride = stride
        self.pad = ChannelPad(left, out_channels - in_channels - left)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out_channels, H / stride, W / stride)."""
        return self.pad(x[:, :, :: self.stride, :: self.stride])  # type: ignore[no-any-return]


def _shortcut(kind: Shortcut, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if in_channels == out_channels and stride == 1:
        return nn.Identity()
    if kind == "A":
        return PadShortcut(in_channels, out_channels, stride)
    conv = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(shortcut, in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, width, H / stride, W / stride)."""
        out = self.bn1(self.conv1(x)).relu()
        out = self.bn2(self.conv2(out))
        return (out + self.shortcut(x)).relu()  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up to four times the width, and a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(shortcut, in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 4 * width, H / stride, W / stride)."""
        out = self.bn1(self.conv1(x)).relu()
        out = self.bn2(self.conv2(out)).relu()
        out = self.bn3(self.conv3(out))
        return (out + self.shortcut(x)).relu()  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """A CIFAR ResNet: a stem, three stages of ``blocks`` blocks each, global average pooling and a classifier.

    >>> from prunefuse.models import resnet8
    >>> resnet8(in_channels=1)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])

    References:
        He et al. 2016, *Deep Residual Learning for Image Recognition*.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: int,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        shortcut: Shortcut = "A",
    ) -> None:
        super().__init__()
        one_of("A", "B")("shortcut", shortcut)
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        channels = 16
        stages = []
        for width, stride in ((16, 1), (32, 2), (64, 2)):
            layers: list[nn.Module] = []
            for i in range(blocks):
                layers.append(block(channels, width, stride if i == 0 else 1, shortcut))
                channels = width * block.expansion
            stages.append(nn.Sequential(*layers))
        self.stage1, self.stage2, self.stage3 = stages
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.0)  # `build` sets the rate
        self.fc = nn.Linear(channels, num_classes)
        init_convolutions_(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> logits (N, num_classes)."""
        x = self.bn1(self.conv1(x)).relu()
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.fc(self.dropout(self.pool(x).flatten(1)))  # type: ignore[no-any-return]


def resnet8(num_classes: int = 10, *, in_channels: int = 3, shortcut: Shortcut = "A") -> ResNet:
    """A `ResNet` of one basic block per stage; SVP's proxy for the shallow targets.

    >>> from prunefuse.models import resnet8
    >>> model = resnet8(in_channels=1)
    """
    return ResNet(BasicBlock, 1, num_classes, in_channels=in_channels, shortcut=shortcut)


def resnet14(num_classes: int = 10, *, in_channels: int = 3, shortcut: Shortcut = "A") -> ResNet:
    """A `ResNet` of two basic blocks per stage.

    >>> from prunefuse.models import resnet14
    >>> model = resnet14(num_classes=100)
    """
    return ResNet(BasicBlock, 2, num_classes, in_channels=in_channels, shortcut=shortcut)


def resnet20(num_classes: int = 10, *, in_channels: int = 3, shortcut: Shortcut = "A") -> ResNet:
    """A `ResNet` of three basic blocks per stage.

    >>> from prunefuse.models import resnet20
    >>> sum(p.numel() for p in resnet20().parameters())
    269722
    """
    return ResNet(BasicBlock, 3, num_classes, in_channels=in_channels, shortcut=shortcut)


def resnet32(num_classes: int = 10, *, in_channels: int = 3, shortcut: Shortcut = "A") -> ResNet:
    """A `ResNet` of five basic blocks per stage.

    >>> from prunefuse.models import resnet32
    >>> model = resnet32(shortcut="B")
    """
    return ResNet(BasicBlock, 5, num_classes, in_channels=in_channels, shortcut=shortcut)


def resnet44(num_classes: int = 10, *, in_channels: int = 3, shortcut: Shortcut = "A") -> ResNet:
    """A `ResNet` of seven basic blocks per stage.

    >>> from prunefuse.models import resnet44
    >>> model = resnet44(num_classes=100)
    """
    return ResNet(BasicBlock, 7, num_classes, in_channels=in_channels, shortcut=shortcut)


def resnet56(num_classes: int = 10, *, in_channels: int = 3, shortcut: Shortcut = "A") -> ResNet:
    """A `ResNet` of nine basic blocks per stage; the main network of the PruneFuse experiments.

    >>> from prunefuse.models import resnet56
    >>> sum(p.numel() for p in resnet56().parameters())
    853018
    """
    return ResNet(BasicBlock, 9, num_classes, in_channels=in_channels, shortcut=shortcut)


def resnet110(num_classes: int = 10, *, in_channels: int = 3, shortcut: Shortcut = "A") -> ResNet:
    """A `ResNet` of eighteen basic blocks per stage.

    >>> from prunefuse.models import resnet110
    >>> model = resnet110()
    """
    return ResNet(BasicBlock, 18, num_classes, in_channels=in_channels, shortcut=shortcut)


def resnet164(num_classes: int = 10, *, in_channels: int = 3, shortcut: Shortcut = "A") -> ResNet:
    """A `ResNet` of eighteen bottleneck blocks per stage, with activations after the norms; see docs/paper.md.

    >>> from prunefuse.models import resnet164
    >>> model = resnet164()
    """
    return ResNet(Bottleneck, 18, num_classes, in_channels=in_channels, shortcut=shortcut)
