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


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return repr(value)
