"""Measured numbers: what they are, on which machine, and how they are printed."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

LIBRARIES = ("numpy", "numba", "open_spiel", "pettingzoo", "textarena", "pgx", "jax")


@dataclass
class Figure:
    """One number."""

    section: str
    what: str
    """What was measured, e.g. a game."""
    name: str
    """Whose it is: a library; or which of several things of ours."""
    value: float
    unit: str
    ratio: float | None = None
    """Ours over this peer's, from the same rounds."""
    target: str = ""
    met: bool | None = None
    note: str = ""


def show(figure: Figure, before: Figure | None) -> None:
    """Prints a line, under what was measured if that is not what it was `before`."""
    if before is None or (before.section, before.what) != (figure.section, figure.what):
        print(f"  {figure.what}")
    number = f"{figure.value:,.2f}" if figure.value < 1000 else f"{figure.value:,.0f}"
    ours = "" if figure.ratio is None else f"nlrl is {figure.ratio:.2f}x"
    verdict = "" if figure.met is None else f"{figure.target}: {'met' if figure.met else 'MISSED'}"
    note = f"({figure.note})" if figure.note else ""
    print(f"    {figure.name:46}{number:>12} {figure.unit:8} {ours:17} {verdict:21} {note}".rstrip(), flush=True)


def machine() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{os.cpu_count()} cores of an {model}"


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found
