"""Algorithm 3 of the paper (arXiv 2411.14251), the natural-language actor-critic: language policy iteration.

Rollout, targets, policy table, critic, improvement, actor, evaluation.
"""

from __future__ import annotations

from nlrl.orchestration.methods import Method
from nlrl.orchestration.stages.evaluation import run_evaluation
from nlrl.orchestration.stages.improvement import run_improvement
from nlrl.orchestration.stages.policy_table import run_policy_table
from nlrl.orchestration.stages.rollout import run_rollout
from nlrl.orchestration.stages.targets import asked, run_targets
from nlrl.orchestration.stages.training import run_actor, run_critic

METHOD = Method(
    stages=(
        ("rollout", run_rollout),
        ("targets", run_targets),
        ("policy", run_policy_table),
        ("critic", run_critic),
        ("improvement", run_improvement),
        ("actor", run_actor),
        ("evaluation", run_evaluation),
    ),
    first=(("evaluation", run_evaluation),),
    gathers=3,
    asked=asked,
)
