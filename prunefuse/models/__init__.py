"""Architectures for experiments on small images and on texts, by function or by name."""

from prunefuse._checkpoints import Unmatched, load_weights_
from prunefuse.models._layers import ChannelPad
from prunefuse.models._perceptron import MLP, mlp
from prunefuse.models._registry import build, names
from prunefuse.models._resnet import (
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
from prunefuse.models._text import TextCNN, TextTransformer, text_cnn, text_transformer
from prunefuse.models._vgg import (
    VGG,
    vgg11,
    vgg11_bn,
    vgg13,
    vgg13_bn,
    vgg16,
    vgg16_bn,
    vgg19,
    vgg19_bn,
)
from prunefuse.models._wide import WideResNet, wide_resnet, wide_resnet16_4, wide_resnet28_10

__all__ = [
    "MLP",
    "VGG",
    "ChannelPad",
    "ResNet",
    "TextCNN",
    "TextTransformer",
    "Unmatched",
    "WideResNet",
    "build",
    "load_weights_",
    "mlp",
    "names",
    "resnet8",
    "resnet14",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "resnet164",
    "text_cnn",
    "text_transformer",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
    "wide_resnet",
    "wide_resnet16_4",
    "wide_resnet28_10",
]
