"""From a text to numbers of words, without anything that has to be fetched."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from torch import Tensor

Tokenize = Callable[[str], Sequence[int]]

FILLING, UNKNOWN = 0, 1
"""The numbers of no word and of words that the vocabulary does not have."""
LONGEST = 256  # words of a text, where nothing is said
# Scripts that put no blanks between words: each character is one.
_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"


def words_of(text: str) -> list[str]:
    """The words of a text: runs of letters, digits and their marks, in lower case; every other visible character is one.

    >>> from prunefuse.data import words_of
    >>> words_of("Don't panic: 42!")
    ["don't", 'panic', ':', '42', '!']

    An apostrophe between letters is part of the word. Chinese characters and kana are a word each. Unicode's variants of a
    character (NFKC) are the same.
    """
    return _pattern().findall(unicodedata.normalize("NFKC", text).casefold())


@cache
def _pattern() -> re.Pattern[str]:
    # Marks, such as vowel signs, are no letters to `re`.
    marks = "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c)[0] == "M")
    letter = rf"(?:(?![{_ALONE}_])\w|[{marks}])"
    return re.compile(rf"[{_ALONE}]|{letter}+(?:['\u2019]{letter}+)*|[^\w\s]|_")


@dataclass(frozen=True)
class Vocabulary:
    """The words that have a number of their own, from 2 on; 0 is no word, and 1 any other word.

    >>> from prunefuse.data import Vocabulary
    >>> vocabulary = Vocabulary.of(["a rose is a rose", "a dog"], 4)
    >>> vocabulary.words, vocabulary("a cat")
    (('a', 'rose'), [2, 1])
    """

    words: tuple[str, ...]

    @classmethod
    def of(cls, texts: Iterable[str], size: int) -> Vocabulary:
        """The most frequent words of texts, so many that there are ``size`` numbers, 0 and 1 included; ties by the alphabet."""
        counts = Counter[str]()
        for text in texts:
            counts.update(words_of(text))
        ordered = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(tuple(ordered[: max(size - 2, 0)]))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words, 2)}

    def __len__(self) -> int:
        """How many numbers there are, 0 and 1 included."""
        return len(self.words) + 2

    def __call__(self, text: str) -> list[int]:
        """The numbers of the words of a text."""
        known = self._numbers
        return [known.get(word, UNKNOWN) for word in words_of(text)]


def numbered(
    texts: Sequence[str], names: Sequence[str], tokenize: Tokenize, size: int, length: int | None
) -> Tensor:
    """(N, L) int32 numbers of words, filled with 0; a text without words is one unknown word.

    Args:
        texts: N texts.
        names: What they are called, for messages.
        tokenize: From a text to numbers of words.
        size: Numbers are below it.
        length: L; longer texts are cut. None is the longest text, at most `LONGEST`.

    Raises:
        TypeError: the tokenizer gives something else than whole numbers.
        ValueError: it gives a number that is out of range, or fails.
    """
    rows = []
    for text, name in zip(texts, names, strict=True):
        try:
            given = tokenize(text)
        except Exception as error:  # of the user's function
            told = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(f"tokenizer failed for text {name}: {told}") from error
        rows.append(_row(given, name, size, length or LONGEST))
    width = length or max(map(len, rows), default=1)
    found = np.zeros((len(rows), width), np.int32)
    for place, row in enumerate(rows):
        found[place, : len(row)] = row
    return torch.from_numpy(found)


def _row(given: Sequence[int], name: str, size: int, length: int) -> np.ndarray:
    row = np.asarray(given)
    if row.size == 0:
        return np.array([UNKNOWN], np.int32)
    if row.ndim != 1 or row.dtype.kind not in "iu":
        raise TypeError(
            f"tokenizer must give a list of whole numbers, got {type(given).__name__} for text {name}"
        )
    if row.min() < 0 or row.max() >= size:
        outside = int(row.min()) if row.min() < 0 else int(row.max())
        raise ValueError(
            f"tokenizer must give numbers in [0, {size}), got {outside} for text {name} (--vocabulary is how many there are)"
        )
    return row[:length].astype(np.int32)
