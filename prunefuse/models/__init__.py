"""Architectures for experiments on small images, by function or by name."""

from prunefuse.models.layers import ChannelPad
from prunefuse.models.resnet import (
    ResNet,
    resnet8,
    resnet14,
    resnet20,
    resnet32,
    resnet44,
    resnet56,
    resnet110,
    resnet164,
)

__all__ = [
    "ChannelPad",
    "ResNet",
    "resnet8",
    "resnet14",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "resnet164",
]
