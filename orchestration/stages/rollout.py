"""Stage 1, rollout: the policy plays whole games; one record each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from nlrl.envs.game import Game
from nlrl.orchestration.progress import progress
from nlrl.orchestration.session import ACTOR, Session
from nlrl.orchestration.stage_folder import Stage
from nlrl.orchestration.worker import GameTask, PlayJob, game_tasks

NAME = "rollout"
T = TypeVar("T")


class Visit(NamedTuple):
    """A state in which the policy had to move: how many moves led to it, how often games came there, what was
    played."""

    ply: int
    count: int
    actions: Counter[int]


def run_rollout(session: Session, iteration: int) -> None:
    """Plays the iteration's games and commits them."""
    stage = session.folder.stage(iteration, NAME)
    if stage.is_committed():
        return
    config = session.config
    tasks = game_tasks(config.name, config.seed, iteration, NAME, config.rollout.games, config.rollout.opponents)
    play_tasks(session, stage, tasks, config.rollout.temperature, f"iteration {iteration}: games")
    records = list(stage.records())
    stage.commit(summary(records))


def play_tasks(session: Session, stage: Stage, tasks: list[GameTask], temperature: float, label: str) -> None:
    """Plays the tasks whose records a stage still owes, and writes them."""
    owed = set(stage.owed([task.key for task in tasks]))
    waiting = [task for task in tasks if task.key in owed]
    if not waiting:
        return
    version, size = session.versions[ACTOR], -(-len(waiting) // len(session.workers))
    jobs = [PlayJob(version, temperature, chunk) for chunk in chunks(waiting, size)]
    with stage.writer("games") as writer, progress(label, len(tasks), len(tasks) - len(waiting)) as bar:
        for _, records in session.cluster.map_unordered(session.workers, "play", jobs):
            writer.write_many(records)
            writer.flush()
            bar.advance(len(records))


def chunks(items: list[T], size: int) -> Iterator[list[T]]:
    """Consecutive pieces of at most `size`."""
    for start in range(0, len(items), max(size, 1)):
        yield items[start : start + max(size, 1)]


def summary(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Counts of results, turns and failures."""
    results, turns, failures = Counter[str](), 0, Counter[str]()
    for record in records:
        results[record["result"]] += 1
        turns += len(record["turns"])
        failures.update(reason for turn in record["turns"] for reason in turn["failures"])
    return {
        "games": sum(results.values()),
        "results": dict(sorted(results.items())),
        "turns": turns,
        "failures": dict(sorted(failures.items())),
        "failures_per_turn": sum(failures.values()) / max(turns, 1),
    }


def visits(game: Game[Any], records: Iterable[dict[str, Any]]) -> dict[Any, Visit]:
    """The states in which the policy moved, in a fixed order."""
    found: dict[Any, Visit] = {}
    for record in records:
        state = game.parse_text(record["start"])
        for ply, action in enumerate(record["actions"]):
            if game.current_player(state) == record["seat"]:
                visit = found.get(state) or Visit(ply, 0, Counter())
                visit.actions[action] += 1
                found[state] = visit._replace(count=visit.count + 1)
            state = game.apply(state, action).state
    return dict(sorted(found.items(), key=lambda item: (item[1].ply, game.to_text(item[0]))))
