"""Phrases as data: a TOML file of regular expressions with named words.

1. `[words]` names fragments; later ones may use earlier ones. Every group (`[[leaks]]`, `[[claims]]`) has `patterns`
   and what else its reader needs.
2. In a pattern `<name>` stands for a word, a space for any white space and ` ?` for none or some. Case does not matter,
   except inside `(?-i:...)`. `(?P<name>...)` is a named group, as ever.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def load_patterns(
    path: Path, group: str, given: Mapping[str, str] | None = None
) -> list[tuple[dict[str, Any], re.Pattern[str]]]:
    """Every pattern of a group's tables, in order, with the table it stands in.

    Args:
        given: words that the caller knows, such as the names of a game's players; the file's own may use them.

    Raises:
        re.error: a pattern is no regular expression.
    """
    file = tomllib.loads(path.read_text(encoding="utf-8"))
    words: dict[str, str] = dict(given or {})
    for name, word in file["words"].items():
        words[name] = _filled(word, words)
    return [
        (table, re.compile(_filled(pattern, words).replace(" ?", r"\s*").replace(" ", r"\s+"), re.IGNORECASE))
        for table in file[group]
        for pattern in table["patterns"]
    ]


def _filled(pattern: str, words: dict[str, str]) -> str:
    for name, word in words.items():
        pattern = re.sub(rf"(?<!\?P)<{name}>", lambda _, word=word: word, pattern)
    return pattern
