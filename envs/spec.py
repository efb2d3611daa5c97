"""Reads names with arguments, `name` or `name(3,key=value,inner(0.5))`, as they stand in configs and records.

Arguments are Python literals where they look like one (`rows=5`, `slippery=True`), otherwise plain strings
(`layout=double_t`, `epsilon(0.25,minimax)`), so a spec needs no quotes. Commas inside brackets or quotes belong to
their argument.
"""

from __future__ import annotations

import ast
from typing import Any, NamedTuple

from nlrl.errors import NLRLError

_OPENING, _CLOSING = "([{", ")]}"
_MOST_CHARACTERS, _DEEPEST = 20_000, 50
"""Of a spec, and of its brackets: Python's own parser and recursion end not far beyond."""


class Call(NamedTuple):
    """A parsed spec."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def parse_call(text: str) -> Call:
    """Reads `name(args...)`.

    Raises:
        NLRLError: the text has no name, unbalanced brackets, an empty argument or a repeated key, or it is too long or
            too deep for a name.
    """
    if len(text) > _MOST_CHARACTERS:
        raise NLRLError(f"{text[:40]!r}... has {len(text):,} characters; a name may have {_MOST_CHARACTERS:,}")
    name, bracket, rest = text.strip().partition("(")
    name = name.strip()
    if not name.replace("-", "_").isidentifier() or (bracket and not rest.endswith(")")):
        raise NLRLError(f"{text!r} is not a name with arguments; write `name` or `name(key=value,...)`")
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for part in _split(rest[:-1], text):
        key, equals, value = part.partition("=")
        if equals and key.strip().isidentifier():
            if key.strip() in kwargs:
                raise NLRLError(f"{text!r} gives {key.strip()!r} twice")
            kwargs[key.strip()] = _value(value.strip())
        elif kwargs:
            raise NLRLError(f"{text!r}: {part!r} has no key, but a keyed argument came before it")
        else:
            args.append(_value(part))
    return Call(name, tuple(args), kwargs)


def _split(inner: str, whole: str) -> list[str]:
    """Splits at commas outside brackets and quotes."""
    if not inner.strip():
        return []
    parts, depth, quote = [""], 0, ""
    for c in inner:
        if quote:
            quote = "" if c == quote else quote
        elif c in "'\"":
            quote = c
        depth += 0 if quote else (c in _OPENING) - (c in _CLOSING)
        if c == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += c
        if depth > _DEEPEST:
            raise NLRLError(f"{whole[:40]!r}... has brackets {depth} deep; a name may have them {_DEEPEST} deep")
        if depth < 0:
            break
    parts = [part.strip() for part in parts]
    if depth or quote or not all(parts):
        raise NLRLError(f"{whole!r} has unbalanced brackets or quotes, or an empty argument")
    return parts


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last two of thousands of operators
        return text
