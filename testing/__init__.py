"""Scripted games and language models, for tests of anything that plays, argues or learns: see docs/testing.md.

Names are imported when first used, because pytest loads this package at every start as a plugin.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nlrl.testing.faults import FaultyModel
    from nlrl.testing.games import ScriptedGame
    from nlrl.testing.models import ScriptedModel
    from nlrl.testing.runs import write_run
    from nlrl.testing.transcripts import RecordingModel, ReplayModel
    from nlrl.testing.words import WordTokenizer

__all__ = [
    "FaultyModel",
    "RecordingModel",
    "ReplayModel",
    "ScriptedGame",
    "ScriptedModel",
    "WordTokenizer",
    "write_run",
]

_HOMES = {
    "FaultyModel": "faults",
    "RecordingModel": "transcripts",
    "ReplayModel": "transcripts",
    "ScriptedGame": "games",
    "ScriptedModel": "models",
    "WordTokenizer": "words",
    "write_run": "runs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
