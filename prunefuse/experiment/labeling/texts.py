"""The texts of a file: which there are, and how a network and a person see them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunefuse.data._texts import TextFile, read_texts
from prunefuse.data._words import Tokenize, Vocabulary, numbered
from prunefuse.errors import ConfigError
from prunefuse.experiment.labeling.config import LabelConfig
from prunefuse.selection._custom import load_function

if TYPE_CHECKING:
    from torch import Tensor

    from prunefuse.data import Data


@dataclass(frozen=True)
class Texts:
    """The texts of a file.

    Attributes:
        base: The file.
        text: Its column of texts.
        id: Its column of names; empty where these are numbers of rows.
        config: How texts are read.
        vocabulary: The words that have numbers; empty with a tokenizer of the user's.
        digests: By number of a row, the hash of its text when it was taken in; empty where texts have names.
        labeled: Whether its column ``label`` has labels one has, also of texts that come later.
    """

    base: Path
    text: str
    id: str
    config: LabelConfig
    vocabulary: Vocabulary
    digests: Mapping[str, str]
    labeled: bool = False

    noun = "text"
    key = "id"

    @classmethod
    def begin(cls, base: Path, config: LabelConfig) -> tuple[Texts, LabelConfig]:
        """The texts of a new project, and the configuration with what was chosen by them.

        Raises:
            ConfigError: the file is not such a one.
        """
        table = _read(base, config.text, config.id)
        texts = [one for one in table.texts.values() if one.strip()]
        own = config.tokenizer is not None
        vocabulary = Vocabulary(()) if own else Vocabulary.of(texts, config.vocabulary)
        made = cls(base, table.column, table.id_column, config, vocabulary, {})
        if config.length is None:
            config = replace(config, length=made._numbered(texts, texts, None).shape[1])
        config = replace(config, text=table.column, id=table.id_column or None)
        return replace(made, config=config), config

    def listed(self) -> Iterator[str]:
        """The names of the texts that are there; none where the file is not."""
        if self.base.is_file():
            yield from self._table.ids

    def broken(self, names: Sequence[str], *, skip: bool) -> tuple[str, ...]:
        """The texts that are empty.

        Raises:
            ConfigError: there are some, and they are not to be skipped.
        """
        found = tuple(name for name in names if not self._table.texts[name].strip())
        if found and not skip:
            lines = ", ".join(self._table.where[name] for name in found[:5]) + (", ..." if found[5:] else "")
            raise ConfigError(
                f"{self.base}: {self.text} must have texts that are not empty, got {len(found)} that are, {lines} "
                "(--skip-broken leaves them out)"
            )
        return found

    def check_standing(self) -> None:
        """Raise ``ConfigError`` where rows that were taken in have another text by now: their numbers are their names."""
        moved = [
            name
            for name, digest in self.digests.items()
            if name in self._table.texts and self._digest(name) != digest
        ]
        if moved:
            some = ", ".join(moved[:5]) + (", ..." if moved[5:] else "")
            raise ConfigError(
                f"{self.base} must have the texts it had, with new ones at its end, got others in rows {some}: where texts "
                "have no names, rows may not move (start with --id COLUMN)"
            )

    def hashes(self, names: Sequence[str]) -> dict[str, str]:
        """The hash of each text, where names are numbers of rows."""
        return {} if self.id else {name: self._digest(name) for name in names}

    def size(self, names: Sequence[str]) -> str:
        """How a network reads them, in words."""
        known = "" if self.config.tokenizer is not None else f", {len(self.vocabulary.words)} of them known"
        return f"texts are read as {self.config.length} words{known}"

    def labels(self) -> dict[str, str]:
        """What the column ``label`` of the file says, by name of a text."""
        found = next((told for name, told in self._table.others.items() if name.casefold() == "label"), None)
        if found is None:
            raise ConfigError(f"{self.base}: columns must have label for --labels, got none")
        return {name: label.strip() for name, label in found.items()}

    def where(self, name: str) -> str:
        """In which line a text is."""
        return self._table.where[name]

    def seen(self, name: str) -> str:
        """A text as a person sees it; empty where it is gone."""
        return self._table.texts.get(name, "") if self.base.is_file() else ""

    def copies(self, names: Sequence[str]) -> int:
        """How many texts are the same as an earlier one."""
        return len(names) - len({self._table.texts[name] for name in names})

    def data(self, names: Sequence[str], classes: Sequence[str]) -> Data:
        """The texts as a pool, which is trained on as it is.

        Raises:
            ConfigError: a tokenizer gives something else than numbers of words.
        """
        from prunefuse.data import Data, TensorImages

        rows = self._numbered([self._table.texts[name] for name in names], names, self.config.length)
        pool = TensorImages(rows, as_is=True)
        return Data(pool, pool, None, len(classes), (rows.shape[1],), str(self.base), vocabulary=self._size)

    def kept(self) -> bytes:
        """The vocabulary as it is kept."""
        return (json.dumps(list(self.vocabulary.words), ensure_ascii=False, indent=0) + "\n").encode()

    def _numbered(self, texts: Sequence[str], names: Sequence[str], length: int | None) -> Tensor:
        try:
            return numbered(texts, names, self._tokenize, self._size, length)
        except (TypeError, ValueError) as error:
            raise ConfigError(str(error)) from error

    @cached_property
    def _table(self) -> TextFile:
        return _read(self.base, self.text, self.id or None, names=bool(self.id))

    @cached_property
    def _tokenize(self) -> Tokenize:
        if self.config.tokenizer is None:
            return self.vocabulary
        try:
            return load_function(self.config.tokenizer, "tokenizer")
        except ValueError as error:
            raise ConfigError(str(error)) from error

    @property
    def _size(self) -> int:
        return self.config.vocabulary if self.config.tokenizer is not None else len(self.vocabulary)

    def _digest(self, name: str) -> str:
        return hashlib.sha256(self._table.texts[name].encode()).hexdigest()[:16]


def _read(base: Path, text: str | None, id: str | None, *, names: bool = True) -> TextFile:
    try:
        facts = base.stat()
        return _cached(base, text, id, names, facts.st_mtime_ns, facts.st_size)
    except OSError as error:
        raise ConfigError(f"{base} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error


@lru_cache(maxsize=2)
def _cached(base: Path, text: str | None, id: str | None, names: bool, *facts: Any) -> TextFile:
    return read_texts(base, text, id if names else "")
