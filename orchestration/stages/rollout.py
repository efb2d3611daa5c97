"""Stage 1, rollout: the policy plays whole games; one record each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from nlrl.agents.language import NO_MOVE
from nlrl.envs.game import Game
from nlrl.envs.random import Rng
from nlrl.orchestration.lines import line_of_record
from nlrl.orchestration.progress import progress
from nlrl.orchestration.session import ACTOR, Session
from nlrl.orchestration.stage_folder import Stage
from nlrl.orchestration.worker import GameTask, PlayJob, game_tasks

NAME = "rollout"
T = TypeVar("T")


class Visit(NamedTuple):
    """A state in which the policy had to move: how many moves led to it at least, how often games came there, what was
    played."""

    ply: int
    count: int
    actions: Counter[int]


def run_rollout(session: Session, iteration: int, tokens: bool = False) -> None:
    """Plays the iteration's games and commits them.

    Args:
        tokens: records keep the answers' tokens and log-probabilities.
    """
    stage = session.folder.stage(iteration, NAME)
    if stage.is_committed():
        return
    config = session.config
    tasks = rollout_tasks(session, iteration)
    rollout = config.rollout
    how = PlayJob(session.versions[ACTOR], rollout.temperature, tokens=tokens, explore=rollout.explore)
    play_tasks(session, stage, tasks, how, f"iteration {iteration}: games")
    records = list(stage.records())
    stage.commit(summary(records) | session.told())


def rollout_tasks(session: Session, iteration: int) -> list[GameTask]:
    """The games of an iteration."""
    config, seats = session.config, session.game.num_players
    of_run = (config.name, config.seed, iteration, NAME)
    return game_tasks(*of_run, config.rollout.games, session.opponents, seats=seats)


def play_tasks(session: Session, stage: Stage, tasks: list[GameTask], how: PlayJob, label: str) -> None:
    """Plays the tasks whose records a stage still owes, and writes them; `how` says how."""
    owed = set(stage.owed([task.key for task in tasks]))
    waiting = [task for task in tasks if task.key in owed]
    if not waiting:
        return
    size = -(-len(waiting) // len(session.workers))
    jobs = [how._replace(tasks=chunk) for chunk in chunks(waiting, size)]
    with stage.writer("games") as writer, progress(label, len(tasks), len(tasks) - len(waiting)) as bar:
        for _, records in session.on_workers("play", jobs):
            writer.write_many(records)
            writer.flush()
            bar.advance(len(records))


def chunks(items: list[T], size: int) -> Iterator[list[T]]:
    """Consecutive pieces of at most `size`."""
    for start in range(0, len(items), max(size, 1)):
        yield items[start : start + max(size, 1)]


def summary(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Counts of results, turns and failures; with one player the mean return, too."""
    results, turns, failures, paid = Counter[str](), 0, Counter[str](), None
    for record in records:
        if "return" in record:
            paid = (paid or 0.0) + record["return"]
        results[record["result"]] += 1
        turns += len(record["turns"])
        failures.update(reason for turn in record["turns"] for reason in turn["failures"])
    games = sum(results.values())
    return {
        "games": games,
        "results": dict(sorted(results.items())),
        **({"return": paid / games} if paid is not None else {}),
        "turns": turns,
        "failures": dict(sorted(failures.items())),
        "failures_per_turn": sum(failures.values()) / max(turns, 1),
    }


def sample_of(session: Session, iteration: int, visited: dict[Any, Visit], count: int) -> dict[Any, Visit]:
    """A seeded sample of the visited states, in their order; all if `count` is 0. A larger one holds a smaller one."""
    if count == 0 or count >= len(visited):
        return visited
    chosen = set(Rng(session.seed("sample of states", iteration)).shuffled(list(visited))[:count])
    return {state: visit for state, visit in visited.items() if state in chosen}


def visits(game: Game[Any], records: Iterable[dict[str, Any]]) -> dict[Any, Visit]:
    """The states in which the policy moved, in a fixed order."""
    found: dict[Any, Visit] = {}
    for record in records:
        line = line_of_record(game, record)
        for ply, (state, action) in enumerate(zip(line.states, line.actions, strict=False)):
            if game.current_player(state) == record["seat"]:
                visit = found.get(state) or Visit(ply, 0, Counter())
                if action != NO_MOVE:
                    visit.actions[action] += 1
                found[state] = visit._replace(count=visit.count + 1, ply=min(visit.ply, ply))
    return dict(sorted(found.items(), key=lambda item: (item[1].ply, game.to_text(item[0]))))
