"""Metrics of texts: leaks of absent evidence, claims that rules can check, verdicts against exact values, words against
their own number, symmetry, obedience to evaluations, and what a blind reader recovers."""

from nlrl.agents.metrics import breakthrough_claims as _breakthrough_claims  # noqa: F401 - makes the game's claims known
from nlrl.agents.metrics import frozen_lake_claims as _frozen_lake_claims  # noqa: F401 - makes the game's claims known
from nlrl.agents.metrics import maze_claims as _maze_claims  # noqa: F401
from nlrl.agents.metrics import tictactoe_claims as _tictactoe_claims  # noqa: F401 - makes the game's claims known
from nlrl.agents.metrics.choices import ChoiceRegret, choice_regrets
from nlrl.agents.metrics.claims import LEGAL_MOVE, Claim, check_claims, register_claims
from nlrl.agents.metrics.consistency import Consistency, check_consistency
from nlrl.agents.metrics.leaks import Leak, find_leaks, strip_leaks
from nlrl.agents.metrics.verdicts import (
    VerdictScores,
    VerdictTable,
    compare_verdicts,
    one_step_action_value,
    one_step_value,
    score_verdicts,
)

__all__ = [
    "LEGAL_MOVE",
    "ChoiceRegret",
    "Claim",
    "Consistency",
    "Leak",
    "VerdictScores",
    "VerdictTable",
    "check_claims",
    "check_consistency",
    "choice_regrets",
    "compare_verdicts",
    "find_leaks",
    "one_step_action_value",
    "one_step_value",
    "register_claims",
    "score_verdicts",
    "strip_leaks",
]
