"""Networks for texts: whole numbers of words in, logits out. 0 is no word, and fills texts that are shorter than others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class TextCNN(nn.Module):
    """Convolutions over words, in blocks of two that halve the length between them, and the maximum over positions.

    >>> from prunefuse.models import TextCNN
    >>> TextCNN(1000, num_classes=4)(torch.tensor([[5, 17, 3, 0], [8, 0, 0, 0]])).shape
    torch.Size([2, 4])

    What fills a text counts for nothing, so a text has the same logits with more or less of it.

    Args:
        vocabulary: How many words there are, 0 included.
        num_classes: Width of the output.
        embedding: Width of the embedding of a word.
        widths: Channels of each block.

    References:
        Conneau et al. 2017, *Very Deep Convolutional Networks for Text Classification*. That one reads characters.
    """

    def __init__(
        self, vocabulary: int, num_classes: int, embedding: int = 64, widths: Sequence[int] = (64, 128)
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, embedding, padding_idx=0)
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        for width in widths:
            for _ in range(2):
                self.convolutions.append(nn.Conv1d(embedding, width, 3, padding=1, bias=False))
                self.norms.append(nn.BatchNorm1d(width))
                embedding = width
        self.dropout = nn.Dropout(0.0)  # `build` sets the rate
        self.fc = nn.Linear(embedding, num_classes)

    def forward(self, words: Tensor) -> Tensor:
        """(N, L) numbers of words -> logits (N, num_classes)."""
        there = (words != 0).unsqueeze(1).float()
        x = self.words(words).transpose(1, 2)
        for index, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            if index and index % 2 == 0:
                x, there = (functional.max_pool1d(one, 2, ceil_mode=True) for one in (x, there))
            x = functional.relu(norm(convolution(x))) * there
        return self.fc(self.dropout(x.amax(2)))  # type: ignore[no-any-return]


class TextTransformer(nn.Module):
    """An encoder over words, and the mean over those that are there.

    >>> from prunefuse.models import TextTransformer
    >>> TextTransformer(1000, num_classes=4, length=8)(torch.tensor([[5, 17, 3, 0], [8, 0, 0, 0]])).shape
    torch.Size([2, 4])

    Args:
        vocabulary: How many words there are, 0 included.
        num_classes: Width of the output.
        length: Words of a text, at most.
        width: Width of the layers.
        heads: Heads of each attention.
        depth: How many layers there are.
    """

    def __init__(
        self,
        vocabulary: int,
        num_classes: int,
        length: int = 256,
        width: int = 64,
        heads: int = 4,
        depth: int = 2,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width, padding_idx=0)
        self.places = nn.Embedding(length, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True)
            for _ in range(depth)
        )
        self.dropout = nn.Dropout(0.0)  # `build` sets the rate
        self.fc = nn.Linear(width, num_classes)

    def forward(self, words: Tensor) -> Tensor:
        """(N, L) numbers of words -> logits (N, num_classes)."""
        places = torch.arange(words.shape[1], device=words.device)
        hidden = (words == 0) & (places > 0)  # never all, which an attention has no mean of
        x = self.words(words) + self.places(places)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=hidden)
        there = (~hidden).unsqueeze(2).float()
        return self.fc(self.dropout((x * there).sum(1) / there.sum(1)))  # type: ignore[no-any-return]


def text_cnn(
    num_classes: int = 2,
    *,
    vocabulary: int = 20_000,
    length: int = 256,
    embedding: int = 64,
    widths: Sequence[int] = (64, 128),
) -> TextCNN:
    """A `TextCNN`; ``length``, the words of a text, means nothing to it.

    >>> from prunefuse.models import text_cnn
    >>> model = text_cnn(4, vocabulary=1000)
    """
    return TextCNN(vocabulary, num_classes, embedding, widths)


def text_transformer(
    num_classes: int = 2,
    *,
    vocabulary: int = 20_000,
    length: int = 256,
    width: int = 64,
    heads: int = 4,
    depth: int = 2,
) -> TextTransformer:
    """A `TextTransformer` for texts of up to ``length`` words.

    >>> from prunefuse.models import text_transformer
    >>> model = text_transformer(4, vocabulary=1000, length=32)
    """
    return TextTransformer(vocabulary, num_classes, length, width, heads, depth)
