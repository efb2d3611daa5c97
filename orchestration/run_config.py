"""When two configs are the same, and how they differ: by dotted fields, as people write them."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from nlrl.errors import NLRLError

_SHOWN = 3
"""So many differing fields are named; more would hide the point."""


def check_same(path: Path, config: Mapping[str, Any], ignore: Iterable[str] = ()) -> None:
    """Refuses to resume a run whose stored config differs from `config`.

    Raises:
        NLRLError: names the first differing fields with both values, and what would be right.
    """
    try:
        stored = tomllib.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise NLRLError(
            f"{path}: not a config this program wrote ({error}). Put it back, or use another `out`"
        ) from error
    ignored = tuple(ignore)
    different = [line for field, line in differences(stored, config) if not _is_under(field, ignored)]
    if different:
        more = f" (and {len(different) - _SHOWN} more)" if len(different) > _SHOWN else ""
        raise NLRLError(
            f"{path.parent} was made by another config: {'; '.join(different[:_SHOWN])}{more}. "
            f"Use another `out`, or the same config ({path})"
        )


def check_text(text: str, config: Mapping[str, Any]) -> None:
    """The text that is stored must say what the config says, or no run could ever be resumed.

    Raises:
        ValueError: it does not; a fault of the caller, not of the user.
    """
    if different := [line for _, line in differences(tomllib.loads(text), config)]:
        raise ValueError(f"config_text differs from config_dict: {different[0]}")


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields (dotted field, "field is 1 there and 2 here") for each field that differs; None counts as not set."""
    old, new = dict(_flatten(there)), dict(_flatten(here))
    for field in [*new, *(field for field in old if field not in new)]:
        if old.get(field) != new.get(field):
            yield field, f"{field} is {_show(old, field)} there and {_show(new, field)} here"


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", _plain(value)


def _plain(value: Any) -> Any:
    """What a value becomes when it goes through TOML."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items() if item is not None}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in (value if isinstance(value, list | tuple) else sorted(value))]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def _show(fields: Mapping[str, Any], field: str) -> str:
    return repr(fields[field]) if field in fields else "not set"


def _is_under(field: str, prefixes: tuple[str, ...]) -> bool:
    return any(field == prefix or field.startswith(f"{prefix}.") for prefix in prefixes)
