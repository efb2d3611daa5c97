"""Stage 6, evaluation: how strong the actor is, and whether the critic's texts are true.

Strength is measured three times: exactly, by tabulating the greedy move in every state the actor can meet and
walking all games (against opponents whose moves have known probabilities); by greedy games; and by games at the
rollout's temperature. Games come in seat-swapped pairs on shared seeds, with Wilson intervals. A forfeit is an outcome
of its own. Texts are measured by their parsed verdicts against exact V^pi and V*, beside trivial baselines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nlrl.agents.asking import Reply, ask
from nlrl.agents.metrics.leaks import find_leaks
from nlrl.agents.roles import Choice, StateInput
from nlrl.envs.opponents import Opponent
from nlrl.orchestration import diary
from nlrl.orchestration.exact import Turn, mixed_results, reachable_turns, worst_case
from nlrl.orchestration.progress import progress
from nlrl.orchestration.session import Session
from nlrl.orchestration.stage_folder import Stage
from nlrl.orchestration.stages.rollout import play_tasks
from nlrl.orchestration.statistics import wilson
from nlrl.orchestration.texts import text_metrics
from nlrl.orchestration.worker import game_tasks

NAME = "evaluation"
RESULTS = ("win", "draw", "loss", "forfeit")


def run_evaluation(session: Session, iteration: int) -> dict[str, Any]:
    """Evaluates the current actor and critic and commits the metrics; returns them."""
    stage = session.folder.stage(iteration, NAME)
    if stage.is_committed():
        return stage.load()["metrics"]
    greedy = greedy_replies(session, iteration)
    opponents = {name: session.opponent(name) for name in session.config.evaluation.opponents}
    metrics: dict[str, Any] = {
        "exact": exact_strength(session, greedy, opponents),
        "turns": turn_metrics(greedy.values()),
        "sampled": sampled_strength(session, stage, iteration),
        "texts": text_metrics(session, iteration),
    }
    diary.write(session, iteration, stage, greedy)
    stage.commit(metrics)
    return metrics


def greedy_replies(session: Session, iteration: int) -> dict[Any, Reply[Choice]]:
    """The actor's greedy answer in every state that it can meet in either seat, whatever its opponent plays."""
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

        reachable_turns(
            game, choose, [Turn(s, seat, 0) for s in game.initial_states() for seat in range(game.num_players)]
        )
    return replies


def _move(reply: Reply[Choice]) -> int | None:
    return reply.output.action if reply.output else None


def exact_strength(
    session: Session, greedy: Mapping[Any, Reply[Choice]], opponents: Mapping[str, Opponent]
) -> dict[str, Any]:
    """Exact results of the greedy actor against each opponent that is exact itself, and its exploitability."""
    table = {state: {_move(reply): 1.0} for state, reply in greedy.items()}
    against = {
        name: {key: round(value, 6) for key, value in mixed_results(session.game, table, opponent)._asdict().items()}
        for name, opponent in opponents.items()
        if opponent.exact
    }
    return {"against": against, "exploitability": round(worst_case(session.game, table), 6), "states": len(table)}


def turn_metrics(replies: Iterable[Reply[Choice]]) -> dict[str, Any]:
    """How many greedy answers could not be read or were illegal at first, and after the retries (a forfeit)."""
    found = list(replies)
    failures = Counter(failure.reason for reply in found for failure in reply.failures)
    leaks = sum(bool(find_leaks(reply.completion.text)) for reply in found)
    n = max(len(found), 1)
    return {
        "states": len(found),
        "failed_first": sum(bool(reply.failures) for reply in found) / n,
        "forfeits": sum(reply.failed for reply in found) / n,
        "failures": dict(sorted(failures.items())),
        "actor_leaks": leaks / n,
    }


def sampled_strength(session: Session, stage: Stage, iteration: int) -> dict[str, Any]:
    """Games in seat-swapped pairs on shared seeds: shares with 95% intervals, greedy and at the rollout's
    temperature."""
    config, out = session.config, dict[str, Any]()
    if not config.evaluation.games:
        return out
    for label, temperature in (("greedy", 0.0), ("sampled", config.rollout.temperature)):
        tasks = {}
        for name in config.evaluation.opponents:
            purpose = f"evaluation/{label}/{name}"
            tasks[name] = game_tasks(
                config.name, config.seed, iteration, purpose, config.evaluation.games, (name,), paired=True
            )
        every = [task for group in tasks.values() for task in group]
        play_tasks(session, stage, every, temperature, f"iteration {iteration}: {label} games")
        records = {record["key"]: record for record in stage.records() if record["kind"] == "game"}
        out[label] = {name: shares([records[task.key] for task in group]) for name, group in tasks.items()}
    return out


def shares(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Share of each result with its Wilson interval, and failures a turn."""
    counts, n = Counter(record["result"] for record in records), len(records)
    turns = [turn for record in records for turn in record["turns"]]
    failed = sum(len(turn["failures"]) for turn in turns)
    out: dict[str, Any] = {"games": n, "failures_per_turn": failed / max(len(turns), 1)}
    for result in RESULTS:
        low, high = wilson(counts[result], n)
        out[result] = {"share": counts[result] / n, "low": round(low, 4), "high": round(high, 4)}
    return out
