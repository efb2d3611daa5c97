"""Whom a process has started, however they have tried to leave it (Linux)."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class _Entry(NamedTuple):
    parent: int
    session: int
    ended: bool


def family(leader: int) -> list[int]:
    """Living processes of the session that `leader` leads, their descendants, and the sessions that those lead.

    Daemons stay in their session when their parent dies; who opens a session of its own is still somebody's child.
    Children are told from strangers by the process table alone, so those of a leader that is gone are found by
    their session only.
    """
    table = _process_table()
    found, sessions = set[int](), {leader}
    while True:
        new = {
            pid
            for pid, entry in table.items()
            if pid not in found and (entry.session in sessions or entry.parent in found or pid == leader)
        }
        if not new:
            return sorted(pid for pid in found if not table[pid].ended)
        found |= new
        sessions |= {pid for pid in new if table[pid].session == pid}


def _process_table() -> dict[int, _Entry]:
    table = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):  # it ended while we looked
                state, parent, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
                table[int(folder.name)] = _Entry(int(parent), int(session), state in "ZX")
    return table
