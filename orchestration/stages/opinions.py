"""What the critic says about moves: one text for each (state, action), however it is asked.

A critic of moves is asked about them. One that knows positions only is asked where look-aheads from the move end; G2
and G1 make one text of that. One that is told the opponent is asked about each, and the text nearest to the weighted
mean speaks for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nlrl.agents.asking import ask
from nlrl.agents.roles import ActionInput, Evaluation, SamplesInput
from nlrl.orchestration.speakers import Speakers
from nlrl.orchestration.stages import targets
from nlrl.orchestration.stages.outlooks import ahead_of, merge, outlooks, without_leaks
from nlrl.orchestration.stages.rollout import chunks
from nlrl.orchestration.worker import Continuation, ContinuationTask

Pair = tuple[Any, int]
Asked = tuple[Pair, str]
"""A (state, action) and the opponent; empty for a critic that is not told."""
Opinions = dict[Asked, Evaluation | None]
Weights = Mapping[Any, Mapping[str, int]]
"""How often each opponent was met in a state."""
ANY_PLY = 99
"""Of look-aheads: they draw among the answers of any state, not those of first moves."""


def evaluate_moves(
    session: Speakers, pairs: Sequence[Pair], weights: Weights | None = None
) -> dict[Pair, Evaluation | None]:
    """The critic's text for each (state, action), read as the config says; None where no answer could be read.

    Args:
        weights: for a critic that is told the opponent; without them all count alike.
    """
    config = session.config.targets
    names = list(dict.fromkeys(session.opponents)) if config.opponent_aware else [""]
    asked = [(pair, name) for pair in pairs for name in names]
    said = look_ahead(session, asked) if config.value == "v" else ask_critic(session, asked)
    if not config.opponent_aware:
        return {pair: said[pair, ""] for pair in pairs}
    return {pair: _for_all(pair, {name: said[pair, name] for name in names}, weights or {}) for pair in pairs}


def ask_critic(session: Speakers, asked: Sequence[Asked]) -> Opinions:
    """Q's texts."""
    config, role = session.config.improvement, session.student_roles.q
    inputs = [ActionInput(*pair, against) for pair, against in asked]
    if config.verdict != "mean" and (config.verdict == "greedy" or session.critic.reads_expectations):
        sampling = session.sampling(0.0, expected_number=config.verdict == "expectation")
        replies = ask(session.critic, role, inputs, sampling)
        return {one: reply.output for one, reply in zip(asked, replies, strict=True)}
    sampling, n = session.sampling(1.0), config.mean_samples
    seeds = [session.seed("mean", i) for _ in asked for i in range(n)]
    replies = ask(session.critic, role, [inp for inp in inputs for _ in range(n)], sampling, seeds)
    groups = [[r.output for r in replies[i * n : (i + 1) * n] if r.output] for i in range(len(asked))]
    return {one: nearest_to_mean(group) for one, group in zip(asked, groups, strict=True)}


def look_ahead(session: Speakers, asked: Sequence[Asked]) -> Opinions:
    """G1's texts about look-aheads with the current policy, whose ends V evaluates. I is not to argue with evidence
    that the policy will not have, so what cites it is left out."""
    tasks = [_task(session, *one) for one in asked]
    size = targets.at_once(session, len(tasks), targets.PAIRS_AT_ONCE)
    jobs = [targets.continue_job(session, part, ahead=True) for part in chunks(tasks, size)]
    parts = dict(session.on_workers("continue_games", jobs))
    found: list[Sequence[Continuation]] = [samples for index in range(len(jobs)) for samples in parts[index]]
    aheads = [
        ahead_of(session.game, pair[0], one, against)
        for (pair, against), samples in zip(asked, found, strict=True)
        for one in samples
    ]
    lines = iter([outlook.text for outlook in outlooks(session, aheads)])
    inputs = [
        SamplesInput(*pair, tuple(next(lines) for _ in samples), "outlooks")
        for (pair, _), samples in zip(asked, found, strict=True)
    ]
    replies = merge(session, inputs, [task.seed for task in tasks])
    return {one: without_leaks(reply) for one, reply in zip(asked, replies, strict=True)}


def _task(session: Speakers, pair: Pair, against: str) -> ContinuationTask:
    state, action = pair
    seed = session.seed("look ahead", session.game.to_text(state), action, against)
    return ContinuationTask(
        state, ANY_PLY, action, session.config.targets.continuations, seed, targets.opponents_of(against)
    )


def _for_all(pair: Pair, said: Mapping[str, Evaluation | None], weights: Weights) -> Evaluation | None:
    """One text for those against each opponent that was met in the state (or against all, if none was)."""
    counts = weights.get(pair[0], {})
    met = {name: evaluation for name, evaluation in said.items() if evaluation and (not counts or counts.get(name))}
    return nearest_to_mean(list(met.values()), [counts.get(name, 1) for name in met])


def nearest_to_mean(evaluations: Sequence[Evaluation], weights: Sequence[float] | None = None) -> Evaluation | None:
    """The text whose verdict is nearest to the (weighted) mean verdict: one opinion that speaks for all."""
    if not evaluations:
        return None
    counts = weights or [1] * len(evaluations)
    mean = sum(e.verdict * weight for e, weight in zip(evaluations, counts, strict=True)) / sum(counts)
    return min(evaluations, key=lambda e: abs(e.verdict - mean))
