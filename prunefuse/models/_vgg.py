"""VGG networks for small images: the convolutions of Simonyan and Zisserman (2015), one linear layer."""

from __future__ import annotations

from torch import Tensor, nn

from prunefuse.models._layers import init_convolutions_

# Convolutions per resolution; the widths are 64, 128, 256, 512, 512.
_CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(nn.Module):
    """A VGG: five groups of 3x3 convolutions, each followed by 2x2 max pooling, then pooling and a classifier.

    >>> from prunefuse.models import VGG
    >>> VGG(11)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])

    References:
        Simonyan and Zisserman 2015, *Very Deep Convolutional Networks for Large-Scale Image Recognition*.
    """

    def __init__(
        self, depth: int, num_classes: int = 10, *, in_channels: int = 3, batch_norm: bool = False
    ) -> None:
        super().__init__()
        if depth not in _CONVOLUTIONS:
            raise ValueError(f"depth must be one of {sorted(_CONVOLUTIONS)}, got {depth}")
        layers: list[nn.Module] = []
        channels = in_channels
        for count, width in zip(_CONVOLUTIONS[depth], (64, 128, 256, 512, 512), strict=True):
            for _ in range(count):
                layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=not batch_norm))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU())
                channels = width
            # Rounding up changes nothing at 32x32 and lets images below 32x32 through all five poolings.
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.0)  # `build` sets the rate
        self.fc = nn.Linear(channels, num_classes)
        init_convolutions_(self)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> logits (N, num_classes)."""
        return self.fc(self.dropout(self.pool(self.features(x)).flatten(1)))  # type: ignore[no-any-return]


def vgg11(num_classes: int = 10, *, in_channels: int = 3) -> VGG:
    """VGG-11 without norm layers.

    >>> from prunefuse.models import vgg11
    >>> model = vgg11(num_classes=100)
    """
    return VGG(11, num_classes, in_channels=in_channels)


def vgg13(num_classes: int = 10, *, in_channels: int = 3) -> VGG:
    """VGG-13 without norm layers.

    >>> from prunefuse.models import vgg13
    >>> model = vgg13(num_classes=100)
    """
    return VGG(13, num_classes, in_channels=in_channels)


def vgg16(num_classes: int = 10, *, in_channels: int = 3) -> VGG:
    """VGG-16 without norm layers.

    >>> from prunefuse.models import vgg16
    >>> model = vgg16(num_classes=100)
    """
    return VGG(16, num_classes, in_channels=in_channels)


def vgg19(num_classes: int = 10, *, in_channels: int = 3) -> VGG:
    """VGG-19 without norm layers.

    >>> from prunefuse.models import vgg19
    >>> model = vgg19(num_classes=100)
    """
    return VGG(19, num_classes, in_channels=in_channels)


def vgg11_bn(num_classes: int = 10, *, in_channels: int = 3) -> VGG:
    """VGG-11 with batch norm.

    >>> from prunefuse.models import vgg11_bn
    >>> model = vgg11_bn(num_classes=100)
    """
    return VGG(11, num_classes, in_channels=in_channels, batch_norm=True)


def vgg13_bn(num_classes: int = 10, *, in_channels: int = 3) -> VGG:
    """VGG-13 with batch norm.

    >>> from prunefuse.models import vgg13_bn
    >>> model = vgg13_bn(num_classes=100)
    """
    return VGG(13, num_classes, in_channels=in_channels, batch_norm=True)


def vgg16_bn(num_classes: int = 10, *, in_channels: int = 3) -> VGG:
    """VGG-16 with batch norm.

    >>> from prunefuse.models import vgg16_bn
    >>> model = vgg16_bn(num_classes=100)
    """
    return VGG(16, num_classes, in_channels=in_channels, batch_norm=True)


def vgg19_bn(num_classes: int = 10, *, in_channels: int = 3) -> VGG:
    """VGG-19 with batch norm.

    >>> from prunefuse.models import vgg19_bn
    >>> model = vgg19_bn(num_classes=100)
    """
    return VGG(19, num_classes, in_channels=in_channels, batch_norm=True)
