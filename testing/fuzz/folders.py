"""Folders to put damaged files into: one for each process, gone when it ends."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory


@cache
def _home() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="nlrl-fuzz-")


def folder(name: str) -> Path:
    """The folder of that name."""
    path = Path(_home().name) / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def file_with(data: bytes, name: str) -> Path:
    """A file that holds the data and nothing else."""
    path = Path(_home().name) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
