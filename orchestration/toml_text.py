"""Plain values as TOML, which Python reads but does not write."""

from __future__ import annotations

import re
from typing import Any


def toml_text(values: dict[str, Any]) -> str:
    """TOML that reads back equal. Values are strings, numbers, booleans, lists of these, and tables."""
    lines: list[str] = []
    _write_table(lines, [], values)
    return "\n".join(lines) + "\n"


def _write_table(lines: list[str], path: list[str], table: dict[str, Any]) -> None:
    if path:
        lines.append(f"\n[{'.'.join(map(_toml_key, path))}]")
    for key, value in table.items():
        if not isinstance(value, dict):
            lines.append(f"{_toml_key(key)} = {_toml_value(value)}")
    for key, value in table.items():
        if isinstance(value, dict):
            _write_table(lines, [*path, key], value)


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


_ESCAPED = re.compile(r'["\\\x00-\x1f\x7f]')
"""Characters that a basic string may not hold as they are."""
_SHORT = {'"': '\\"', "\\": "\\\\", "\n": "\\n"}


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + _ESCAPED.sub(lambda found: _SHORT.get(found[0]) or f"\\u{ord(found[0]):04x}", value) + '"'
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, dict):  # within a list; elsewhere a table has its own lines
        return "{" + ", ".join(f"{_toml_key(key)} = {_toml_value(item)}" for key, item in value.items()) + "}"
    return repr(value)
