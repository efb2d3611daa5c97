"""Two texts word by word: what one says and the other does not."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from html import escape
from typing import Literal, NamedTuple

_WORDS = re.compile(r"\s+|[^\s]+")

Mark = Literal["same", "only left", "only right"]


class Piece(NamedTuple):
    """Consecutive words of one kind."""

    mark: Mark
    text: str


def word_diff(left: str, right: str) -> list[Piece]:
    """The pieces of both texts in order; the left one is all but `only right`, the right one all but `only left`."""
    a, b = _WORDS.findall(left), _WORDS.findall(right)
    pieces: list[Piece] = []
    for kind, start, end, other_start, other_end in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind == "equal":
            pieces.append(Piece("same", "".join(a[start:end])))
            continue
        if start < end:
            pieces.append(Piece("only left", "".join(a[start:end])))
        if other_start < other_end:
            pieces.append(Piece("only right", "".join(b[other_start:other_end])))
    return pieces


def diff_html(left: str, right: str) -> str:
    """The difference as HTML: struck through and underlined, so that colours are not needed. Texts are escaped."""
    tags = {"same": "span", "only left": "del", "only right": "ins"}
    inner = "".join(f"<{tags[one.mark]}>{escape(one.text)}</{tags[one.mark]}>" for one in word_diff(left, right))
    return f'<div style="white-space: pre-wrap">{inner}</div>'
