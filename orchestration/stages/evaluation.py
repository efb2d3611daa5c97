"""Stage 6, evaluation: how strong the actor is, and whether the critic's texts are true.

Strength is measured three times: exactly, by tabulating the greedy move in every state the actor can meet and
walking all games (of a small game, against opponents whose moves have known probabilities); by greedy games; and by
games at the rollout's temperature. Games come in seat-swapped pairs on shared seeds, with Wilson intervals; with one
player, returns have Student's. A forfeit is an outcome of its own. Texts are measured by their parsed verdicts against
exact V^pi and V*, beside trivial baselines.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nlrl.agents.asking import Reply, ask
from nlrl.agents.language import language_of
from nlrl.agents.roles import Choice, StateInput
from nlrl.envs.game import Game
from nlrl.orchestration import diary
from nlrl.orchestration.exact import Results, Table, Turn, best_return, mixed_results, reachable_turns, worst_case
from nlrl.orchestration.players import NONE, RESULTS
from nlrl.orchestration.progress import progress
from nlrl.orchestration.session import ACTOR, Session
from nlrl.orchestration.stage_folder import Stage
from nlrl.orchestration.stages.rollout import play_tasks
from nlrl.orchestration.statistics import mean_interval, wilson
from nlrl.orchestration.texts import argument_metrics, base_states, said_in_games, spoken_metrics, text_metrics
from nlrl.orchestration.walks import ExactWalks, WalkResults, mean_results
from nlrl.orchestration.worker import PlayJob, game_tasks

NAME = "evaluation"


def run_evaluation(session: Session, iteration: int) -> dict[str, Any]:
    """Evaluates the current actor and critic and commits the metrics; returns them."""
    stage = session.folder.stage(iteration, NAME)
    if stage.is_committed():
        return stage.load()["metrics"]
    greedy = greedy_replies(session, iteration)
    metrics: dict[str, Any] = {
        "exact": exact_strength(session, greedy),
        "turns": turn_metrics(greedy.values()) | argument_metrics(session.game, greedy),
        "sampled": sampled_strength(session, stage, iteration),
        "texts": text_metrics(session, iteration),
    }
    metrics |= games_said(session, stage)
    diary.write(session, iteration, stage, greedy)
    return stage.commit(metrics)["metrics"]


def greedy_replies(session: Session, iteration: int) -> dict[Any, Reply[Choice]]:
    """The actor's greedy answer in every state that it can meet in either seat, whatever its opponent plays; in a large
    game, in a sample of positions."""
    game, replies = session.game, dict[Any, Reply[Choice]]()
    with progress(f"iteration {iteration}: greedy policy", 0) as bar:

        def choose(turns: list[Turn]) -> list[Iterable[int | None]]:
            new = [turn.state for turn in turns if turn.state not in replies]
            asked = ask(
                session.actor,
                session.student_roles.policy,
                [StateInput(state) for state in new],
                session.sampling(0.0),
                session.seed("greedy", iteration),
                session.config.rollout.retries,
            )
            replies.update(zip(new, asked, strict=True))
            bar.advance(len(new))
            return [[_move(replies[turn.state])] for turn in turns]

        if session.is_small:
            starts = [Turn(s, seat, 0) for s in game.initial_states() for seat in range(game.num_players)]
            reachable_turns(game, choose, starts)
        else:
            choose([Turn(state, game.current_player(state), 0) for state in base_states(session)])
    return replies


def _move(reply: Reply[Choice]) -> int | None:
    return reply.output.action if reply.output else None


def exact_strength(session: Session, greedy: Mapping[Any, Reply[Choice]]) -> dict[str, Any]:
    """Exact results of the greedy actor against each opponent that is exact itself, and its exploitability; with one
    player, of its walks. Of a large game nothing is exact."""
    if not session.is_small:
        return {"against": {}}
    table = {state: {_move(reply): 1.0} for state, reply in greedy.items()}
    if session.game.num_players == 1:
        return exact_walks(session.game, table)
    opponents = {name: session.opponent(name) for name in session.measured_opponents}
    against = {
        name: _rounded(mixed_results(session.game, table, opponent))
        for name, opponent in opponents.items()
        if opponent.exact
    }
    return {"against": against, "exploitability": round(worst_case(session.game, table), 6), "states": len(table)}


def exact_walks(game: Game[Any], table: Table) -> dict[str, Any]:
    """Exact results of a player alone, its mean over all starts, and the best possible return beside it."""
    starts = game.initial_states()
    found = mean_results(ExactWalks(game, language_of(game), table, starts), starts)
    return {
        "against": {NONE: _rounded(found)},
        "optimum": round(best_return(game), 6),
        "states": len(table),
    }


def _rounded(found: Results | WalkResults) -> dict[str, float]:
    return {key.rstrip("_"): round(value, 6) for key, value in found._asdict().items()}


def turn_metrics(replies: Iterable[Reply[Choice]]) -> dict[str, Any]:
    """How many greedy answers could not be read or were illegal at first, and after the retries (a forfeit)."""
    found = list(replies)
    failures = Counter(failure.reason for reply in found for failure in reply.failures)
    n = max(len(found), 1)
    return {
        "states": len(found),
        "failed_first": sum(bool(reply.failures) for reply in found) / n,
        "forfeits": sum(reply.failed for reply in found) / n,
        "failures": dict(sorted(failures.items())),
    }


def sampled_strength(session: Session, stage: Stage, iteration: int) -> dict[str, Any]:
    """Games in seat-swapped pairs on shared seeds: shares with 95% intervals, greedy and at the rollout's
    temperature."""
    config, out, seats = session.config, dict[str, Any](), session.game.num_players
    if not config.evaluation.games:
        return out
    for label, temperature in (("greedy", 0.0), ("sampled", config.rollout.temperature)):
        tasks = {}
        for name in session.measured_opponents:
            of_run = (config.name, config.seed, iteration, f"evaluation/{label}/{name}")
            tasks[name] = game_tasks(*of_run, config.evaluation.games, (name,), paired=True, seats=seats)
        every = [task for group in tasks.values() for task in group]
        how = PlayJob(session.versions[ACTOR], temperature)
        play_tasks(session, stage, every, how, f"iteration {iteration}: {label} games")
        records = {record["key"]: record for record in stage.records() if record["kind"] == "game"}
        out[label] = {name: shares([records[task.key] for task in group], seats) for name, group in tasks.items()}
    return out


def games_said(session: Session, stage: Stage) -> dict[str, Any]:
    """What the actor said in the evaluation's games, against the rules: illegal suggestions and leaks among them."""
    said = spoken_metrics(session.game, said_in_games(session, stage.records()))
    return {"said_in_games": said} if said else {}


def shares(records: Sequence[Mapping[str, Any]], players: int = 2) -> dict[str, Any]:
    """Share of each result with its Wilson interval, and failures a turn; with one player the mean return, with
    Student's interval."""
    counts, n = Counter(record["result"] for record in records), len(records)
    turns = [turn for record in records for turn in record["turns"]]
    failed = sum(len(turn["failures"]) for turn in turns)
    out: dict[str, Any] = {"games": n, "failures_per_turn": failed / max(len(turns), 1)}
    for result in RESULTS[players]:
        low, high = wilson(counts[result], n)
        out[result] = {"share": counts[result] / n, "low": round(low, 4), "high": round(high, 4)}
    if players == 1:
        out["return"] = mean_return([record["return"] for record in records])
    return out


def mean_return(returns: Sequence[float]) -> dict[str, float | None]:
    """A mean with its 95% interval; None where there are too few."""
    low, high = mean_interval(returns)
    mean = sum(returns) / len(returns) if returns else math.nan
    return {
        name: None if math.isnan(value) else round(value, 4)
        for name, value in (("mean", mean), ("low", low), ("high", high))
    }
