"""Are the critic's texts true? Verdicts beside exact values, claims beside the rules, words beside their own
verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from nlrl.agents.language import load_phrases
from nlrl.agents.metrics.claims import check_claims
from nlrl.agents.metrics.leaks import find_leaks
from nlrl.agents.metrics.verdicts import compare_verdicts, one_step_action_value
from nlrl.envs.opponents import Opponent, make_opponent
from nlrl.envs.oracle import oracle_for
from nlrl.orchestration.exact import action_values
from nlrl.orchestration.session import Session
from nlrl.orchestration.stages import improvement, policy_table, rollout
from nlrl.orchestration.stages.rollout import visits

BASE_STATES = 100
"""States on which the untrained critic is asked before the first iteration."""

Asked = tuple[tuple[Any, int], str | None, float | None]
"""(state, action), the critic's text and its verdict; None for both where no answer could be read."""


def text_metrics(session: Session, iteration: int) -> dict[str, Any]:
    """Scores of the critic's texts on the iteration's value states, all legal moves of each; none against a policy
    whose opponents are known by their samples only."""
    asked = _base_texts(session) if iteration == 0 else _loop_texts(session, iteration)
    if not asked:
        return {}
    pairs, _, verdicts = zip(*asked, strict=True)
    readable = [(pair, text, verdict) for pair, text, verdict in asked if text is not None and verdict is not None]
    exact_pi, exact_star = _exact(session, iteration, pairs)
    claims = [
        claim.true for (state, action), text, _ in readable for claim in check_claims(text, session.game, state, action)
    ]
    return {
        "pairs": len(pairs),
        "against_policy": _scores(session.game, pairs, verdicts, exact_pi) if exact_pi else {},
        "against_optimal": _scores(session.game, pairs, verdicts, exact_star),
        "claims": len(claims),
        "true_claims": sum(claims) / len(claims) if claims else None,
        "leaks": sum(bool(find_leaks(text)) for _, text, _ in readable) / max(len(readable), 1),
        "words_agree": _agreement(session, [(text, verdict) for _, text, verdict in readable]),
    }


def _scores(
    game: Any, pairs: Sequence[tuple[Any, int]], verdicts: Sequence[float | None], exact: dict[Any, float]
) -> dict[str, dict[str, float | None]]:
    """The figures of the texts and of the trivial baselines: `text`, `constant`, `one_step`."""
    baselines = {"one_step": [one_step_action_value(game, state, action) for state, action in pairs]}
    truth, groups = [exact[pair] for pair in pairs], [pair[0] for pair in pairs]
    scores = compare_verdicts(verdicts, truth, groups, baselines)
    return {name: {k: _rounded(v) for k, v in asdict(row).items()} for name, row in scores.items()}


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)


def _loop_texts(session: Session, iteration: int) -> list[Asked]:
    """What the critic said to I about the value states."""
    game = session.game
    visited = visits(game, session.folder.stage(iteration, rollout.NAME).records())
    chosen = set(policy_table.value_states(session, iteration, list(visited)))
    asked = []
    for record in session.folder.stage(iteration, improvement.NAME).records():
        state = game.parse_text(record["state"])
        if state in chosen:
            asked += [((state, c["action"]), c["text"], c["verdict"]) for c in record["candidates"]]
            asked += [((state, action), None, None) for action in record["unread"]]
    return asked


def _base_texts(session: Session) -> list[Asked]:
    from nlrl.agents.corpus.states import states_by_ply
    from nlrl.envs.random import Rng

    states = [state for layer in states_by_ply(session.game.spec).values() for state in layer]
    chosen = Rng(session.seed("base texts")).shuffled(states)[:BASE_STATES]
    pairs = [(state, action) for state in chosen for action in session.game.legal_actions(state)]
    found = improvement.evaluate_moves(session, pairs)
    return [(pair, e.text, e.verdict) if e else (pair, None, None) for pair, e in found.items()]


def _exact(
    session: Session, iteration: int, pairs: Sequence[tuple[Any, int]]
) -> tuple[dict[Any, float], dict[Any, float]]:
    """Exact Q^pi (before the first iteration: of uniformly random play, which is what the base plays; empty where it
    is not known) and Q*."""
    oracle = oracle_for(session.game)
    return _exact_pi(session, iteration, pairs), {p: oracle.q_values(p[0])[p[1]] for p in pairs}


def _exact_pi(session: Session, iteration: int, pairs: Sequence[tuple[Any, int]]) -> dict[Any, float]:
    game, opponents = session.game, session.exact_opposition()
    if opponents is None:
        return {}
    if iteration:
        return action_values(game, policy_table.read_table(session, iteration), opponents, pairs)
    random: list[Opponent | None] = [opponent or make_opponent("random", game) for opponent in opponents]
    return action_values(game, _Uniform(game), random, pairs)


class _Uniform(dict[Any, dict[int | None, float]]):
    """The table of a uniformly random player, made as it is read."""

    def __init__(self, game: Any):
        super().__init__()
        self._game = game

    def __missing__(self, state: Any) -> dict[int | None, float]:
        self[state] = dict.fromkeys(self._game.legal_actions(state), 1.0)
        return self[state]


def _agreement(session: Session, said: Sequence[tuple[str, float]]) -> float | None:
    """Share of bundled-style texts whose words belong to their verdict's band; None without such texts."""
    if session.config.model.prompt_style != "plain" or not said:
        return None
    from nlrl.agents.corpus.study import text_agrees

    bands = load_phrases(session.game.name)["bands"]
    return sum(text_agrees(text, verdict, bands) for text, verdict in said) / len(said)
