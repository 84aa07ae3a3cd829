"""Models by name, for the command line and for run folders."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from torch import nn

from prunefuse._options import part
from prunefuse.models import _perceptron, _resnet, _vgg, _wide

_FACTORIES: dict[str, Callable[..., nn.Module]] = {
    f.__name__: f
    for f in (
        _resnet.resnet8,
        _resnet.resnet14,
        _resnet.resnet20,
        _resnet.resnet32,
        _resnet.resnet44,
        _resnet.resnet56,
        _resnet.resnet110,
        _resnet.resnet164,
        _wide.wide_resnet16_4,
        _wide.wide_resnet28_10,
        _vgg.vgg11,
        _vgg.vgg11_bn,
        _vgg.vgg13,
        _vgg.vgg13_bn,
        _vgg.vgg16,
        _vgg.vgg16_bn,
        _vgg.vgg19,
        _vgg.vgg19_bn,
        _perceptron.mlp,
    )
}
_TORCHVISION = "torchvision:"


def names() -> tuple[str, ...]:
    """The names that `build` knows, besides ``torchvision:<name>``.

    >>> from prunefuse.models import names
    >>> "resnet56" in names()
    True
    """
    return tuple(_FACTORIES)


def build(
    name: str,
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    image_size: tuple[int, int] = (32, 32),
    dropout: float = 0.0,
    **options: Any,
) -> nn.Module:
    """A freshly initialized model by name.

    >>> from prunefuse.models import build
    >>> model = build("resnet20", num_classes=100, shortcut="B")

    Args:
        name: One of `names()`, or ``torchvision:<name>`` for a classifier of torchvision without weights.
        num_classes: Width of the output.
        in_channels: Channels of the images. Torchvision's models take 3.
        image_size: Height and width of the images. Only the MLP's shape depends on them.
        dropout: Rate of the dropout before the last linear layer, in [0, 1). Torchvision's models take it where they have
            dropout.
        options: Arguments for the model's function, such as ``shortcut="B"`` or ``hidden=(64, 64)``.

    Raises:
        ValueError: The name is unknown, the rate is out of range, or ``in_channels`` is not 3 for a model of torchvision.
        TypeError: The model does not take an option.
    """
    part()("dropout", dropout)
    if name.startswith(_TORCHVISION):
        if dropout:
            options["dropout"] = dropout
        return _torchvision(name.removeprefix(_TORCHVISION), num_classes, in_channels, options)
    if name not in _FACTORIES:
        raise ValueError(f"model must be one of {', '.join(names())} or torchvision:<name>, got {name!r}")
    if name == "mlp":
        options["image_size"] = image_size
    model = _FACTORIES[name](num_classes, in_channels=in_channels, **options)
    layer = model.get_submodule("dropout")
    assert isinstance(layer, nn.Dropout)
    layer.p = dropout
    return model


def _torchvision(name: str, num_classes: int, in_channels: int, options: dict[str, Any]) -> nn.Module:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or ["resnet18"]
        raise ValueError(
            f"model must be a classifier of torchvision, such as {', '.join(near)} (torchvision.models.list_models() has "
            f"all), got {name!r}"
        )
    if in_channels != 3:
        raise ValueError(f"in_channels must be 3 for torchvision's models, got {in_channels}")
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    return model
