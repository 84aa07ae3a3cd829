"""Models by name, for the command line and for run folders."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

from torch import nn

from prunefuse._names import TEXT_MODELS
from prunefuse._options import part
from prunefuse.models import _perceptron, _resnet, _text, _vgg, _wide

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
        _text.text_cnn,
        _text.text_transformer,
    )
}
_TORCHVISION, _TIMM = "torchvision:", "timm:"


def names() -> tuple[str, ...]:
    """The names that `build` knows, besides ``torchvision:<name>`` and ``timm:<name>``.

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
        name: One of `names()`, or ``torchvision:<name>`` or ``timm:<name>`` for a classifier of theirs without weights.
        num_classes: Width of the output.
        in_channels: Channels of the images. Torchvision's models take 3. Networks for texts have none.
        image_size: Height and width of the images. The MLP's shape depends on them, and that of timm's models for one size.
        dropout: Rate of the dropout before the last linear layer, in [0, 1). Torchvision's models take it where they have
            dropout.
        options: Arguments for the model's function, such as ``shortcut="B"`` or ``hidden=(64, 64)``. Networks for texts have
            ``vocabulary`` and ``length``.

    Raises:
        ValueError: The name is unknown, the rate is out of range, or ``in_channels`` is not 3 for a model of torchvision. Or
            timm is not installed.
        TypeError: The model does not take an option.
    """
    part()("dropout", dropout)
    if name.startswith(_TORCHVISION):
        if dropout:
            options["dropout"] = dropout
        return _torchvision(name.removeprefix(_TORCHVISION), num_classes, in_channels, options)
    if name.startswith(_TIMM):
        options = {"num_classes": num_classes, "in_chans": in_channels, **options}
        if dropout:
            options["drop_rate"] = dropout
        return _timm(name.removeprefix(_TIMM), image_size, options)
    if name not in _FACTORIES:
        raise ValueError(
            f"model must be one of {', '.join(names())}, torchvision:<name> or timm:<name>, got {name!r}"
        )
    if name == "mlp":
        options["image_size"] = image_size
    if name not in TEXT_MODELS:
        options["in_channels"] = in_channels
    model = _FACTORIES[name](num_classes, **options)
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


def _timm(name: str, image_size: tuple[int, int], options: dict[str, Any]) -> nn.Module:
    if importlib.util.find_spec("timm") is None:
        raise ValueError(f"model timm:{name} needs the package timm, which is not installed")
    timm = importlib.import_module("timm")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5) or ["resnet18"]
        raise ValueError(
            f"model must be a classifier of timm, such as {', '.join(near)} (timm.list_models() has all), got {name!r}"
        )
    facts = timm.get_pretrained_cfg(name)
    if facts is not None and facts.fixed_input_size:
        options = {"img_size": image_size, **options}
    try:
        model: nn.Module = timm.create_model(name, **options)
    except TypeError as error:
        if "'img_size'" not in str(error):
            raise
        del options["img_size"]  # its one size is in its code
        model = timm.create_model(name, **options)
    return model
