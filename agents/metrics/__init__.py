"""Metrics of texts: leaks of absent evidence, claims that rules can check, verdicts against exact values."""

from nlrl.agents.metrics import tictactoe_claims as _tictactoe_claims  # noqa: F401 - makes the game's claims known
from nlrl.agents.metrics.claims import Claim, check_claims, register_claims
from nlrl.agents.metrics.leaks import Leak, find_leaks, strip_leaks
from nlrl.agents.metrics.verdicts import (
    VerdictScores,
    compare_verdicts,
    one_step_action_value,
    one_step_value,
    score_verdicts,
)

__all__ = [
    "Claim",
    "Leak",
    "VerdictScores",
    "check_claims",
    "compare_verdicts",
    "find_leaks",
    "one_step_action_value",
    "one_step_value",
    "register_claims",
    "score_verdicts",
    "strip_leaks",
]
