"""Scripted games and language models, for tests of anything that plays, argues or learns: see docs/testing.md.

The conformance suites of games and environments, `nlrl.envs.testing`, have their names here, too.

Names are imported when first used, because pytest loads this package at every start as a plugin.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nlrl.envs.testing import check_env, check_game, report_game
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
    "check_env",
    "check_game",
    "report_game",
    "write_run",
]

_HOMES = {
    "FaultyModel": "nlrl.testing.faults",
    "RecordingModel": "nlrl.testing.transcripts",
    "ReplayModel": "nlrl.testing.transcripts",
    "ScriptedGame": "nlrl.testing.games",
    "ScriptedModel": "nlrl.testing.models",
    "WordTokenizer": "nlrl.testing.words",
    "check_env": "nlrl.envs.testing",
    "check_game": "nlrl.envs.testing",
    "report_game": "nlrl.envs.testing",
    "write_run": "nlrl.testing.runs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
