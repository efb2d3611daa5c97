"""Keys stay in the environment: configs name the variable, and what looks like a key in a config is refused.

A config is written beside the results, sent to trackers and printed, so a key in it would be in all of these places.
Messages name the field and never show its value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from pydantic_core import PydanticCustomError

SECRET = "secret"
"""Type of the complaint; whoever prints it must not print the value."""
_NAMES = re.compile(
    r"^(?:key|token)$|(?:^|_)(?:(?:api|access|secret|private|auth|subscription)_?keys?|pass(?:word|wd|phrase)?|secrets?|credentials?"
    r"|authori[sz]ation|bearer|(?:access|auth|api|bearer|refresh|hf|session)_?tokens?|cookies?)$",
    re.IGNORECASE,
)
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")


def refuse_keys(options: Any, field: str) -> None:
    """Refuses tables with a field that is named like a key, however deep, unless it is empty.

    Raises:
        PydanticCustomError: names the field.
    """
    for name in _named_like_keys(options, field):
        raise PydanticCustomError(
            SECRET,
            "{name} looks like a key; keys are never part of a config: put it into an environment variable and its "
            "name into api_key_env",  # pyright: ignore[reportArgumentType]
            {"name": name},
        )


def _named_like_keys(value: Any, place: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            here = f"{place}.{name}"
            words = re.sub(r"(?<=[a-z])(?=[A-Z])|[^A-Za-z0-9]+", "_", str(name))
            if _NAMES.search(words) and isinstance(inner, str) and inner:
                yield here
            yield from _named_like_keys(inner, here)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _named_like_keys(item, place)


def variable_name(name: str) -> str:
    """The name of an environment variable, or empty.

    Raises:
        PydanticCustomError: it is none; people put the key itself there.
    """
    if name and not _VARIABLE.fullmatch(name):
        raise PydanticCustomError(
            SECRET,
            "must be the name of an environment variable, in capitals, such as OPENAI_API_KEY; the key itself belongs "
            "into that variable",
        )
    return name


def plain_address(url: str) -> str:
    """An address without a key or a password in it.

    Raises:
        PydanticCustomError: it has one.
    """
    try:
        parts = urlsplit(url)
        held = "@" in url or any(_NAMES.search(name.replace("-", "_")) for name, _ in parse_qsl(parts.query))
    except ValueError:
        held = "@" in url
    if held:
        raise PydanticCustomError(
            SECRET, "must hold neither a password nor a key; the key belongs into the variable that api_key_env names"
        )
    return url
