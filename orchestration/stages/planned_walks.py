"""Evaluation of plans that a sweep made: walks from every start, in every repeat, beside the best possible and random
moves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nlrl.agents.corpus.states import states_by_ply
from nlrl.agents.language import language_of
from nlrl.envs.game import Game
from nlrl.envs.random import Rng
from nlrl.orchestration.exact import best_return, optimal_values
from nlrl.orchestration.players import NONE, Play
from nlrl.orchestration.records import record_key
from nlrl.orchestration.session import Session
from nlrl.orchestration.stages import sweep
from nlrl.orchestration.stages.evaluation import NAME, shares
from nlrl.orchestration.texts import Argument, Asked, Exact, faithfulness, spoken_metrics, verdict_scores
from nlrl.orchestration.walks import ExactWalks, Table, mean_results
from nlrl.orchestration.worker import play_record


def run_walks(session: Session, iteration: int) -> dict[str, Any]:
    """Walks by the plans, once from every start in every repeat, and commits the figures; returns them."""
    stage = session.folder.stage(iteration, NAME)
    if stage.is_committed():
        return stage.load()["metrics"]
    plans, game = sweep.plans_made(session, iteration), session.game
    records = []
    for repeat in range(session.config.gpi.repeats):
        for index, start in enumerate(game.initial_states()):
            rng = Rng(session.seed("walk", iteration, repeat, index))
            walk = Play(start, 0, NONE, rng)
            sweep.walk_on(game, walk, repeat, plans)
            key = record_key("walk", session.config.name, session.config.seed, iteration, repeat, index)
            records.append(play_record(game, key, start, walk) | {"repeat": repeat})
    with stage.writer("walks") as writer:
        writer.write_many(records)
    metrics = {
        "exact": {"against": {}, **references(game)},
        "sampled": {"greedy": {NONE: shares(records, 1)}},
        "turns": spoken_metrics(game, _arguments(session, iteration), "actor_"),
        "texts": sweep_metrics(session, iteration),
    }
    return stage.commit(metrics)["metrics"]


def references(game: Game[Any]) -> dict[str, float]:
    """The best possible return from the starts, and that of uniformly random moves."""
    starts = game.initial_states()
    states = [state for layer in states_by_ply(game.spec).values() for state in layer]
    uniform: Table = {state: dict.fromkeys(game.legal_actions(state), 1.0) for state in states}
    random = mean_results(ExactWalks(game, language_of(game), uniform, starts), starts)
    return {"optimum": round(best_return(game), 6), "random": round(random.return_, 6)}


def _arguments(session: Session, iteration: int) -> Iterator[Argument]:
    """What I said about the first repeat's first plans."""
    for record in session.folder.stage(iteration, sweep.NAME).records():
        if (record["repeat"], record["plan"]) == (0, 0):
            yield session.game.parse_text(record["state"]), record["text"]


def sweep_metrics(session: Session, iteration: int) -> dict[str, Any]:
    """The texts of the first repeat's first plans: against exact values of best play, and against the rules."""
    game, asked = session.game, list[Asked]()
    for record in session.folder.stage(iteration, sweep.NAME).records():
        if (record["repeat"], record["plan"]) == (0, 0):
            state = game.parse_text(record["state"])
            asked += [Asked(state, c["action"], c["text"], c["verdict"]) for c in record["candidates"]]
            asked += [Asked(state, action, None, None) for action in record["unread"]]
    optimal: Exact = {**optimal_values(game, dict.fromkeys(one.state for one in asked))}
    return {
        "pairs": len(asked),
        "against_optimal": verdict_scores(game, asked, optimal),
        **faithfulness(game, asked),
    }
