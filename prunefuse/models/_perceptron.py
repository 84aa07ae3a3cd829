"""A multi-layer perceptron on flattened images."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn


class MLP(nn.Module):
    """Logits of images: flatten, then linear layers with ReLU between them.

    >>> from prunefuse.models import MLP
    >>> MLP(64, hidden=(32,), num_classes=10)(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 10])
    """

    def __init__(self, in_features: int, hidden: Sequence[int], num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(in_features, width), nn.ReLU()]
            in_features = width
        self.layers = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.0)  # `build` sets the rate
        self.fc = nn.Linear(in_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> logits (N, num_classes)."""
        return self.fc(self.dropout(self.layers(x.flatten(1))))  # type: ignore[no-any-return]


def mlp(
    num_classes: int = 10,
    *,
    in_channels: int = 3,
    image_size: tuple[int, int] = (32, 32),
    hidden: Sequence[int] = (256, 256),
) -> MLP:
    """An `MLP` for images of ``in_channels`` x ``image_size`` (height, width).

    >>> from prunefuse.models import mlp
    >>> model = mlp(10, in_channels=1, image_size=(8, 8), hidden=(64, 64))
    """
    return MLP(in_channels * prod(image_size), hidden, num_classes)
