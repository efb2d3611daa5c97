"""NLAC, the natural-language actor-critic of arXiv 2512.04601: a successor model that is trained off-policy from single
transitions, and a policy that refines its own proposals.

1. A *transition* (s, a, what followed, s') leads from one decision of the policy to its next, or to the end of the
   game; whoever moves in between is part of the environment. Those of all iterations stay in the replay
   (`stages/transitions.py`).
2. The *language Bellman backup* of one transition: a' is drawn from the current policy at s', the target weights tell
   the future of (s', a'), G2 joins what followed with that, and G1 makes a text about (s, a) of it. Where the game
   ended, the text is that of the ended game (`stages/backup.py`). The *successor model*, the critic, is fine-tuned on
   these texts. No game is played on from anywhere, and what was learned of s' reaches s an iteration later.
3. The *target weights* are a running mean of the successor model's.
4. The *refinement policy*: the policy proposes one move, the evaluator makes a critique of k summaries of its future,
   the move is kept or revised, and the actor is fine-tuned on what came of it (`stages/refinement.py`).

Rollout, targets (backups), policy table, critic, average, improvement (refinement), actor, evaluation.
"""

from __future__ import annotations

from typing import Any

from nlrl.envs.game import Game
from nlrl.errors import NLRLError
from nlrl.orchestration.checkpoints import checkpoints_in
from nlrl.orchestration.config import ImprovementConfig, RunConfig, TargetConfig
from nlrl.orchestration.methods import Method
from nlrl.orchestration.players import SELF
from nlrl.orchestration.stages import evaluation, improvement, policy_table, rollout, targets
from nlrl.orchestration.stages.backup import AVERAGE, run_average, run_backup, run_successor
from nlrl.orchestration.stages.evaluation import run_evaluation
from nlrl.orchestration.stages.policy_table import run_policy_table
from nlrl.orchestration.stages.refinement import run_refinement
from nlrl.orchestration.stages.rollout import run_rollout
from nlrl.orchestration.stages.training import run_actor

MOST_SUMMARIES = 2
"""Texts about one move that bundled models can merge: they were taught to merge texts of G2."""
OTHERS = {
    "targets": (TargetConfig(), ("kind", "value", "opponent_aware")),
    "improvement": (ImprovementConfig(), ("candidates",)),
}
"""Settings of the actor-critic that would promise what this method does not do."""


def check_config(config: RunConfig, game: Game[Any]) -> None:
    """Refuses what would make stored transitions wrong, and what is not done here.

    Raises:
        NLRLError: names the field.
    """
    changing = [name for name in config.rollout.opponents if name == SELF or checkpoints_in([name])]
    if game.num_players > 1 and changing and config.nlac.replay.kind != "recent":
        raise NLRLError(
            f"rollout.opponents has '{changing[0]}', which changes, but method 'nlac' learns from the replies in games "
            "of all iterations; name opponents that stay as they are, or set nlac.replay.kind to 'recent'"
        )
    if config.control == "shuffled_evaluations":
        raise NLRLError("control is 'shuffled_evaluations', but method 'nlac' has no candidates to shuffle among")
    for section, (unset, fields) in OTHERS.items():
        for field in fields:
            value = getattr(getattr(config, section), field)
            if value != getattr(unset, field):
                raise NLRLError(f"{section}.{field} is {value!r}: method 'nlac' does not use it; leave it out")
    style, most = (config.teacher or config.model).prompt_style, config.nlac.summaries
    if style == "plain" and most > MOST_SUMMARIES:
        raise NLRLError(
            f"nlac.summaries is {most}: bundled models merge at most {MOST_SUMMARIES} summaries; 0 reads their whole "
            "distribution"
        )


METHOD = Method(
    stages=(
        (rollout.NAME, run_rollout),
        (targets.NAME, run_backup),
        (policy_table.NAME, run_policy_table),
        ("critic", run_successor),
        (AVERAGE, run_average),
        (improvement.NAME, run_refinement),
        ("actor", run_actor),
        (evaluation.NAME, run_evaluation),
    ),
    first=((evaluation.NAME, run_evaluation),),
    check=check_config,
    gathers=3,
    asked=lambda config: ("actor", "target"),
)
