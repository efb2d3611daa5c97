"""The conformance suites: what a game must keep so that results on it mean something.

1. `check_game(make)` plays a `Game` at random and holds every method to its promise; it needs nothing but the game. A
   broken promise is an AssertionError that names it and the state it was broken in.
2. `report_game(spec)` checks the same and lists every promise, kept or broken, for people to read.
3. `check_env(make)` asks the same questions of an environment from elsewhere, through a thin `TextEnv` around it.
   `GameTextEnv` is that wrapper for a `Game`, so that both can be compared.
"""

from nlrl.envs.testing.env_checks import check_env
from nlrl.envs.testing.foreign import Frame, TextEnv
from nlrl.envs.testing.game_text_env import GameTextEnv
from nlrl.envs.testing.games import PROMISES, check_game, report_game
from nlrl.envs.testing.report import Check, NotApplicable, Report

__all__ = [
    "PROMISES",
    "Check",
    "Frame",
    "GameTextEnv",
    "NotApplicable",
    "Report",
    "TextEnv",
    "check_env",
    "check_game",
    "report_game",
]
