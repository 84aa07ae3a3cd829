"""What people may answer: a class; or, with several labels for each sample, any of them."""

from __future__ import annotations

from collections.abc import Sequence

from prunefuse.data._answers import NONE as NONE
from prunefuse.data._answers import SEPARATOR as SEPARATOR
from prunefuse.data._answers import parts as parts

CANNOT_TELL = "?"


def joined(names: Sequence[str]) -> str:
    """These labels as an answer."""
    return SEPARATOR.join(names) or NONE


def in_order(answer: str, classes: Sequence[str]) -> str:
    """An answer with its labels in the order of the classes, once each.

    Raises:
        ValueError: something is none of the classes, or ``?`` or ``-`` stands beside labels; says what.
    """
    if answer in ("", CANNOT_TELL, NONE):
        return answer
    names = parts(answer)
    for name in names:
        if name not in classes:
            near = [one for one in classes if one.lower() == name.lower()]
            meant = f" (is {near[0]} meant? case counts)" if near else ""
            alone = ", which stands alone" if name in (CANNOT_TELL, NONE) else ""
            raise ValueError(
                f"label must be any of {', '.join(classes)} with {SEPARATOR} between them, {NONE}, {CANNOT_TELL} or empty, "
                f"got {name!r}{alone}{meant}"
            )
    if not names:
        raise ValueError(f"label must be {NONE} where a sample has none, got {answer!r}")
    return joined([one for one in classes if one in names])
